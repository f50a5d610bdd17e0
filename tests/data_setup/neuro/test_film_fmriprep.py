"""Runs, masks and tables of confounds as fMRIPrep leaves them; what is taken out of a run, and on which TRs."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_setup.neuro.film_data import MASK_FILE, open_film
from tests.data_setup.neuro.film_folders import GRID, brain, only, same, settings, write_brain, write_folder

pytest.importorskip("av", reason="PYAV ABSENT (pip install 'octfm[neuro]'): films from files were NOT tested")
pytest.importorskip("nilearn", reason="NILEARN ABSENT (pip install 'octfm[neuro]'): brain masks were NOT tested")


def bids(number: int, run: int) -> str:
    return f"sub-{number:02d}_task-film_run-{run}_space-MNI_desc-preproc_bold.nii.gz"


@pytest.fixture
def prepped(tmp_path: Path) -> Path:
    """Two subjects as fMRIPrep leaves them, in folders of their own: two runs of 30 TRs, motion, masks."""
    folder = write_folder(tmp_path / "data")
    for path in (folder / "sherlock_nii").iterdir():
        path.unlink()
    rng = np.random.default_rng(3)
    for number in (1, 2):
        inner = folder / "sherlock_nii" / f"sub-{number:02d}" / "func"
        inner.mkdir(parents=True)
        for run in (1, 2):
            motion, voxels = rng.normal(size=(30, 2)), brain(number)[..., 30 * (run - 1) : 30 * run]
            shift = np.multiply.outer(np.arange(120).reshape(GRID), 3 * motion[:, 0] + np.linspace(0, 5, 30))
            write_brain(folder, bids(number, run), voxels + shift.astype(np.float32))
            (folder / "sherlock_nii" / bids(number, run)).rename(inner / bids(number, run))
            rows = ["trans_x\ttrans_x_derivative1\trot_z\tcsf"]
            speeds = ["n/a", *map(str, np.diff(motion[:, 0]))]
            rows += [f"{x}\t{speed}\t{z}\t0" for (x, z), speed in zip(motion, speeds, strict=True)]
            table = inner / f"sub-{number:02d}_task-film_run-{run}_desc-confounds_timeseries.tsv"
            table.write_text("\n".join(rows) + "\n")
        mask = nib.Nifti1Image(np.ones(GRID, np.uint8), np.diag([3.0, 3, 3, 1]))
        nib.save(mask, inner / f"sub-{number:02d}_task-film_run-1_space-MNI_desc-brain_mask.nii.gz")
    return folder


def test_what_fmriprep_writes_is_read_as_runs_of_subjects(prepped: Path) -> None:
    """By their ends alone the names would be four subjects who saw the same 30 TRs."""
    film = open_film(settings(prepped))
    assert film.subject_ids == ("sub-01", "sub-02")
    assert film.facts()["runs"] == [30, 30]
    assert open_film(settings(prepped, subjects=2)).subject_ids == ("sub-02",)
    other = prepped / "sherlock_nii" / bids(1, 2).replace("space-MNI", "space-T1w")
    other.write_bytes((prepped / "sherlock_nii" / "sub-01" / "func" / bids(1, 2)).read_bytes())
    with pytest.raises(ValueError, match=r"are one run of sub-01: say by data\.fmri_files"):
        open_film(settings(prepped))
    same(film, open_film(settings(prepped, fmri_files="*space-MNI*")))
    with pytest.raises(ValueError, match=r"holds no \.nii\.gz \(data\.fmri_files=\*rest\*\)"):
        open_film(settings(prepped, fmri_files="*rest*"))


def test_drift_and_confounds_are_taken_out_on_each_side_of_the_split_by_itself(prepped: Path) -> None:
    chosen = {"detrend": True, "confounds": ("trans_*",), "train_split": 0.5, "gap_trs": 0, "subjects": 1}
    film = open_film(settings(prepped, **chosen))
    inner = prepped / "sherlock_nii" / "sub-01" / "func"
    mask = np.asarray(nib.load(only(prepped) / MASK_FILE).dataobj) > 0
    for run, span in ((1, film.train), (2, film.val)):
        voxels = nib.load(inner / bids(1, run)).get_fdata()[mask].T
        lines = (inner / f"sub-01_task-film_run-{run}_desc-confounds_timeseries.tsv").read_text().splitlines()[1:]
        motion = np.array([[float(value.replace("n/a", "nan")) for value in line.split("\t")[:2]] for line in lines])
        motion[0, 1] = motion[1, 1]
        design = np.column_stack([np.ones(30), np.arange(30), motion])
        left = voxels - design @ np.linalg.lstsq(design, voxels, rcond=None)[0]
        if run == 1:
            deviation = left.std(axis=0)
            alive = deviation > 0.01  # what was motion and nothing else is still now
        np.testing.assert_allclose(film.fmri[span][:, alive], (left / deviation)[:, alive], atol=2e-3)
        assert (film.fmri[span][:, ~alive] == 0).all()
    assert 0 < alive.sum() < len(alive)
    assert film.facts()["confounds"] == ["trans_*"]


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"confounds": ("global_signal",)}, "has no column global_signal; there are: trans_x, "),
        ({"confounds": ("*",), "max_trs": 34, "max_trim_trs": 30}, "5 regressors .* for 3 TRs"),
    ],
)
def test_confounds_that_cannot_be_used_are_named(prepped: Path, others: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        open_film(settings(prepped, train_split=0.8, gap_trs=0, **others))
    table = prepped / "sherlock_nii" / "sub-01" / "func" / "sub-01_task-film_run-1_desc-confounds_timeseries.tsv"
    table.write_text("trans_x\n1\n2\n")
    with pytest.raises(ValueError, match="has 2 whole rows, its run 30 TRs"):
        open_film(settings(prepped, confounds=("trans_x",)))
    table.unlink()
    with pytest.raises(ValueError, match=r"needs sub-01_task-film_run-1_desc-confounds_timeseries\.tsv beside it"):
        open_film(settings(prepped, confounds=("trans_x",)))
