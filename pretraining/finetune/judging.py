"""Predictions for held-out patients -> scores with 95 % intervals, beside somebody who has not looked."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from oct_foundation.diagnostics.intervals import interval, patient_weights
from oct_foundation.diagnostics.labels import Label
from oct_foundation.diagnostics.scores import auroc, balanced_accuracy, mae, r2

RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Every held-out volume once: numbers into the labelled volumes [M], the fold of each [M], both predictions."""

    numbers: np.ndarray
    fold: np.ndarray
    predicted: np.ndarray
    by_mean: np.ndarray


def scores_of(label: Label, groups: np.ndarray, held_out: HeldOut, seed: int) -> dict[str, Any]:
    """`metrics` of the fine-tuned network and `mean_predictor`, each metric as value, low and high (NaN: None)."""
    weights = patient_weights(groups[held_out.numbers], RESAMPLES, seed)
    truth = label.targets[held_out.numbers]
    return {
        name: {metric: _rounded(scores) for metric, scores in _scores(label, truth, predicted, held_out.fold, weights)}
        for name, predicted in (("metrics", held_out.predicted), ("mean_predictor", held_out.by_mean))
    }


def _scores(
    label: Label, truth: np.ndarray, predicted: np.ndarray, fold: np.ndarray, weights: np.ndarray
) -> list[tuple[str, np.ndarray]]:
    if label.kind == "values":
        return [("r2", r2(truth, predicted, weights)), ("mae", mae(truth, predicted, weights))]
    decided = predicted.argmax(axis=1)
    return [
        ("auroc", auroc(truth, predicted, fold, weights)),
        ("balanced_accuracy", balanced_accuracy(truth, decided, weights)),
    ]


def _rounded(scores: np.ndarray) -> dict[str, float | None]:
    found = interval(scores)._asdict()
    return {name: None if np.isnan(value) else float(value) for name, value in found.items()}
