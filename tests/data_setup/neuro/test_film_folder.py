"""A small film and three brains in files go the whole way, and through the cache; nothing held out is looked at."""

import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_setup.neuro.film_data import ARRAYS_FILE, MASK_FILE, open_film
from data_setup.neuro.film_settings import FilmDataSettings
from data_setup.neuro.fmri_normalization import STATS_FILE, FmriNormalization
from data_setup.neuro.hrf import convolved, glover_kernel
from pretraining.autoencoder_config import AutoencoderRunConfig, AutoencoderSection, FilmSection
from pretraining.config import ConfigError
from pretraining.tasks.autoencoder import opened
from tests.data_setup.neuro.film_folders import (
    TRS,
    brain,
    only,
    same,
    settings,
    write_brain,
    write_film,
    write_folder,
)

pytest.importorskip("av", reason="PYAV ABSENT (pip install 'octfm[neuro]'): films from files were NOT tested")
pytest.importorskip("nilearn", reason="NILEARN ABSENT (pip install 'octfm[neuro]'): brain masks were NOT tested")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def test_the_whole_way_against_a_hand_made_oracle(folder: Path) -> None:
    film = open_film(settings(folder))
    assert film.subject_ids == ("sherlock_movie_s1", "sherlock_movie_s2", "sherlock_movie_s10")
    train = np.arange(36)
    np.testing.assert_array_equal(film.train, train)
    np.testing.assert_array_equal(film.val, np.arange(42, 60))

    stds = [brain(number)[..., :36].std(axis=-1) for number in (1, 2, 10)]
    mask = sum(std > np.quantile(std[std > 0], 0.1) for std in stds) >= 2
    assert 0 < mask.sum() < 72
    assert not mask[1, 0, 0]
    written = nib.load(only(folder) / MASK_FILE)
    np.testing.assert_array_equal(np.asarray(written.dataobj), mask)
    z = []
    for number in (1, 2, 10):
        series = brain(number)[mask].T.astype(np.float64)
        z.append((series - series[train].mean(axis=0)) / series[train].std(axis=0))
    np.testing.assert_allclose(film.subject_series, z, atol=1e-4)
    np.testing.assert_allclose(film.fmri, np.mean(z, axis=0), atol=1e-4)
    assert film.statistics.variance["fmri"] == pytest.approx(np.mean(z, axis=0)[train].var(axis=0).mean(), rel=1e-4)

    with np.load(folder / "audio_codes.npz") as file:
        codes = file["codes"]
    np.testing.assert_array_equal(film.audio, codes.reshape(TRS, 12))
    with np.load(folder / "text_embeddings.npz") as file:
        np.testing.assert_allclose(film.text, convolved(file["embeddings"], glover_kernel(1.0)), rtol=1e-5)
    assert (film.shape.frames, film.shape.height, film.shape.width) == (2, 4, 8)
    assert (film.shape.codebooks, film.shape.codes_per_tr, film.shape.num_codes) == (3, 4, 32)
    assert film.video.shape == (TRS, film.shape.video_dim)
    assert film.ceiling is None


def test_the_target_is_the_whole_trs_picture_from_0_to_1_and_not_delayed(folder: Path) -> None:
    """The original's target was the convolved first of ten frames, up to 3.25 for a sigmoid."""
    delayed, plain = open_film(settings(folder)), open_film(settings(folder, apply_hrf=False))
    first = open_film(settings(folder, apply_hrf=False, video_target="first"))
    frames = plain.video.astype(np.float32).reshape(TRS, 2, 4, 8, 3)
    np.testing.assert_allclose(plain.video_target.reshape(TRS, 4, 8, 3), frames.mean(axis=1), atol=1e-3)
    np.testing.assert_allclose(first.video_target.reshape(TRS, 4, 8, 3), frames[:, 0], atol=1e-3)
    np.testing.assert_array_equal(delayed.video_target, plain.video_target)
    assert 0 <= plain.video_target.min() < plain.video_target.max() <= 1
    np.testing.assert_array_equal(delayed.audio, plain.audio)
    wanted = convolved(frames.reshape(TRS, -1), glover_kernel(1.0))
    np.testing.assert_allclose(delayed.video, wanted, atol=2e-3)


