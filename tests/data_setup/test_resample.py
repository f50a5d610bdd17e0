"""The resize against its laws and a slow loop; the 8-bit scale against hand values."""

import numpy as np
import pytest

from data_setup.resample import crop, resize, to_uint8, triangle_weights


def slow_resize_axis(volume: np.ndarray, new: int, axis: int) -> np.ndarray:
    """float64 triangle filter along one axis, voxel by voxel, nothing rounded."""
    moved = np.moveaxis(volume, axis, 0).astype(np.float64)
    size, step = len(moved), len(moved) / new
    out = np.zeros((new, *moved.shape[1:]))
    for target in range(new):
        centre, total = (target + 0.5) * step - 0.5, 0.0
        for source in range(size):
            weight = max(0.0, 1 - abs(source - centre) / max(step, 1.0))
            out[target] += weight * moved[source]
            total += weight
        out[target] /= total
    return np.moveaxis(out, 0, axis)


@pytest.mark.parametrize("shape", [(4, 8, 8), (9, 33, 17), (40, 12, 50)])
def test_resize_equals_a_slow_loop_within_rounding(shape: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(0).integers(0, 256, (9, 24, 30), dtype=np.uint8)
    slow = volume.astype(np.float64)
    for axis in (2, 1, 0):
        slow = slow_resize_axis(slow, shape[axis], axis)
    difference = np.abs(resize(volume, shape) - slow)
    assert difference.max() <= 1.6  # three axes, each rounded by at most half a grey value
    assert difference.mean() < 0.5


def test_the_same_size_is_the_same_volume() -> None:
    volume = np.random.default_rng(1).integers(0, 256, (40, 16, 24), dtype=np.uint8)
    np.testing.assert_array_equal(resize(volume, volume.shape), volume)


@pytest.mark.parametrize("shape", [(3, 5, 7), (64, 40, 60)])
def test_a_constant_stays_constant(shape: tuple[int, int, int]) -> None:
    assert np.unique(resize(np.full((33, 20, 30), 137, np.uint8), shape)).tolist() == [137]


def test_shrinking_keeps_the_mean() -> None:
    volume = np.random.default_rng(2).integers(0, 256, (64, 96, 96), dtype=np.uint8)
    assert resize(volume, (16, 24, 24)).mean() == pytest.approx(volume.mean(), abs=0.5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_finest_stripes_turn_grey_instead_of_aliasing(axis: int) -> None:
    stripes = np.where(np.arange(60) % 2, 255, 0).astype(np.uint8)
    volume = np.moveaxis(np.broadcast_to(stripes[:, None, None], (60, 60, 60)), 0, axis)
    shape = [60, 60, 60]
    shape[axis] = 20
    shrunk = resize(np.ascontiguousarray(volume), tuple(shape))  # type: ignore[arg-type]
    assert np.abs(shrunk.astype(int) - 127).max() <= 30  # without the widened filter it spans 0 to 255


def test_weights_sum_to_one_and_cover_every_bscan() -> None:
    for size, new in ((27, 64), (97, 64), (5, 5), (1, 4), (512, 3)):
        weights = triangle_weights(size, new)
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
        assert (weights.sum(axis=0) > 0).all()


@pytest.mark.parametrize(
    ("dtype", "bits", "stored", "grey"),
    [
        (np.uint16, 12, [0, 2047, 2048, 4095, 5000], [0, 127, 128, 255, 255]),
        (np.uint16, 16, [0, 32768, 65535], [0, 128, 255]),
        (np.uint8, 8, [0, 1, 254, 255], [0, 1, 254, 255]),
        (np.uint8, 4, [0, 1, 15], [0, 17, 255]),
        (np.int16, 12, [-2048, 0, 2047], [0, 128, 255]),
    ],
)
def test_grey_is_scaled_by_the_bits_stored(dtype: type, bits: int, stored: list[int], grey: list[int]) -> None:
    voxels = np.array(stored, dtype=dtype).reshape(1, 1, -1)
    assert to_uint8(voxels, bits).ravel().tolist() == grey


def test_a_crop_keeps_the_middle_across_and_the_retina_in_depth() -> None:
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 20, (6, 100, 40), dtype=np.uint8)
    volume[:, 70:76] += 200  # a bright layer far below the middle
    cut = crop(volume, (4, 32, 20))
    np.testing.assert_array_equal(cut, volume[1:5, 57:89, 10:30])


def test_a_crop_of_something_smaller_puts_zeros_around_it() -> None:
    volume = np.full((2, 5, 3), 9, np.uint8)
    cut = crop(volume, (4, 5, 8))
    assert cut.shape == (4, 5, 8)
    np.testing.assert_array_equal(cut[1:3, :, 2:5], volume)
    assert cut.sum() == volume.sum()


@pytest.mark.parametrize("row", [0, 99])
def test_a_crop_never_leaves_the_scan(row: int) -> None:
    volume = np.zeros((1, 100, 8), np.uint8)
    volume[:, row] = 255
    cut = crop(volume, (1, 32, 8))
    assert cut.max() == 255
    np.testing.assert_array_equal(cut, volume[:, :32] if row == 0 else volume[:, 68:])
