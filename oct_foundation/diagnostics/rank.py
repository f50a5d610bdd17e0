"""How many directions features use: RankMe (arXiv 2210.02885) and LiDAR (arXiv 2312.04000), in float64.

Both are blind to scale: a dead encoder's last noise may fill as many directions as a live one's content, so that
neither enters a verdict. They see what scale does not: features that live in a few directions only.
"""

import math

import torch
from torch import Tensor

# Sets LiDAR's absolute scale, so that its values compare between runs only while it stays what it is.
LIDAR_DELTA = 1e-4
# Features that vary by less than float32 resolves, relative to their size, are one vector.
_RESOLUTION = 1e-7


def entropy_rank(weights: Tensor) -> float:
    """exp(-sum q log q) with q = weights / sum: 1 (one direction) to n (n equal ones), 0.0 where all weights are 0.

    weights: float64 [n]; below 0 by rounding only.
    """
    weights = weights.clamp_min(0)
    total = weights.sum()
    if total == 0:
        return 0.0
    share = weights / total
    return math.exp(-torch.special.xlogy(share, share).sum().item())


def rankme(features: Tensor) -> float:
    """Entropy rank of the singular values of centred features [R, E], R >= 2: 1 to min(R - 1, E).

    0.0 where all rows are one vector, nan where a value is not finite. Unchanged by scale, shift and rotation.
    16,384 tokens of width 384 take 0.6 s of one core.
    """
    features = features.double()
    if not torch.isfinite(features).all():
        return math.nan
    centred = features - features.mean(0)
    if centred.norm() <= _RESOLUTION * features.norm():
        return 0.0
    return entropy_rank(torch.linalg.svdvals(centred))


def lidar(views: Tensor) -> float:
    """Entropy rank of what tells volumes apart, measured in units of what masking moves: views [Mv, q, E], Mv, q >= 2.

    Sb = covariance of the volumes' means, Sw = mean covariance of the views within a volume + 1e-4 I; the eigenvalues
    of Sw^-1/2 Sb Sw^-1/2 enter the entropy. Needs Mv (q - 1) > E, else Sw has no full rank and 1e-4 decides. 0.0 where
    volumes cannot be told apart, nan where a value is not finite.
    """
    views = views.double()
    if not torch.isfinite(views).all():
        return math.nan
    means = views.mean(1)
    between = means - means.mean(0)
    within = (views - means[:, None]).flatten(0, 1)
    if between.norm() <= _RESOLUTION * means.norm():
        return 0.0
    scatter_between = between.T @ between / len(between)
    scatter_within = within.T @ within / len(within)
    # With Sw = C C^T, C^-1 Sb C^-T has the same eigenvalues as Sw^-1/2 Sb Sw^-1/2.
    factor = torch.linalg.cholesky(scatter_within + LIDAR_DELTA * torch.eye(views.shape[-1], dtype=views.dtype))
    half = torch.linalg.solve_triangular(factor, scatter_between, upper=False)
    return entropy_rank(torch.linalg.eigvalsh(torch.linalg.solve_triangular(factor, half.T, upper=False)))
