import math

import numpy as np
import pytest
from scipy import stats

from oct_foundation.diagnostics.autocorrelated import MIN_TRS, autocorrelation_time, estimate_of
from tests.diagnostics.smooth_fields import smooth_field


def test_the_autocorrelation_time_is_a_sum_over_lags_by_hand():
    values = smooth_field(300, 1, 0.7, np.random.default_rng(0))[:, 0]
    centred = values - values.mean()
    expected = 1.0
    for lag in range(1, 300):
        correlation = (centred[lag:] * centred[:-lag]).sum() / (centred**2).sum()
        if correlation < 0.05:
            break
        expected += 2 * correlation
    assert autocorrelation_time(values) == pytest.approx(expected)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_the_autocorrelation_time_of_an_ar1_is_its_closed_form(rho):
    """(1 + rho) / (1 - rho), less the tail of correlations below .05."""
    values = smooth_field(200_000, 1, rho, np.random.default_rng(1))[:, 0]
    lags = math.floor(math.log(0.05) / math.log(rho)) if rho else 0
    assert autocorrelation_time(values) == pytest.approx(1 + 2 * sum(rho**lag for lag in range(1, lags + 1)), rel=0.1)


def test_a_constant_has_no_memory():
    assert autocorrelation_time(np.full(50, 0.3)) == 1.0


def test_pairs_of_two_recordings_do_not_count():
    """One jump between two constant halves: within the halves, about the common mean, all is correlation."""
    values = np.array([1.0, 1.0, -1.0, -1.0])
    assert autocorrelation_time(values) == pytest.approx(1 + 2 * 0.25)  # lag 1: (1 - 1 + 1) / 4
    assert autocorrelation_time(values, np.array([0, 0, 1, 1])) == pytest.approx(1 + 2 * 0.5)  # lag 1: (1 + 1) / 4


@pytest.mark.parametrize(("num_trs", "tau", "batches"), [(24, 1.0, 4), (48, 1.0, 6), (1000, 1.0, 8)])
def test_the_interval_is_that_of_batch_means(num_trs, tau, batches):
    values = np.random.default_rng(2).standard_normal(num_trs)
    means = [part.mean() for part in np.array_split(values, batches)]
    low, high = stats.t.interval(0.95, batches - 1, loc=0.4, scale=stats.sem(means))
    found = estimate_of(values, 0.4, tau)
    assert (found.low, found.value, found.high) == pytest.approx((low, 0.4, high))
    assert found.trs_over_tau == pytest.approx(num_trs / tau)
    assert found.half_width == pytest.approx((high - low) / 2)


@pytest.mark.parametrize("rho", [0.5, 0.8])
def test_batch_means_give_the_variance_of_the_mean_on_average(rho):
    """Of an AR(1) it is known: s/n (tau - 2/n sum l rho^l). Batches alone fall 5 to 10 % short."""
    tau, num_trs = (1 + rho) / (1 - rho), int(36 * (1 + rho) / (1 - rho))
    lags = np.arange(1, num_trs)
    truth = (1 + 2 * ((1 - lags / num_trs) * rho**lags).sum()) / num_trs
    field = smooth_field(num_trs, 5_000, rho, np.random.default_rng(3))
    quantile = stats.t.ppf(0.975, 3)
    found = np.mean([(estimate_of(column, 0.0, tau).half_width / quantile) ** 2 for column in field.T])
    assert found == pytest.approx(truth, rel=0.05)  # 4 standard errors


def test_two_series_have_the_autocorrelation_time_of_their_summed_products():
    field = smooth_field(400, 2, 0.7, np.random.default_rng(4))
    alone = [autocorrelation_time(column) for column in field.T]
    assert min(alone) <= autocorrelation_time(field) <= max(alone)
    assert autocorrelation_time(np.stack([field[:, 0]] * 3, axis=1)) == pytest.approx(alone[0])


def test_too_few_trs_have_no_interval():
    found = estimate_of(np.arange(MIN_TRS - 1.0), 0.4, 1.0)
    assert found.value == 0.4
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert not math.isnan(estimate_of(np.arange(MIN_TRS * 1.0), 0.4, 1.0).low)
