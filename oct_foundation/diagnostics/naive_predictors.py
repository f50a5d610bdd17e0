"""Training TRs -> what predictors without insight say of the held-out ones: the bar that a model has to clear.

fMRI is smooth, so the TR before is a good guess, and an AR(2) shared by all voxels explains 99.7 % of a resting scan's
next TR (multimodal.md, 7). A recording is a list of segments without gaps; no lag reaches across a gap.
"""

from collections.abc import Sequence

import numpy as np

MAX_ORDER = 8
_CHOICE_SHARE = 0.2


def training_mean(train: Sequence[np.ndarray]) -> np.ndarray:
    """Of segments [T, V]: float64 [V]. Raises ValueError where there is no TR."""
    num_trs = sum(map(len, train))
    if not num_trs:
        raise ValueError("training segments hold no TR")
    return sum(segment.sum(axis=0, dtype=np.float64) for segment in train) / num_trs


def persistence(
    train: Sequence[np.ndarray], held: Sequence[np.ndarray], horizon: int = 1, before: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """Each held-out TR as the one `horizon` TRs before it; the mean where there is none. See autoregressive."""
    return autoregressive(np.ones(1), training_mean(train), held, horizon, before)


def fit_autoregression(train: Sequence[np.ndarray], order: int | None = None) -> np.ndarray:
    """Coefficients [p] of x_t = sum a_k x_(t-k), one set for all voxels, by least squares about the training mean.

    order None: the one of 1 to 8 that does best on the last fifth of each segment, fitted on the rest. Raises
    ValueError where no segment is longer than the order.
    """
    mean = training_mean(train)
    centred = [segment - mean for segment in train]
    if order is not None:
        return _least_squares(_lagged_products(centred, order))
    cuts = [int(len(segment) * (1 - _CHOICE_SHARE)) for segment in centred]
    early = [segment[:cut] for segment, cut in zip(centred, cuts, strict=True)]
    late = [segment[cut:] for segment, cut in zip(centred, cuts, strict=True)]
    most = min(MAX_ORDER, max(map(len, late)) - 1)
    if most < 1:
        raise ValueError(f"an autoregression is chosen on segments of 10 TRs or more; found {max(map(len, train))}")
    fitted, judged = _lagged_products(early, most), _lagged_products(late, most)
    errors = [_error(_least_squares(fitted[: p + 1, : p + 1]), judged) for p in range(1, most + 1)]
    return _least_squares(_lagged_products(centred, int(np.argmin(errors)) + 1))


def autoregressive(
    coefficients: np.ndarray,
    mean: np.ndarray,
    held: Sequence[np.ndarray],
    horizon: int = 1,
    before: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """Each held-out TR out of those `horizon` and more TRs before it; float64 [n, V], segment after segment.

    before: for each segment the TRs that were seen right before it, such as those of the gap; () where none were. A TR
    with some but not all lags is taken to persist, one with none gets the mean. Raises ValueError.
    """
    if horizon < 1:
        raise ValueError(f"horizon must be 1 TR or more; found {horizon}")
    companion = np.eye(len(coefficients), k=-1)
    companion[0] = coefficients
    ahead = np.linalg.matrix_power(companion, horizon)[0]
    predictions = []
    for segment, seen in zip(held, before or [segment[:0] for segment in held], strict=True):
        series = np.concatenate([seen, segment]) - mean
        said = np.zeros(series.shape)
        said[horizon:] = series[:-horizon]
        first = horizon + len(ahead) - 1
        if len(series) > first:
            said[first:] = sum(
                weight * series[first - lag : len(series) - lag] for lag, weight in enumerate(ahead, start=horizon)
            )
        predictions.append(said[len(seen) :] + mean)
    return np.concatenate(predictions)


def ridge(
    train_features: np.ndarray, train: np.ndarray, held_features: np.ndarray, components: int = 100
) -> np.ndarray:
    """A linear map from raw features, [T, F] -> [T, V], applied to held-out ones, [n, F]; returns float64 [n, V].

    Features are standardised, more than `components` of them reduced by PCA. The penalty is chosen on five contiguous
    folds: on shuffled ones neighbours in time would give the answer away. Raises ValueError for fewer than 10 TRs.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(train) < 10:
        raise ValueError(f"ridge needs 10 training TRs or more; found {len(train)}")
    steps = [StandardScaler()]
    if train_features.shape[1] > components:
        steps.append(PCA(min(components, len(train) - 1), svd_solver="randomized", random_state=0))
    model = make_pipeline(*steps, RidgeCV(alphas=np.logspace(-1, 6, 8), cv=KFold(5)))
    return model.fit(train_features, train).predict(held_features)


def shifted(prediction: np.ndarray) -> np.ndarray:
    """A prediction [n, V] of another quarter of the run: what its general looks are worth without its timing."""
    return np.roll(prediction, len(prediction) // 4, axis=0)


def _lagged_products(segments: Sequence[np.ndarray], order: int) -> np.ndarray:
    """Sums over TRs and voxels of x_(t-i) x_(t-j): float64 [order + 1, order + 1]. Raises ValueError."""
    long = [segment for segment in segments if len(segment) > order]
    if not long:
        raise ValueError(
            f"AR({order}) needs a segment of more than {order} TRs; the longest has {max(map(len, segments))}"
        )
    products = np.zeros((order + 1, order + 1))
    for segment in long:
        lags = [segment[order - lag : len(segment) - lag].ravel() for lag in range(order + 1)]
        products += [[one @ other for other in lags] for one in lags]
    return products


def _least_squares(products: np.ndarray) -> np.ndarray:
    """Coefficients [p] from lagged products [p + 1, p + 1]; constant series have none, all 0."""
    return np.linalg.lstsq(products[1:, 1:], products[1:, 0], rcond=None)[0]


def _error(coefficients: np.ndarray, products: np.ndarray) -> float:
    """Sum of squared errors of x_t less its prediction, out of lagged products."""
    weights = np.zeros(len(products))
    weights[: len(coefficients) + 1] = [1.0, *-coefficients]
    return float(weights @ products @ weights)