def test_a_second_opening_comes_from_the_cache_and_is_equal(folder: Path, monkeypatch) -> None:
    first = open_film(settings(folder))
    file = only(folder) / ARRAYS_FILE
    written = file.stat().st_mtime_ns
    same(first, open_film(settings(folder)))
    assert file.stat().st_mtime_ns == written
    elsewhere = folder.parent / "elsewhere"
    same(first, open_film(settings(folder), elsewhere))
    assert len(list(elsewhere.rglob(ARRAYS_FILE))) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"apply_hrf": False},
        {"mode": "per_subject"},
        {"subjects": [1, 2]},
        {"gap_trs": 7},
        {"train_split": 0.5},
        {"video_target": "first"},
        {"max_trs": 50},
        {"detrend": True},
    ],
)
def test_another_setting_is_another_cache(folder: Path, other) -> None:
    first, second = open_film(settings(folder)), open_film(settings(folder, **other))
    assert len(list((folder / "cache").iterdir())) == 2
    assert first.fingerprint() != second.fingerprint()
    same(second, open_film(settings(folder, **other)))


def test_a_changed_file_is_another_cache(folder: Path) -> None:
    first = open_film(settings(folder))
    size = (folder / "text_embeddings.npz").stat().st_size
    text = np.random.default_rng(9).normal(size=(TRS, 6)).astype(np.float32)
    np.savez(folder / "text_embeddings.npz", embeddings=text)
    assert (folder / "text_embeddings.npz").stat().st_size == size
    second = open_film(settings(folder))
    assert len(list((folder / "cache").iterdir())) == 2
    assert not np.array_equal(first.text, second.text)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "garbage"])
