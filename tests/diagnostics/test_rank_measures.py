"""RankMe and LiDAR against numpy on the definitions, and against laws: known ranks, scale, rotation, order."""

import math

import numpy as np
import pytest
import torch

from oct_foundation.diagnostics.rank import LIDAR_DELTA, entropy_rank, lidar, rankme


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(width, seed=0):
    return torch.linalg.qr(normal(width, width, seed=seed).double())[0]


def rankme_by_svd(features):
    """The definition of arXiv 2210.02885 on centred features."""
    centred = features.double().numpy() - features.double().numpy().mean(0)
    singular = np.linalg.svd(centred, compute_uv=False)
    share = singular / singular.sum()
    return math.exp(-sum(q * math.log(q) for q in share if q > 0))


def lidar_by_loops(views):
    """The definition of arXiv 2312.04000 with an explicit inverse square root."""
    views = views.double().numpy()
    num_volumes, num_views, width = views.shape
    means = views.mean(1)
    between, within = np.zeros((width, width)), np.zeros((width, width))
    for volume in range(num_volumes):
        difference = means[volume] - means.mean(0)
        between += np.outer(difference, difference) / num_volumes
        for view in range(num_views):
            difference = views[volume, view] - means[volume]
            within += np.outer(difference, difference) / (num_volumes * num_views)
    values, vectors = np.linalg.eigh(within + LIDAR_DELTA * np.eye(width))
    inverse_root = vectors @ np.diag(values**-0.5) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(inverse_root @ between @ inverse_root)
    share = eigenvalues / eigenvalues.sum()
    return math.exp(-sum(q * math.log(q) for q in share if q > 0))


@pytest.mark.parametrize(
    ("weights", "expected"), [([3.0, 3.0, 3.0, 3.0], 4), ([5.0, 0.0, 0.0], 1), ([2.0, 2.0, 0.0], 2), ([0.0, 0.0], 0)]
)
def test_entropy_rank_counts_equal_directions(weights, expected):
    assert entropy_rank(torch.tensor(weights, dtype=torch.float64)) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (16, 16)])
def test_rankme_equals_its_definition_for_tall_wide_and_square_features(shape):
    features = normal(*shape) @ torch.diag(torch.logspace(0, -3, shape[1])) + 5
    assert rankme(features) == pytest.approx(rankme_by_svd(features), rel=1e-8)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_rankme_of_features_in_a_subspace_is_at_most_its_dimension(rank):
    features = normal(200, rank).double() @ rotation(24)[:rank]
    assert rankme(features) <= rank + 1e-6
    assert rankme(features) > 0.9 * rank


def test_rankme_sees_neither_scale_nor_shift_nor_rotation_nor_order():
    features = normal(50, 12).double() @ torch.diag(torch.logspace(0, -2, 12).double())
    expected = rankme(features)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    for changed in (1e-3 * features, features + 7, features @ rotation(12, seed=2), features[order]):
        assert rankme(changed) == pytest.approx(expected, rel=1e-6)


def test_lidar_equals_its_definition():
    content = normal(60, 1, 10) @ torch.diag(torch.logspace(0, -2, 10))
    views = content + 0.05 * normal(60, 4, 10, seed=1)
    assert lidar(views) == pytest.approx(lidar_by_loops(views), rel=1e-8)


def test_lidar_counts_the_directions_that_masking_leaves_alone():
    """Three directions tell volumes apart far beyond what masking moves; the other seven are noise of masking."""
    content = torch.zeros(400, 1, 10)
    content[..., :3] = normal(400, 1, 3)
    views = content + 0.02 * normal(400, 4, 10, seed=1)
    assert 2.8 < lidar(views) < 3.2
    assert lidar(normal(400, 4, 10)) > 9


def test_lidar_sees_neither_rotation_nor_order():
    views = normal(60, 1, 10).double() + 0.3 * normal(60, 4, 10, seed=1).double()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    for changed in (views @ rotation(10), views[order], views[:, [2, 0, 3, 1]], views + 4):
        assert lidar(changed) == pytest.approx(lidar(views), rel=1e-8)


def test_lidar_judges_by_an_absolute_scale():
    """Far below its 1e-4 what masking moves counts as nothing: the same features, shrunk, score otherwise."""
    moved_by_masking = 0.3 * normal(200, 4, 10, seed=1) @ torch.diag(torch.logspace(0, -1.5, 10))
    views = normal(200, 1, 10) + moved_by_masking
    assert lidar(1e-3 * views) == pytest.approx(lidar_by_loops(1e-3 * views), rel=1e-6)
    assert abs(lidar(1e-3 * views) - lidar(views)) > 0.5


def test_features_that_are_one_vector_have_rank_0():
    one_vector = normal(1, 6).repeat(30, 1)
    rounded = one_vector.double() * (1 + 1e-9 * normal(30, 6, seed=1).double())
    assert rankme(one_vector) == rankme(rounded) == 0.0
    assert rankme(torch.zeros(30, 6)) == 0.0
    assert lidar(one_vector.reshape(10, 3, 6)) == lidar(rounded.reshape(10, 3, 6)) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_give_nan_instead_of_an_error(bad):
    features = normal(12, 4)
    features[3, 2] = bad
    assert math.isnan(rankme(features))
    assert math.isnan(lidar(features.reshape(4, 3, 4)))
