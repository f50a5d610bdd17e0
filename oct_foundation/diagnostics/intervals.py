"""Scores of resampled patients -> an interval: how much of a score, or of a difference of two, is luck of the sample.

Patients are drawn, not volumes: both eyes of a person are one piece of evidence. The trained probes stay as they are,
so an interval speaks of new patients, not of another training set.
"""

from typing import NamedTuple

import numpy as np

_PERCENT = (2.5, 97.5)


class Interval(NamedTuple):
    """A value and its 95 % bootstrap interval (percentiles); NaN bounds where no resample could be scored."""

    value: float
    low: float
    high: float


def patient_weights(groups: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """How often each volume counts: float64 [1 + resamples, M]. Row 0 is the sample itself; in every other row as
    many patients as there are were drawn with replacement, each with all their volumes.
    """
    patients, patient_of = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), size=resamples)
    return np.vstack([np.ones(len(groups)), drawn[:, patient_of]])


def interval(scores: np.ndarray) -> Interval:
    """Of a score per row of `patient_weights`, float [1 + resamples]; resamples that lack a class are left out."""
    resampled = scores[1:][~np.isnan(scores[1:])]
    if not len(resampled):
        return Interval(float(scores[0]), float("nan"), float("nan"))
    low, high = np.percentile(resampled, _PERCENT)
    return Interval(float(scores[0]), float(low), float(high))
