"""One contestant, one probe, one set of folds -> what the probe says of every volume that it has not learned from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from oct_foundation.diagnostics import scores
from oct_foundation.diagnostics.estimators import build_estimator, most_components
from oct_foundation.diagnostics.folds import Split, inner_folds
from oct_foundation.diagnostics.labels import Label

ProbeKind = Literal["ridge", "logistic", "knn", "attentive", "mean"]

_INNER_FOLDS = 4


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Frozen features of M volumes. pooled: float [M, F]; tokens: float [M, N, E], for the attentive probe.

    num_components: the probes see so many principal components of `pooled`, fitted to each training part; as many as
    it has where it has fewer.
    """

    pooled: np.ndarray
    tokens: np.ndarray | None = None
    num_components: int | None = None

    def of(self, known: np.ndarray) -> "Contestant":
        """The volumes where `known` (bool [M]) is true."""
        if known.all():
            return self
        tokens = None if self.tokens is None else self.tokens[known]
        return Contestant(pooled=self.pooled[known], tokens=tokens, num_components=self.num_components)


@dataclass(frozen=True)
class OutOfFold:
    """Of K volumes: the fold each was held out in, int [K]; the values said of them, float [K], or the
    probabilities [K, classes] and the class decided on, int [K].
    """

    fold: np.ndarray
    said: np.ndarray
    decided: np.ndarray | None = None

    def score(self, label: Label, weights: np.ndarray) -> dict[scores.Metric, np.ndarray]:
        """Every metric of the label's kind, float [R] for weights [R, K]."""
        if self.decided is None:
            return {
                "r2": scores.r2(label.targets, self.said, weights),
                "mae": scores.mae(label.targets, self.said, weights),
            }
        return {
            "auroc": scores.auroc(label.targets, self.said, self.fold, weights),
            "balanced_accuracy": scores.balanced_accuracy(label.targets, self.decided, weights),
        }


def predict_out_of_fold(
    contestant: Contestant, probe: ProbeKind, label: Label, groups: np.ndarray, folds: Sequence[Split], seed: int
) -> OutOfFold:
    """The contestant holds the label's K known volumes, `groups` [K] their patients, `folds` every volume once.

    A class is decided on by how much likelier it is than among the volumes learned from: balanced accuracy asks
    for that, and no probe wins or loses by how frequent the classes are.
    """
    number_of = np.zeros(len(groups), dtype=np.int64)
    said = np.zeros((len(groups), len(label.classes)) if label.kind == "classes" else len(groups))
    decided = np.zeros(len(groups), dtype=np.int64) if label.kind == "classes" else None
    for number, fold in enumerate(folds):
        number_of[fold.test] = number
        said[fold.test] = _predict(contestant, probe, label, groups, fold, seed)
        if decided is not None:
            share = np.bincount(label.targets[fold.train], minlength=len(label.classes)) / len(fold.train)
            decided[fold.test] = (said[fold.test] / share).argmax(axis=1)
    return OutOfFold(number_of, said, decided)


def _predict(
    contestant: Contestant, probe: ProbeKind, label: Label, groups: np.ndarray, fold: Split, seed: int
) -> np.ndarray:
    """Of `fold.test`: values [K2] or probabilities [K2, classes]."""
    if probe == "mean":
        truth = label.targets if label.kind == "values" else label.onehot()
        return truth[fold.train].mean(axis=0)
    inner = inner_folds(label, groups, fold.train, _INNER_FOLDS, seed)
    if probe == "attentive":
        from oct_foundation.diagnostics.attentive import attentive_predictions

        assert contestant.tokens is not None
        return attentive_predictions(contestant.tokens, label, fold, inner, seed)
    features = contestant.pooled.astype(np.float64)  # in float32 a ridge of collinear features is ill-conditioned
    learned, rows = features[fold.train], features[fold.test]
    components = contestant.num_components
    if components is not None:
        components = min(components, most_components(learned))
    estimator = build_estimator(probe, label.kind, inner, components)
    estimator.fit(learned, label.targets[fold.train])
    return estimator.predict(rows) if label.kind == "values" else estimator.predict_proba(rows)
