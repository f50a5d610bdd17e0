"""Pooled features -> one out-of-fold score per label in under a second: the curve of a training run.

Ridge alone, also on classes, one draw of folds and no interval: good for a trend. probes.py says how sure one can be.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from oct_foundation.diagnostics.estimators import RIDGE_ALPHAS
from oct_foundation.diagnostics.folds import Split, check_enough
from oct_foundation.diagnostics.labels import Label, LabelKind, read_label
from oct_foundation.diagnostics.scores import auroc, r2

_FOLDS = 5


def quick_probe(
    pooled: np.ndarray,
    labels: Mapping[str, Sequence[object] | np.ndarray],
    groups: Sequence[str] | np.ndarray,
    kinds: Mapping[str, LabelKind] | None = None,
) -> dict[str, float]:
    """R2 of labels that are values, AUROC of those that are classes, by 5 folds of patients; NaN where every fold
    holds one class only.

    pooled: float [M, E]; labels: a column of M each; groups: M patients; kinds: see ProbeSettings. The strength is
    chosen by leaving out single volumes of the training part, for all labels in one decomposition. Raises ValueError
    as probe does.
    """
    read = [read_label(name, column, (kinds or {}).get(name)) for name, column in labels.items()]
    alike = defaultdict[bytes, list[Label]](list)  # labels known of the same volumes share the decompositions
    for label in read:
        alike[label.known.tobytes()].append(label)
    found: dict[str, float] = {}
    for together in alike.values():
        known = together[0].known
        found |= _scores(pooled[known].astype(np.float64), together, np.asarray(groups)[known])
    return {label.name: found[label.name] for label in read}


def _scores(features: np.ndarray, labels: Sequence[Label], groups: np.ndarray) -> dict[str, float]:
    """Of labels that are known of all K volumes: float [K, E], K patients."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for label in labels:
        check_enough(label, groups, _FOLDS)
    columns = [label.targets[:, None] if label.kind == "values" else label.onehot() for label in labels]
    targets = np.hstack(columns)
    scale = targets.std(axis=0)
    said, fold_of = np.zeros(targets.shape), np.zeros(len(groups), dtype=np.int64)
    folds = GroupKFold(_FOLDS, shuffle=True, random_state=0).split(features, groups=groups)
    for number, fold in enumerate(Split(*found) for found in folds):
        ridge = make_pipeline(StandardScaler(), RidgeCV(RIDGE_ALPHAS, alpha_per_target=True))
        ridge.fit(features[fold.train], targets[fold.train] / scale)
        said[fold.test] = ridge.predict(features[fold.test]).reshape(len(fold.test), -1) * scale  # one target: [K2]
        fold_of[fold.test] = number
    starts = np.cumsum([0, *(column.shape[1] for column in columns)])
    by_label = [said[:, start:end] for start, end in pairwise(starts)]
    return {label.name: _score(label, found, fold_of) for label, found in zip(labels, by_label, strict=True)}


def _score(label: Label, said: np.ndarray, fold_of: np.ndarray) -> float:
    """said: float [K, 1] values, or [K, classes]."""
    once = np.ones((1, len(said)))
    if label.kind == "values":
        return float(r2(label.targets, said[:, 0], once)[0])
    return float(auroc(label.targets, said, fold_of, once)[0])
