"""What held-out TRs were and what a model said of them -> skill and correlations, each with an honest interval.

Skill is the FVU of the training mean less that of the model, on the same TRs: predicting the mean scores 0, whatever
the unit. "Correlation" is two things, over time (per voxel) and over voxels (per TR): names always say which. All sums
run over slices of voxels: a brain has 83,138.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from oct_foundation.diagnostics.autocorrelated import Estimate, autocorrelation_time, estimate_of
from oct_foundation.diagnostics.series import CategoricalSeries, Series

__all__ = ["CategoricalSeries", "Estimate", "Measures", "Series", "measure", "measure_categorical"]

TRAINING_MEAN = "training mean"
_SLICE = 8192
# So many voxels, evenly taken, are enough for the autocorrelation of all.
_FOR_TAU = 1024
# Of a voxel's deviation over time, relative to its mean: below it, it is constant but for rounding.
_CONSTANT = 1e-6
# Shifts up to this many tau still overlap with the truth's own memory.
_SHIFT_TAUS = 3


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What a series comes to. skill: paired, so that the training mean has exactly 0 on these TRs. over: skill above
    that of each baseline, the training mean among them. shift_p: how often a prediction shifted in time does as well.
    fvu_of: of every naive predictor, those beside too. constant_voxels: left out of both correlations, their truth
    does not change. truth_tau: autocorrelation time of the truth itself, which on short series is known better than
    that of what is estimated.
    """

    fvu: float
    skill: Estimate
    r_time: Estimate
    r_voxels: Estimate
    shift_p: float
    num_shifts: int
    over: Mapping[str, Estimate]
    fvu_of: Mapping[str, float]
    constant_voxels: int
    truth_tau: float

    @property
    def trs_over_tau(self) -> float:
        """Independent TRs, by whichever autocorrelation time is the longest."""
        return self.skill.num_trs / max(self.skill.tau, self.truth_tau)

    @property
    def bar(self) -> str:
        """The strongest of the naive predictors that the model must beat."""
        return min(self.over, key=lambda name: self.over[name].value)


