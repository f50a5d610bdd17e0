import math

import numpy as np
import pytest

from oct_foundation.diagnostics import skill
from oct_foundation.diagnostics.skill import CategoricalSeries, Series, measure, measure_categorical
from tests.diagnostics.smooth_fields import known_series, smooth_field


def series_of(truth, prediction, **facts) -> Series:
    whole = {"mean": np.zeros(truth.shape[1]), "variance": 1.0}
    return Series(truth=truth, prediction=prediction, **{**whole, **facts})


def test_skill_and_fvu_by_hand():
    truth = np.array([[1.0, 2.0], [3.0, 0.0], [-1.0, 1.0]])
    prediction = np.array([[1.0, 1.0], [2.0, 0.0], [-1.0, 0.0]])
    found = measure(series_of(truth, prediction, mean=np.array([1.0, 1.0]), variance=2.0))
    assert found.fvu == pytest.approx((0 + 1 + 1 + 0 + 0 + 1) / 6 / 2)
    assert found.skill.value == pytest.approx((0 + 1 + 4 + 1 + 4 + 0) / 6 / 2 - 3 / 6 / 2)
    assert found.fvu_of["training mean"] == pytest.approx(10 / 6 / 2)


def test_the_training_mean_has_exactly_no_skill_and_no_correlation():
    truth = np.random.default_rng(0).standard_normal((60, 5)) + 3
    mean = np.full(5, 2.5)
    found = measure(series_of(truth, np.repeat(mean[None], 60, axis=0), mean=mean))
    assert (found.skill.value, found.skill.low, found.skill.high) == (0, 0, 0)
    assert (found.r_time.value, found.r_time.high, found.r_voxels.value) == (0, 0, 0)
    assert found.shift_p == 1.0


def test_both_correlations_are_those_of_numpy_and_not_each_other():
    rng = np.random.default_rng(1)
    truth, prediction = rng.standard_normal((2, 40, 7))
    prediction += truth + np.arange(7)
    found = measure(series_of(truth, prediction))
    assert found.r_time.value == pytest.approx(
        np.mean([np.corrcoef(truth[:, v], prediction[:, v])[0, 1] for v in range(7)])
    )
    assert found.r_voxels.value == pytest.approx(
        np.mean([np.corrcoef(truth[t], prediction[t])[0, 1] for t in range(40)])
    )
    assert abs(found.r_time.value - found.r_voxels.value) > 0.1


def test_correlation_over_voxels_is_of_what_the_training_mean_leaves():
    """A prediction of the mean pattern and noise would correlate with every TR otherwise."""
    rng = np.random.default_rng(2)
    pattern = 10 * rng.standard_normal(200)
    truth, noise = rng.standard_normal((2, 50, 200))
    found = measure(series_of(truth + pattern, noise + pattern, mean=pattern))
    assert abs(found.r_voxels.value) < 0.05


def test_the_influence_of_r_is_its_derivative():
    """Leaving TRs out one at a time gives the same standard error (jackknife) when TRs are independent."""
    rng = np.random.default_rng(3)
    truth, own = rng.standard_normal((2, 400, 1))
    prediction = truth + own
    sums = skill._OverTime(400)
    sums.add(truth, prediction)
    without = [np.corrcoef(np.delete(truth[:, 0], t), np.delete(prediction[:, 0], t))[0, 1] for t in range(400)]
    jackknife = np.sqrt(399 / 400 * ((np.array(without) - np.mean(without)) ** 2).sum())
    assert sums.influence().std() / 20 == pytest.approx(jackknife, rel=0.02)


def test_slices_of_voxels_change_nothing(monkeypatch):
    series = known_series(80, r=0.4, size=0.5, seed=4)
    whole = measure(series)
    monkeypatch.setattr(skill, "_SLICE", 7)
    sliced = measure(series)
    assert sliced.skill.value == pytest.approx(whole.skill.value)
    assert sliced.r_time.low == pytest.approx(whole.r_time.low)
    assert sliced.r_voxels.value == pytest.approx(whole.r_voxels.value)
    assert sliced.shift_p == whole.shift_p


def test_constant_voxels_are_left_out_and_counted():
    rng = np.random.default_rng(5)
    truth = rng.standard_normal((50, 4)).astype(np.float32)
    truth[:, 1] = 0.1
    found = measure(series_of(truth, truth + rng.standard_normal((50, 4)).astype(np.float32)))
    assert found.constant_voxels == 1
    assert found.r_time.value > 0.4


