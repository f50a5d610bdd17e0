"""Out-of-fold predictions + a weight per volume -> R2, MAE, AUROC, balanced accuracy.

Each score takes weights [R, M] and gives [R] values at once: a bootstrap of 1,000 resamples is one call instead of
1,000. With weights of one the values are those of scikit-learn; NaN where a resample cannot be scored.
"""

from typing import Literal

import numpy as np

Metric = Literal["r2", "mae", "auroc", "balanced_accuracy"]

VALUE_METRICS: tuple[Metric, ...] = ("r2", "mae")
CLASS_METRICS: tuple[Metric, ...] = ("auroc", "balanced_accuracy")
_DIGITS = 1000 * np.finfo(np.float64).eps


def higher_is_better(metric: Metric) -> bool:
    """False for the mean absolute error."""
    return metric != "mae"


def r2(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """1 - residual / total sum of squares of float [M] arrays, the total around each resample's own mean: float [R].

    NaN where the values of a resample are equal: what is left of their total is rounding.
    """
    centred = truth - truth.mean()  # a large offset would cost digits in the next line
    count = weights.sum(axis=1)
    total = weights @ centred**2 - (weights @ centred) ** 2 / count
    rounding = _DIGITS * (weights @ (centred**2 + _DIGITS * truth**2))
    return _ratio(total - weights @ (truth - predicted) ** 2, np.where(total > rounding, total, 0))


def mae(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean absolute error in the label's own unit: float [R]."""
    return _ratio(weights @ np.abs(truth - predicted), weights.sum(axis=1))


def auroc(truth: np.ndarray, probabilities: np.ndarray, fold: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes of how often a volume of the class ranks above one of another class: float [R].

    truth: int codes [M]; probabilities: float [M, classes]; fold: int [M]. One against the rest; for two classes both
    are the same number. Only volumes of one fold are compared: over folds the mean predictor would score below .5,
    since a fold with more of a class leaves fewer of them to learn from (Forman and Scholz, 2010).
    """
    codes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    by_class = [_auroc_of(truth == code, probabilities[:, code], fold, weights) for code in codes]
    return _mean_of_known(np.stack(by_class))


def _auroc_of(positive: np.ndarray, ranking: np.ndarray, fold: np.ndarray, weights: np.ndarray) -> np.ndarray:
    won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for number in np.unique(fold):
        ours, others = (fold == number) & positive, (fold == number) & ~positive
        difference = ranking[ours][:, None] - ranking[others][None, :]
        wins = 0.5 * (np.sign(difference) + 1)
        won += ((weights[:, ours] @ wins) * weights[:, others]).sum(axis=1)
        pairs += weights[:, ours].sum(axis=1) * weights[:, others].sum(axis=1)
    return _ratio(won, pairs)


def balanced_accuracy(truth: np.ndarray, decided: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes of the share of their volumes that was recognised; int codes [M] in, float [R] out."""
    recalls = [
        _ratio(weights @ ((truth == code) & (decided == code)), weights @ (truth == code)) for code in np.unique(truth)
    ]
    return _mean_of_known(np.stack(recalls))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """NaN where nothing is there to divide by."""
    known = denominator > 0
    return np.where(known, numerator / np.where(known, denominator, 1), np.nan)


def _mean_of_known(by_class: np.ndarray) -> np.ndarray:
    """Mean over the classes that a resample holds: float [classes, R] -> [R], NaN where it holds none."""
    known = ~np.isnan(by_class)
    return _ratio(np.where(known, by_class, 0).sum(axis=0), known.sum(axis=0))