def measure(series: Series) -> Measures:
    """All of it in one pass over slices of voxels; tau of skill and of r(time) is one, the larger."""
    errors, correlation, pattern = _squared_errors(series), _OverTime(len(series.truth)), _OverVoxels(len(series.truth))
    for part in _slices(series.truth.shape[1]):
        truth, prediction, mean = (_part(values, part) for values in (series.truth, series.prediction, series.mean))
        seen = correlation.add(truth, prediction)
        pattern.add((truth - mean)[:, seen], (prediction - mean)[:, seen])
    scale = series.truth.shape[1] * series.variance
    gain = {name: (error - errors["prediction"]) / scale for name, error in errors.items() if name != "prediction"}
    r_influence, over_voxels = correlation.influence(), pattern.per_tr()
    tau = max(autocorrelation_time(values, series.runs) for values in (gain[TRAINING_MEAN], r_influence))

    def estimate(influence: np.ndarray, value: float) -> Estimate:
        return estimate_of(influence, value, max(tau, autocorrelation_time(influence, series.runs)))

    shift_p, num_shifts = _shift_test(correlation.shifted(), tau)
    return Measures(
        fvu=float(errors["prediction"].mean() / scale),
        skill=estimate_of(gain[TRAINING_MEAN], float(gain[TRAINING_MEAN].mean()), tau),
        r_time=_correlation(estimate_of(_widened(r_influence, tau), correlation.mean(), tau)),
        r_voxels=_correlation(estimate(over_voxels, float(over_voxels.mean()))),
        shift_p=shift_p,
        num_shifts=num_shifts,
        over={name: estimate(gain[name], float(gain[name].mean())) for name in (TRAINING_MEAN, *series.baselines)},
        fvu_of={name: float(error.mean() / scale) for name, error in errors.items() if name != "prediction"},
        constant_voxels=series.truth.shape[1] - correlation.num_voxels,
        truth_tau=autocorrelation_time(series.truth[:, :: -(-series.truth.shape[1] // _FOR_TAU)], series.runs),
    )


def measure_categorical(series: CategoricalSeries) -> tuple[Estimate, dict[str, Estimate]]:
    """Skill 1 - CE / CE(unigram), and skill above that of each baseline, "unigram" among them.

    A ratio of two means; influence (s u - c) / mean(u) with s = mean(c) / mean(u), by the delta method.
    """
    floor = series.unigram.mean()

    def above(other: np.ndarray) -> Estimate:
        difference = float((other - series.cross_entropy).mean() / floor)
        influence = (other - series.cross_entropy - difference * series.unigram) / floor
        return estimate_of(influence, difference, autocorrelation_time(influence, series.runs))

    over = {name: above(values) for name, values in {"unigram": series.unigram, **series.baselines}.items()}
    return over["unigram"], over


def _correlation(value: Estimate) -> Estimate:
    """Bounds beyond -1 and 1 are cut there."""
    low, high = np.clip((value.low, value.high), -1.0, 1.0)
    return replace(value, low=float(low), high=float(high))


def _widened(influence: np.ndarray, tau: float) -> np.ndarray:
    """By n / (n - 3) in variance, as Fisher has it, n independent TRs: mean and deviation are estimated from them."""
    independent = len(influence) / tau
    return influence * (independent / (independent - 3)) ** 0.5 if independent > 6 else influence * 2**0.5


class _OverTime:
    """Correlation of truth and prediction over time, per voxel, summed over voxels slice by slice."""

    def __init__(self, num_trs: int) -> None:
        self.num_voxels, self._sum = 0, 0.0
        self._influence = np.zeros(num_trs)
        self._spectrum = np.zeros(num_trs // 2 + 1, complex)

    def add(self, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        """Adds a slice [n, v]; returns which voxels' truth changes, bool [v]. A constant prediction has r 0."""
        seen = truth.std(axis=0) > _CONSTANT * (np.abs(truth.mean(axis=0)) + _CONSTANT)
        true, said = _standardised(truth[:, seen]), _standardised(prediction[:, seen])
        r = (true * said).mean(axis=0)
        self.num_voxels += int(seen.sum())
        self._sum += float(r.sum())
        # Of r = mean(zy zp): zy zp - r/2 (zy^2 + zp^2), the second part for mean and deviation being estimated.
        self._influence += (true * said - r / 2 * (true**2 + said**2)).sum(axis=1)
        self._spectrum += (np.fft.rfft(true, axis=0) * np.conj(np.fft.rfft(said, axis=0))).sum(axis=1)
        return seen

    def mean(self) -> float:
        return self._sum / max(self.num_voxels, 1)

    def influence(self) -> np.ndarray:
        return self._influence / max(self.num_voxels, 1)

    def shifted(self) -> np.ndarray:
        """Mean r for every circular shift of the prediction, float [n], shift 0 first: one transform gives them all."""
        num_trs = len(self._influence)
        return np.fft.irfft(self._spectrum, num_trs) / (num_trs * max(self.num_voxels, 1))


class _OverVoxels:
    """Correlation over voxels, per TR, out of sums over slices; truth and prediction less the training mean."""

    def __init__(self, num_trs: int) -> None:
        self._sums, self._num_voxels = np.zeros((5, num_trs)), 0

    def add(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        columns = (truth, prediction, truth * prediction, truth**2, prediction**2)
        self._sums += [values.sum(axis=1) for values in columns]
        self._num_voxels += truth.shape[1]

    def per_tr(self) -> np.ndarray:
        """Float [n]; 0 where one of the two is the same in all voxels."""
        a, b, ab, aa, bb = self._sums / max(self._num_voxels, 1)
        spread = np.sqrt(np.clip(aa - a * a, 0, None) * np.clip(bb - b * b, 0, None))
        return np.divide(ab - a * b, spread, out=np.zeros_like(ab), where=spread > _CONSTANT**2)


def _squared_errors(series: Series) -> dict[str, np.ndarray]:
    """Squared error of each TR, summed over voxels, float [n]: "prediction", the training mean, every baseline."""
    said = {"prediction": series.prediction, TRAINING_MEAN: series.mean, **series.baselines, **series.beside}
    errors = {name: np.zeros(len(series.truth)) for name in said}
    for part in _slices(series.truth.shape[1]):
        truth = _part(series.truth, part)
        for name, values in said.items():
            errors[name] += ((truth - _part(values, part)) ** 2).sum(axis=1)
    return errors


def _shift_test(shifted: np.ndarray, tau: float) -> tuple[float, int]:
    """How likely such an r is by chance, and the number of shifts tried: all beyond 3 tau, either way round."""
    least = int(np.ceil(_SHIFT_TAUS * tau))
    others = shifted[least : len(shifted) - least + 1]
    return float((1 + (others >= shifted[0] - 1e-12).sum()) / (1 + len(others))), len(others)


def _standardised(values: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1 over time; 0 for what is constant."""
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    constant = deviation <= _CONSTANT * (np.abs(mean) + _CONSTANT)
    return np.where(constant, 0.0, (values - mean) / np.where(constant, 1.0, deviation))


def _slices(num_voxels: int) -> Iterator[slice]:
    return (slice(start, start + _SLICE) for start in range(0, num_voxels, _SLICE))


def _part(values: np.ndarray, part: slice) -> np.ndarray:
    return values[..., part].astype(np.float64)
