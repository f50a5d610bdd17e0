"""Volumes -> features that need no network: what a probe reads off raw voxels, an encoder has to beat.

`pca`: principal components of all voxels; `patch_means`: the mean of each patch; `intensity`: mean and deviation of the
volume. On phantoms the patch means are the hardest to beat (side of the eye: AUROC .98 where a random encoder has .5).
Where patches are judged one by one, the same is read off the voxels of a patch.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from oct_foundation.diagnostics.out_of_fold import Contestant
from oct_foundation.geometry import PatchGrid

_CHUNK_BYTES = 1 << 29  # of float32 voxels that are held at once
_ROUNDING = 1e-6  # of inner products that are sums in float32; 6e-8 of the largest was seen


class Volumes(Protocol):
    """Volumes of one shape, read from disk when asked for."""

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 [D, H, W]."""
        ...


def voxel_controls(
    volumes: Volumes, rows: Sequence[int], grid: PatchGrid, num_components: int
) -> dict[str, Contestant]:
    """The three controls for the volumes at positions `rows` [M]; num_components: as many as the encoder is wide."""
    stacked = [_summary(volumes[row], grid) for row in rows]
    return {
        "pca": Contestant(pooled=voxel_coordinates(volumes, rows, grid), num_components=num_components),
        "patch_means": Contestant(pooled=np.stack([means for means, _ in stacked])),
        "intensity": Contestant(pooled=np.stack([intensity for _, intensity in stacked])),
    }


def patch_controls(
    volumes: Volumes, positions: np.ndarray, grid: PatchGrid, num_components: int
) -> dict[str, Contestant]:
    """The controls of single patches: those at `positions` (int64 [M, n], in token order) of each of M volumes.

    `pca`: principal components of a patch's voxels; `intensity`: their mean and deviation. Rows [M * n], by volume.
    """
    patches = np.concatenate([_patches(volumes[row], grid)[chosen] for row, chosen in enumerate(positions)])
    voxels = patches.astype(np.float32)
    return {
        "pca": Contestant(pooled=voxels, num_components=num_components),
        "intensity": Contestant(pooled=np.stack([voxels.mean(axis=1), voxels.std(axis=1)], axis=1)),
    }


def _patches(volume: np.ndarray, grid: PatchGrid) -> np.ndarray:
    """uint8 [N, voxels of a patch] in token order."""
    (d, h, w), (pd, ph, pw) = grid.grid, grid.patch_size
    return volume.reshape(d, pd, h, ph, w, pw).transpose(0, 2, 4, 1, 3, 5).reshape(grid.num_patches, -1)


def _summary(volume: np.ndarray, grid: PatchGrid) -> tuple[np.ndarray, np.ndarray]:
    """Patch means, float [N], in token order; mean and deviation of the volume, float [2]."""
    (d, h, w), (pd, ph, pw) = grid.grid, grid.patch_size
    means = volume.reshape(d, pd, h, ph, w, pw).mean(axis=(1, 3, 5)).ravel()
    return means, np.array([volume.mean(), volume.std()])


def voxel_coordinates(volumes: Volumes, rows: Sequence[int], grid: PatchGrid) -> np.ndarray:
    """The centred volumes in a basis of the space that they span, float64 [M, M]: distances stay as they are.

    M volumes of millions of voxels lie in M - 1 dimensions, so that a PCA of any part of them is the same here and
    costs next to nothing. From the eigenvectors of the inner products, which are summed over groups of B-scans.
    """
    depth, height, width = grid.image_size
    step = max(1, _CHUNK_BYTES // (4 * len(rows) * height * width))
    products = np.zeros((len(rows), len(rows)))
    for start in range(0, depth, step):
        part = np.stack([volumes[row][start : start + step].astype(np.float32).ravel() for row in rows])
        part -= part.mean(axis=0)
        products += part @ part.T
    values, vectors = np.linalg.eigh(products)
    values[values < _ROUNDING * values.max()] = 0  # the mean's direction, and those of equal volumes
    return (vectors * np.sqrt(values))[:, ::-1]
