"""Brain volumes of any size -> cubes: resampled without aliasing, centred, padded with their own background."""

from collections.abc import Sequence

import numpy as np

from data_setup.resample import triangle_weights


def resampled(volume: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """float32 [X, Y, Z] -> float32 `shape`, linear along each axis with a filter that widens where it shrinks."""
    for axis, length in enumerate(shape):
        if volume.shape[axis] != length:
            weights = triangle_weights(volume.shape[axis], length)
            volume = np.moveaxis(np.tensordot(weights, volume, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(volume, np.float32)


def centred(volume: np.ndarray, shape: Sequence[int], background: float) -> np.ndarray:
    """[X, Y, Z, ...] cut or padded about its middle to `shape` on the first axes; an odd voxel is added at the end."""
    out = np.full((*shape, *volume.shape[len(shape) :]), background, volume.dtype)
    source, target = [], []
    for old, new in zip(volume.shape, shape, strict=False):
        shared = min(old, new)
        source.append(slice((old - shared) // 2, (old - shared) // 2 + shared))
        target.append(slice((new - shared) // 2, (new - shared) // 2 + shared))
    out[tuple(target)] = volume[tuple(source)]
    return out


def border_value(volume: np.ndarray) -> float:
    """The median along the twelve edges of [X, Y, Z]: air, in a scan of a head. Faces of a few thick slices are not."""
    ends = ([0, -1], [0, -1])
    edges = [volume[np.ix_(*ends)], volume.transpose(1, 2, 0)[np.ix_(*ends)], volume.transpose(2, 0, 1)[np.ix_(*ends)]]
    return float(np.median(np.concatenate([edge.ravel() for edge in edges])))


def to_cube(volume: np.ndarray, spacing_mm: Sequence[float], size: int, target_mm: float | None) -> np.ndarray:
    """float32 [X, Y, Z] -> float32 [size, size, size] with cubic voxels of `target_mm`.

    None: as large as lets the longest side fill the cube, so that nothing is cut and proportions are kept.
    """
    lengths = [count * step for count, step in zip(volume.shape, spacing_mm, strict=True)]
    step_mm = target_mm or max(lengths) / size
    shape = [max(1, round(length / step_mm)) for length in lengths]
    return centred(resampled(volume, shape), (size,) * 3, border_value(volume))


def z_scored(cube: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1 over all voxels; the input must not be constant."""
    wide = cube.astype(np.float64)
    return ((wide - wide.mean()) / wide.std()).astype(np.float32)
