"""Several subjects who saw the same film -> the best score that any model of the film could reach.

What subjects do not share no film can tell: a correlation of .3 is poor below a ceiling of .9, and all there is below
one of .3. Nastase 2019 (PMC6688448); Lage-Castellanos 2019.
"""

import math
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Literal

import numpy as np

_MOST_HALVES = 100
_SLICE = 8192
_CONSTANT = 1e-6
# Voxels that agree alike share an estimate of their best r; a group of a few voxels would be noise.
_MOST_GROUPS, _LEAST_IN_GROUP = 20, 8


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """pairwise: mean correlation over time of two subjects, c. reliability: q, the share of the target's variance that
    subjects share. best_r: of a perfect model, over time; best_fvu: 1 - q. leave_one_out: mean correlation of a subject
    with the mean of the others. split_half: reliability of the mean of all out of two halves (Spearman-Brown). All are
    means over voxels; voxels constant in a subject are left out.
    """

    num_subjects: int
    num_trs: int
    num_voxels: int
    pairwise: float
    reliability: float
    best_r: float
    best_fvu: float
    leave_one_out: float
    split_half: float


def noise_ceiling(
    subjects: np.ndarray,
    target: Literal["mean", "subject"] = "mean",
    seed: int = 0,
    agreed_elsewhere: np.ndarray | None = None,
) -> tuple[Ceiling | None, str]:
    """The ceiling of a model that predicts the mean of all subjects, or each one; and a sentence that says it.

    subjects: float [N, T, V], each as it enters the mean. None for one subject: nothing says then what is noise.
    For the mean q = N c / (1 + (N - 1) c), for one subject q = c; 0 where c is below 0. A voxel's best r is sqrt(q).
    agreed_elsewhere: `agreement` on other TRs, float [V], by which voxels are grouped: the mean of sqrt(q) is far below
    sqrt(q) of the mean where few voxels follow the film (.15 against .40 where a fifth does, three subjects, c .3).
    None: all are taken to agree alike, which is an upper bound. Raises ValueError.
    """
    if subjects.ndim != 3 or 0 in subjects.shape or subjects.shape[1] < 3:
        raise ValueError(f"subjects must be [subjects, TRs, voxels] with 3 TRs or more; found {list(subjects.shape)}")
    num_subjects, num_trs, num_voxels = subjects.shape
    if num_subjects == 1:
        return None, "No noise ceiling: one subject cannot tell signal from noise; keep the series of two or more."
    halves = _halves(num_subjects, seed)
    agreed, sums = np.full(num_voxels, np.nan), np.zeros(2)
    for start in range(0, num_voxels, _SLICE):
        part = subjects[:, :, start : start + _SLICE].astype(np.float64)
        varies = _varies(part)
        agreed[start : start + _SLICE][varies] = _pairwise(part[:, :, varies])
        sums += [_leave_one_out(part[:, :, varies]), _split_half(part[:, :, varies], halves)]
    seen = np.flatnonzero(np.isfinite(agreed))
    if not len(seen):
        return None, f"No noise ceiling: all {num_voxels} voxels are constant in one subject or another."
    order = seen if agreed_elsewhere is None else seen[np.argsort(agreed_elsewhere[seen], kind="stable")]
    num_groups = 1 if agreed_elsewhere is None else int(np.clip(len(seen) // _LEAST_IN_GROUP, 1, _MOST_GROUPS))
    groups = [agreed[group] for group in np.array_split(order, num_groups)]
    averaged = num_subjects if target == "mean" else 1
    pairwise, (leave_one_out, half) = float(agreed[seen].mean()), (sums / len(seen)).tolist()
    q = _reliability(max(pairwise, 0.0), averaged)
    ceiling = Ceiling(
        num_subjects=num_subjects,
        num_trs=num_trs,
        num_voxels=len(seen),
        pairwise=pairwise,
        reliability=q,
        best_r=max(sum(len(group) * _best_r(group.mean(), averaged) for group in groups) / len(seen), 0.0),
        best_fvu=1 - q,
        leave_one_out=leave_one_out,
        split_half=2 * half / (1 + half),
    )
    return ceiling, (
        f"Noise ceiling of {num_subjects} subjects (mean pairwise correlation {pairwise:.3f}): at best r(time) "
        f"{ceiling.best_r:.3f} and FVU {ceiling.best_fvu:.3f}."
    )


def agreement(subjects: np.ndarray) -> np.ndarray:
    """Mean correlation over time of two subjects in each voxel: float [N, T, V], N of 2 or more -> [V], 0 for a voxel
    constant in one of them.
    """
    found = np.zeros(subjects.shape[2])
    for start in range(0, len(found), _SLICE):
        part = subjects[:, :, start : start + _SLICE].astype(np.float64)
        varies = _varies(part)
        found[start : start + _SLICE][varies] = _pairwise(part[:, :, varies])
    return found


def _reliability(agreed: float, averaged: int) -> float:
    """Of the mean of so many subjects (Spearman-Brown)."""
    return averaged * agreed / (1 + (averaged - 1) * agreed)


def _best_r(agreed: float, averaged: int) -> float:
    """sqrt(q), odd in c: were c below 0 cut to 0, voxels that share nothing would have a best r above it by chance."""
    return math.copysign(_reliability(abs(agreed), averaged) ** 0.5, agreed)


def _varies(part: np.ndarray) -> np.ndarray:
    """Bool [V]: voxels that are constant in no subject."""
    return (part.std(axis=1) > _CONSTANT * (np.abs(part.mean(axis=1)) + _CONSTANT)).all(axis=0)


def _pairwise(part: np.ndarray) -> np.ndarray:
    """Mean correlation over all pairs of subjects, float [V]: the pairs are in the square of the sum."""
    num_subjects = len(part)
    total = _standardised(part).sum(axis=0)
    return ((total**2).mean(axis=0) - num_subjects) / (num_subjects * (num_subjects - 1))


def _leave_one_out(part: np.ndarray) -> float:
    """Correlation of each with the mean of the others, mean over subjects, summed over voxels."""
    total = part.sum(axis=0)
    return float(sum(_correlation(one, total - one).sum() for one in part) / len(part))


def _split_half(part: np.ndarray, halves: list[tuple[int, ...]]) -> float:
    """Correlation of the sums of two halves, mean over splits, summed over voxels."""
    total = part.sum(axis=0)
    sums = (part[list(half)].sum(axis=0) for half in halves)
    return float(sum(_correlation(half, total - half).sum() for half in sums) / len(halves))


def _halves(num_subjects: int, seed: int) -> list[tuple[int, ...]]:
    """The first halves of all splits, or of 100 random ones; of an odd number the half is the smaller part."""
    half = num_subjects // 2
    if comb(num_subjects, half) <= _MOST_HALVES:
        return list(combinations(range(num_subjects), half))
    rng = np.random.default_rng(seed)
    return [tuple(rng.permutation(num_subjects)[:half].tolist()) for _ in range(_MOST_HALVES)]


def _correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Over time, per voxel: [T, V] twice -> [V]."""
    return (_standardised(one[None])[0] * _standardised(other[None])[0]).mean(axis=0)


def _standardised(part: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1 over the second axis; what is constant there becomes 0."""
    centred = part - part.mean(axis=1, keepdims=True)
    deviation = centred.std(axis=1, keepdims=True)
    return np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0)
