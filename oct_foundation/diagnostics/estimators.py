"""Pooled features -> ridge, logistic regression and nearest neighbours, by scikit-learn.

How strongly to regularise, or how many neighbours to ask, is chosen in folds by patient inside the training part: the
scored volumes take no part in it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from oct_foundation.diagnostics.folds import Split
from oct_foundation.diagnostics.labels import LabelKind

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

EstimatorKind = Literal["ridge", "logistic", "knn"]

RIDGE_ALPHAS = tuple(10.0**power for power in range(-2, 6))  # features are standardised, so n x E bounds what matters
LOGISTIC_CS = tuple(10.0**power for power in range(-5, 2))
NEIGHBOURS = (1, 3, 5, 10, 20, 40)


def build_estimator(
    probe: EstimatorKind, kind: LabelKind, folds: Sequence[Split], num_components: int | None
) -> "Pipeline":
    """Standardise, then the probe with its strength chosen over the inner `folds`.

    num_components: first reduce to so many principal components, fitted to the training part alone, which has to have
    them (see most_components). The probe's classes come out as predict_proba, values as predict.
    """
    from sklearn.decomposition import PCA
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    estimator, grid = _choices(probe, kind, fewest=min(len(fold.train) for fold in folds))
    scoring: Any = "neg_mean_squared_error" if kind == "values" else _negative_brier
    chosen = GridSearchCV(estimator, grid, scoring=scoring, cv=list(folds), error_score="raise")
    if num_components is None:
        return make_pipeline(StandardScaler(), chosen)
    return make_pipeline(PCA(num_components, random_state=0), StandardScaler(), chosen)


def most_components(rows: np.ndarray) -> int:
    """In how many directions rows [n, F] differ, to the digits of float32; fewer than n - 1 where some of them are
    equal, but at least 1. In any other direction scaling would blow rounding up to size 1, and held-out rows as much.
    """
    return max(int(np.linalg.matrix_rank((rows - rows.mean(axis=0)).astype(np.float32))), 1)


def _choices(probe: EstimatorKind, kind: LabelKind, fewest: int) -> tuple[Any, dict[str, list[Any]]]:
    """The estimator and the grid that it is chosen from; `fewest`: volumes in the smallest inner training part."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    match probe:
        case "ridge":
            return Ridge(), {"alpha": list(RIDGE_ALPHAS)}
        case "logistic":
            return LogisticRegression(max_iter=2000, tol=1e-3), {"C": list(LOGISTIC_CS)}
        case "knn":
            grid = {"n_neighbors": [count for count in NEIGHBOURS if count <= fewest]}
            return (KNeighborsRegressor() if kind == "values" else KNeighborsClassifier()), grid


def _negative_brier(estimator: Any, features: np.ndarray, truth: np.ndarray) -> float:
    """Minus the squared distance of the probabilities from the truth: unlike log loss it forgives a sure neighbour."""
    hits = truth[:, None] == estimator.classes_[None, :]
    return -float(np.mean((estimator.predict_proba(features) - hits) ** 2))