def test_a_damaged_cache_is_made_again_with_a_warning(folder: Path, damage: str, caplog) -> None:
    first = open_film(settings(folder))
    file = only(folder) / ARRAYS_FILE
    whole = bytearray(file.read_bytes())
    file.unlink()  # not in place: arrays are mapped
    match damage:
        case "flip":
            whole[len(whole) // 2] ^= 1
        case "cut":
            del whole[len(whole) // 2 :]
        case "empty":
            whole.clear()
        case "garbage":
            whole[:] = b"no safetensors" * 9
    file.write_bytes(whole)
    again = open_film(settings(folder))
    assert "is damaged" in caplog.text
    same(first, again)
    caplog.clear()
    same(first, open_film(settings(folder)))
    assert not caplog.text


def test_no_held_out_tr_reaches_a_statistic_the_mask_or_a_training_sample(folder: Path) -> None:
    before = open_film(settings(folder))
    mask = np.asarray(nib.load(only(folder) / MASK_FILE).dataobj)
    stats = dict(np.load(only(folder) / STATS_FILE))
    for number in (1, 2, 10):
        run = brain(number)
        run[..., 36:] = np.random.default_rng(number + 50).normal(-900, 80, run[..., 36:].shape)
        write_brain(folder, f"sherlock_movie_s{number}.nii.gz", run)
    rng = np.random.default_rng(7)
    with np.load(folder / "audio_codes.npz") as file:
        codes = file["codes"].copy()
    codes[36:] = rng.integers(0, 32, codes[36:].shape)
    np.savez(folder / "audio_codes.npz", codes=codes)
    with np.load(folder / "text_embeddings.npz") as file:
        text = file["embeddings"].copy()
    text[36:] += 100
    np.savez(folder / "text_embeddings.npz", embeddings=text)
    elsewhere = folder.parent / "elsewhere"
    after = open_film(settings(folder), elsewhere)
    (there,) = elsewhere.iterdir()
    np.testing.assert_array_equal(np.asarray(nib.load(there / MASK_FILE).dataobj), mask)
    for name, value in np.load(there / STATS_FILE).items():
        np.testing.assert_array_equal(value, stats[name])
    for name in ("video", "video_target", "audio", "text", "fmri"):
        np.testing.assert_array_equal(getattr(after, name)[:36], getattr(before, name)[:36])
    assert not np.array_equal(after.fmri[42:], before.fmri[42:])
    assert after.statistics.variance == before.statistics.variance
    assert after.statistics.std == before.statistics.std
    np.testing.assert_array_equal(after.statistics.unigram, before.statistics.unigram)
    for name, mean in before.statistics.mean.items():
        np.testing.assert_array_equal(after.statistics.mean[name], mean)


def test_given_statistics_are_used_and_must_fit(folder: Path) -> None:
    first = open_film(settings(folder))
    own = FmriNormalization.load(only(folder) / STATS_FILE)
    given = folder / "given.npz"
    replace(own, mean=own.mean + own.std).save(given)  # as if all had been a deviation brighter
    other = open_film(settings(folder, fmri_stats_file=str(given)))
    np.testing.assert_allclose(other.subject_series, first.subject_series - 1, atol=1e-3)
    with pytest.raises(ValueError, match=r"fmri_stats_file=.*voxels"):
        open_film(settings(folder, fmri_stats_file=str(given), subjects=[2]))
    with pytest.raises(ValueError, match=r"data\.fmri_stats_file, or null"):
        open_film(settings(folder, fmri_stats_file=f"{given}x"))


def test_runs_of_one_subject_follow_each_other_and_have_their_own_level(folder: Path) -> None:
    for path in (folder / "sherlock_nii").iterdir():
        path.unlink()
    for number in (1, 2):
        run = brain(number)
        write_brain(folder, f"s{number}_run-1.nii.gz", run[..., :30])
        write_brain(folder, f"s{number}_run-2.nii.gz", run[..., 30:] * 2)
    film = open_film(settings(folder, train_split=0.85))
    assert film.subject_ids == ("s1", "s2")
    assert film.facts()["runs"] == [30, 30]
    for span in (slice(0, 30), slice(30, 51)):
        np.testing.assert_allclose(film.subject_series[:, span].mean(axis=1), 0, atol=1e-3)
        np.testing.assert_allclose(film.subject_series[:, span].std(axis=1), 1, atol=1e-3)


def test_ends_that_differ_a_little_are_cut_and_much_are_refused(folder: Path) -> None:
    write_brain(folder, "sherlock_movie_s2.nii.gz", brain(2, TRS + 4))
    np.savez(folder / "text_embeddings.npz", embeddings=np.random.default_rng(5).normal(size=(TRS - 2, 6)))
    film = open_film(settings(folder))
    assert film.num_trs == TRS - 2
    assert any("first 58 TRs" in note for note in film.facts()["notes"])
    with pytest.raises(ValueError, match=r"max_trim_trs=3 TRs: codes 60, text 58, .*s2 64"):
        open_film(settings(folder, max_trim_trs=3))
    write_film(folder / "stimuli_Sherlock.m4v", TRS + 20)
    with pytest.raises(ValueError, match="max_trim_trs=10 TRs"):
        open_film(settings(folder))
    assert open_film(settings(folder, max_trs=40)).num_trs == 40


def test_ten_trs_are_enough_for_a_film(folder: Path) -> None:
    film = open_film(settings(folder, max_trs=10, train_split=0.8, gap_trs=0))
    assert (len(film.train), len(film.val)) == (8, 2)
    assert np.isfinite(film.subject_series).all()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("audio_codes.npz", "run EnCodec over the film's sound"),
        ("text_embeddings.npz", "with a text model"),
        ("stimuli_Sherlock.m4v", "data.film_file"),
        ("sherlock_nii", "data.fmri_folder"),
    ],
)
def test_a_missing_part_is_named_with_its_remedy(folder: Path, name: str, remedy: str) -> None:
    (folder / name).rename(folder / "away")
    with pytest.raises(ValueError, match=rf"{name}.*{remedy}"):
        open_film(settings(folder))
    assert not (folder / "cache").exists()


def test_two_files_of_one_run_are_refused(folder: Path) -> None:
    write_brain(folder, "sherlock_movie_s2.nii", brain(2))
    with pytest.raises(ValueError, match="are one run of sherlock_movie_s2"):
        open_film(settings(folder))


def test_brains_on_other_grids_are_refused_by_name(folder: Path) -> None:
    write_brain(folder, "sherlock_movie_s2.nii.gz", brain(2), affine=np.diag([-3.0, 3, 3, 1]))
    with pytest.raises(ValueError, match=r"s2.nii.gz: wrong_dims: a grid of \[5, 6, 4\].*one space"):
        open_film(settings(folder))
    assert open_film(settings(folder, subjects=[1, 10])).subject_ids == ("sherlock_movie_s1", "sherlock_movie_s10")
    write_brain(folder, "sherlock_movie_s2.nii.gz", brain(2)[:4])
    with pytest.raises(ValueError, match=r"a grid of \[4, 6, 4\]"):
        open_film(settings(folder))
    write_brain(folder, "sherlock_movie_s2.nii.gz", np.where(brain(2) > 520, np.nan, brain(2)))
    with pytest.raises(ValueError, match=r"s2\.nii\.gz: not_finite"):
        open_film(settings(folder))


