"""Cirrus cubes without a header: the axes by hand, the facts from names."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_setup.errors import BadFile, Reason
from data_setup.formats.zeiss import read_zeiss_img
from data_setup.volume import ReadOptions

STRICT = ReadOptions()


def refused(path: Path, options: ReadOptions = STRICT) -> Reason:
    with pytest.raises(BadFile) as caught:
        read_zeiss_img(path, options)
    assert "P123" not in f"{caught.value} {caught.value.detail}"
    return caught.value.reason


@pytest.fixture(scope="module")
def cube() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (128, 1024, 512), dtype=np.uint8)


def test_cirrus_cube_is_turned_upright(cube: np.ndarray, save: Callable) -> None:
    path = save("P123_Macular Cube 512x128_1-31-2000_9-30-15_OS_sn12_cube_z.img", cube.tobytes())
    [(volume, patient)] = read_zeiss_img(path, STRICT)
    assert (volume.voxels.shape, volume.voxels.dtype) == ((128, 1024, 512), np.uint8)
    for frame, row, column in ((0, 0, 0), (7, 3, 500), (127, 1023, 511)):
        assert volume.voxels[frame, row, column] == cube[frame, 1023 - row, 511 - column]
    assert (volume.laterality, volume.vendor, patient) == ("L", "Carl Zeiss Meditec", "P123")
    assert (volume.spacing_mm, volume.volumetric) == ((None, None, None), None)
    assert refused(path, ReadOptions(max_bytes=1 << 20)) is Reason.TOO_LARGE


@pytest.mark.parametrize(
    ("name", "side", "patient"),
    [
        ("x_OD.img", "R", None),
        ("MODEL.img", None, None),
        ("a_OD_OS.img", None, None),
        ("scan.img", None, None),
        ("77_Optic Disc Cube 200x200_1-1-2000_1-1-1_OD_sn9_cube_raw.img", "R", "77"),
    ],
)
def test_cirrus_names(save: Callable, name: str, side: str | None, patient: str | None) -> None:
    noise = np.random.default_rng(2).integers(0, 256, 200 * 1024 * 200, dtype=np.uint8)
    [(volume, found)] = read_zeiss_img(save(name, noise.tobytes()), STRICT)
    assert (volume.voxels.shape, volume.laterality, found) == ((200, 1024, 200), side, patient)


def test_cirrus_other_sizes_are_refused(save: Callable) -> None:
    assert refused(save("a.img", b"x" * 1000)) is Reason.SHAPE_MISMATCH
    assert refused(save("a.img", b"")) is Reason.EMPTY_FILE
    assert refused(save("a.img", bytes(200 * 1024 * 200))) is Reason.CONSTANT_IMAGE