def test_the_shift_test_is_a_loop_over_shifts():
    series = known_series(100, r=0.15, size=0.3, seed=6)
    found = measure(series)

    def r_of(prediction):
        return np.mean([np.corrcoef(series.truth[:, v], prediction[:, v])[0, 1] for v in range(20)])

    least = math.ceil(3 * found.skill.tau)
    others = [r_of(np.roll(series.prediction, shift, axis=0)) for shift in range(least, 100 - least + 1)]
    assert found.num_shifts == len(others)
    assert found.shift_p == pytest.approx((1 + sum(r >= r_of(series.prediction) for r in others)) / (1 + len(others)))


def test_no_correlation_is_above_1():
    truth = smooth_field(60, 3, 0.5, np.random.default_rng(10))
    prediction = truth.copy()
    prediction[:15] += 0.5 * np.random.default_rng(11).standard_normal((15, 3))  # one batch of four is bad
    found = measure(series_of(truth, prediction))
    assert found.r_time.high == found.r_voxels.high == 1.0


def test_independent_trs_are_counted_by_the_longest_memory():
    """Truth of rho .9 remembers 19 TRs, its product with a prediction of rho .9 half as long."""
    found = measure(known_series(2000, r=0.3, size=0.3, rho=0.9, seed=12))
    assert found.truth_tau == pytest.approx(19 - 2 * sum(0.9**lag for lag in range(29, 200)), rel=0.15)
    assert found.skill.tau < 0.7 * found.truth_tau
    assert found.trs_over_tau == pytest.approx(2000 / found.truth_tau)


def test_a_baseline_that_does_better_is_the_bar_and_the_paired_difference_is_below_0():
    series = known_series(200, r=0.3, size=0.3, seed=7)
    rng = np.random.default_rng(8)
    good, bad = series.truth + 0.5 * rng.standard_normal(series.truth.shape), rng.standard_normal(series.truth.shape)
    found = measure(known_series(200, r=0.3, size=0.3, seed=7, baselines={"good": good, "bad": bad}))
    assert found.bar == "good"
    assert found.over["good"].high < 0 < found.over["bad"].low
    assert found.over["good"].value == pytest.approx(found.fvu_of["good"] - found.fvu)
    beside = measure(known_series(200, r=0.3, size=0.3, seed=7, beside={"good": good}))
    assert beside.bar == "training mean"
    assert beside.fvu_of["good"] == pytest.approx(0.25, rel=0.1)


def test_a_difference_from_a_slow_baseline_has_the_memory_of_that_difference():
    slow = 2 * smooth_field(500, 20, 0.95, np.random.default_rng(13))
    found = measure(known_series(500, r=0.3, size=0.3, rho=0.0, seed=14, baselines={"slow": slow}))
    assert found.over["slow"].tau > 2 * found.skill.tau


def test_intervals_hold_the_truth_and_those_of_independent_trs_would_not():
    """300 runs at rho .8, a coverage of 95 % gives 270 or fewer once in 4,000; the seed is fixed."""
    covered = naive = 0
    for seed in range(300):
        found = measure(known_series(300, r=0.5, size=0.5, rho=0.8, seed=seed))
        covered += found.skill.low <= 0.25 <= found.skill.high
        gain = found.skill
        naive += abs(gain.value - 0.25) < gain.half_width / math.sqrt(gain.tau)
    assert covered >= 270
    assert naive < 240


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truth": np.zeros(5)}, r"truth must be \[TRs, voxels\]"),
        ({"prediction": np.zeros((5, 2))}, "prediction must be"),
        ({"mean": np.zeros(2)}, "mean must be"),
        ({"runs": np.zeros(4)}, "runs must be"),
        ({"variance": 0.0}, "variance must be"),
        ({"baselines": {"ridge": np.full((5, 3), np.nan)}}, "ridge must hold numbers"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    facts = {"truth": np.ones((5, 3)), "prediction": np.ones((5, 3)), "mean": np.zeros(3), "variance": 1.0}
    with pytest.raises(ValueError, match=message):
        Series(**{**facts, **changes})


def test_skill_of_codes_is_a_ratio_with_the_interval_of_its_delta_method():
    rng = np.random.default_rng(9)
    unigram = 5 + smooth_field(400, 1, 0.5, rng)[:, 0] * 0.3
    model = unigram * 0.8 + 0.1 * rng.standard_normal(400)
    value, over = measure_categorical(
        CategoricalSeries(cross_entropy=model, unigram=unigram, baselines={"copy": model})
    )
    assert value.value == pytest.approx(1 - model.mean() / unigram.mean())
    assert value.low < 0.2 < value.high
    assert value.half_width < 0.01  # what both share, the difficulty of the TRs, drops out of the ratio
    assert (over["copy"].value, over["copy"].low, over["copy"].high) == (0, 0, 0)