def test_a_real_run_goes_the_whole_way(folder: Path, test_data: Path) -> None:
    """Big-endian integers with a scale factor, 20 TRs of 2 s."""
    for path in (folder / "sherlock_nii").iterdir():
        path.unlink()
    (folder / "sherlock_nii" / "real_s1.nii").write_bytes((test_data / "mri" / "functional.nii").read_bytes())
    write_film(folder / "stimuli_Sherlock.m4v", 40)
    film = open_film(settings(folder, tr=2.0, gap_trs=2, max_trim_trs=40))
    assert (len(film.train), len(film.val)) == (12, 6)
    voxels = nib.load(test_data / "mri" / "functional.nii").get_fdata()
    stds = voxels[..., :12].std(axis=-1)
    series = voxels[stds > np.quantile(stds[stds > 0], 0.1)].T
    assert film.shape.voxels == series.shape[1]
    wanted = (series - series[:12].mean(axis=0)) / series[:12].std(axis=0)
    np.testing.assert_allclose(film.fmri, wanted, atol=2e-3)


def test_a_header_with_another_tr_is_told(folder: Path, caplog) -> None:
    write_brain(folder, "sherlock_movie_s2.nii.gz", brain(2), tr=2.0)
    film = open_film(settings(folder))
    assert any("a TR of 2 s; data.tr=1 is used" in note for note in film.facts()["notes"])
    assert "a TR of 2 s" in caplog.text


@pytest.mark.parametrize("package", ["av", "nilearn"])
def test_an_absent_package_is_one_readable_error(folder: Path, monkeypatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"pip install 'octfm\[neuro\]'"):
        open_film(settings(folder))


def test_a_folder_that_cannot_be_written_has_its_cache_elsewhere_or_one_that_is_there(folder: Path) -> None:
    first = open_film(settings(folder))
    (only(folder) / ".lock").unlink()
    (only(folder) / ".lock").mkdir()  # as a read-only folder: the lock cannot be opened, not even by root
    same(first, open_film(settings(folder)))
    shutil.rmtree(folder / "cache")
    (folder / "cache").write_text("a file in its place")
    with pytest.raises(ValueError, match=r"cannot be written .*set data\.cache_dir"):
        open_film(settings(folder))
    elsewhere = folder.parent / "elsewhere"
    same(first, open_film(settings(folder, cache_dir=str(elsewhere))))
    assert len(list(elsewhere.rglob(ARRAYS_FILE))) == 1


def test_sizes_that_do_not_fit_the_model_are_told_as_settings_to_paste(folder: Path) -> None:
    film = open_film(settings(folder))
    sizes = {"n_voxels": 7, "text_dim": 6, "audio_codebooks": 3, "audio_frames_per_tr": 5}
    model = AutoencoderSection(preset="tiny", **sizes)
    data = FilmSection(**{item.name: getattr(settings(folder), item.name) for item in fields(FilmDataSettings)})
    remedy = f"set model.audio_frames_per_tr=4 model.n_voxels={film.shape.voxels}"
    with pytest.raises(ConfigError, match=re.escape(remedy)):
        opened(AutoencoderRunConfig(name="own", data=data, model=model))


def test_a_blank_run_is_named(folder: Path) -> None:
    write_brain(folder, "sherlock_movie_s2.nii.gz", np.zeros_like(brain(2)))
    with pytest.raises(ValueError, match=r"sherlock_movie_s2\.nii\.gz: no voxel .* is the run blank"):
        open_film(settings(folder))


@pytest.mark.slow
def test_processes_that_open_at_once_derive_once(folder: Path) -> None:
    code = f"""
import logging
from data_setup.neuro.film_data import open_film
from data_setup.neuro.film_settings import FilmDataSettings, FilmPhantomSettings
logging.basicConfig(level="INFO")
print(open_film({settings(folder)!r}).fingerprint())
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[3]}
    processes = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    told = [process.communicate(timeout=120) for process in processes]
    assert all(process.returncode == 0 for process in processes), told
    assert sum("holds the derived arrays" in errors for _, errors in told) == 1
    assert {prints.strip() for prints, _ in told} == {open_film(settings(folder)).fingerprint()}


def test_settings_of_a_folder_are_kept_apart_from_a_phantoms(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.path"):
        FilmDataSettings(path=str(folder))
    with pytest.raises(ValueError, match=r"data\.path"):
        FilmDataSettings(source="folder")
    with pytest.raises(ValueError, match=r"data\.subjects names 3; there are: sherlock_movie_s1"):
        open_film(replace(settings(folder), subjects=3))
