"""Features of raw voxels against numpy and scikit-learn on whole volumes."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA

from oct_foundation.diagnostics import voxel_controls as module
from oct_foundation.diagnostics.voxel_controls import voxel_controls, voxel_coordinates
from oct_foundation.geometry import PatchGrid

GRID = PatchGrid(image_size=(4, 8, 8), patch_size=(2, 4, 4))
VOLUMES = np.random.default_rng(0).integers(0, 256, (10, 4, 8, 8), dtype=np.uint8)
ROWS = [7, 2, 5, 0, 9, 3]


def test_coordinates_keep_every_distance_so_that_a_pca_is_the_same():
    found = voxel_coordinates(VOLUMES, ROWS, GRID)
    flat = VOLUMES[ROWS].reshape(len(ROWS), -1).astype(float)
    np.testing.assert_allclose(pdist(found), pdist(flat), rtol=1e-4)
    part = [0, 2, 3, 5]
    ours, theirs = (PCA(2).fit(rows[part]).transform(rows) for rows in (found, flat))
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=1e-3, atol=1e-2)


def test_equal_volumes_have_no_direction_of_their_own():
    volumes = VOLUMES.copy()
    volumes[2:6] = volumes[7]
    assert voxel_coordinates(volumes, range(10), GRID).any(axis=0).sum() == 10 - 4 - 1


def test_reading_by_groups_of_b_scans_changes_nothing(monkeypatch):
    whole = voxel_coordinates(VOLUMES, ROWS, GRID)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1)
    np.testing.assert_allclose(pdist(voxel_coordinates(VOLUMES, ROWS, GRID)), pdist(whole), rtol=1e-5)


def test_patch_means_are_in_token_order_and_intensity_is_of_the_volume():
    controls = voxel_controls(VOLUMES, ROWS, GRID, num_components=3)
    means = controls["patch_means"].pooled
    for token, (d, h, w) in enumerate(GRID.coordinates()):
        patch = VOLUMES[ROWS[1], 2 * d : 2 * d + 2, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4]
        assert means[1, token] == pytest.approx(patch.mean())
    np.testing.assert_allclose(controls["intensity"].pooled[0], [VOLUMES[7].mean(), VOLUMES[7].std()])
    assert controls["pca"].num_components == 3
