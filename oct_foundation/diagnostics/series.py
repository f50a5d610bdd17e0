"""What an evaluation keeps of held-out TRs, TR by TR: a mean of losses cannot tell learning from luck, these can."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Series:
    """n held-out TRs of V voxels (or any continuous features), in time order.

    truth, prediction: float [n, V]. mean: of the training TRs, float [V], or [n, V] where folds have their own.
    variance: of the training TRs about it, mean over voxels, fixed for the run. baselines: what naive predictors say of
    the same TRs, [n, V] each; the strongest is the bar. beside: those shown but no bar, as they see what the model does
    not, such as the truth's past. runs: int [n], which recording a TR is of. complete: all validation TRs of all ranks
    are here. leak_free: mean, variance and normalisation have seen no validation TR. Raises ValueError.
    """

    truth: np.ndarray
    prediction: np.ndarray
    mean: np.ndarray
    variance: float
    baselines: Mapping[str, np.ndarray] = field(default_factory=dict)
    beside: Mapping[str, np.ndarray] = field(default_factory=dict)
    runs: np.ndarray | None = None
    complete: bool = False
    leak_free: bool = False

    def __post_init__(self) -> None:
        if self.truth.ndim != 2 or 0 in self.truth.shape:
            raise ValueError(f"truth must be [TRs, voxels], none of them 0; found {list(self.truth.shape)}")
        alike = {"prediction": self.prediction, **self.baselines, **self.beside}
        for name, values in alike.items():
            if values.shape != self.truth.shape:
                raise ValueError(f"{name} must be {list(self.truth.shape)} as truth is; found {list(values.shape)}")
        if self.mean.shape not in (self.truth.shape, self.truth.shape[1:]):
            raise ValueError(f"mean must be [{self.truth.shape[1]}], one per voxel; found {list(self.mean.shape)}")
        if self.runs is not None and self.runs.shape != self.truth.shape[:1]:
            raise ValueError(f"runs must be [{len(self.truth)}], one per TR; found {list(self.runs.shape)}")
        if not 0 < self.variance < np.inf:
            raise ValueError(f"variance must be a number above 0; found {self.variance}")
        known = {"truth": self.truth, "mean": self.mean, **self.baselines, **self.beside}
        for name, values in known.items():
            if not np.isfinite(values).all():
                raise ValueError(f"{name} must hold numbers; found NaN or Inf: leave such TRs or voxels out")


@dataclass(frozen=True, kw_only=True)
class CategoricalSeries:
    """n held-out TRs of codes, in time order: what a TR's codes cost on average, in nats.

    cross_entropy: of the model; unigram: of the training frequencies of each codebook; baselines: of other naive
    predictors; float [n] each. runs, complete, leak_free: as in Series. Raises ValueError.
    """

    cross_entropy: np.ndarray
    unigram: np.ndarray
    baselines: Mapping[str, np.ndarray] = field(default_factory=dict)
    runs: np.ndarray | None = None
    complete: bool = False
    leak_free: bool = False

    def __post_init__(self) -> None:
        for name, values in {"cross_entropy": self.cross_entropy, "unigram": self.unigram, **self.baselines}.items():
            if values.ndim != 1 or values.shape != self.unigram.shape or not len(values):
                raise ValueError(f"{name} must be [TRs], as long as unigram; found {list(values.shape)}")
        if not (np.isfinite(self.unigram).all() and self.unigram.mean() > 0):
            raise ValueError("unigram must hold numbers with a mean above 0: smooth frequencies that are 0")
