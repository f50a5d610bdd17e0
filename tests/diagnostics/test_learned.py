import math

import numpy as np
import pytest

from oct_foundation.diagnostics.autocorrelated import Estimate
from oct_foundation.diagnostics.learned import (
    judge_categorical,
    judge_checkpoint,
    judge_logged,
    judge_loss_only,
    judge_series,
)
from oct_foundation.diagnostics.naive_predictors import shifted
from oct_foundation.diagnostics.noise_ceiling import Ceiling
from oct_foundation.diagnostics.skill import CategoricalSeries
from oct_foundation.diagnostics.trs_needed import decided_after, for_shift_test, to_lie_above, to_lie_below
from tests.diagnostics.smooth_fields import known_series, smooth_field

CEILING = Ceiling(
    num_subjects=10, num_trs=300, num_voxels=20, pairwise=0.3, reliability=0.81, best_r=0.9, best_fvu=0.19,
    leave_one_out=0.5, split_half=0.81,
)  # fmt: skip


def test_a_model_that_shares_the_signal_has_learned():
    said = judge_series("fmri", known_series(300, r=0.5, size=0.5), CEILING)
    assert said.verdict == "LEARNED"
    assert said.trs_needed is None
    assert 0 < said.figures["skill_low"] < 0.25 < said.figures["skill_high"]
    assert said.figures["r_time_low"] < 0.5 < said.figures["r_time_high"]
    assert said.figures["ceiling_r"] == 0.9
    assert "% of the noise ceiling 0.900" in said.reasons[1]


@pytest.mark.parametrize("size", [1.0, 0.05])
def test_an_unrelated_smooth_field_has_not(size):
    said = judge_series("fmri", known_series(1000, r=0.0, size=size))
    assert said.verdict == "NOT LEARNED"
    assert any("at most" in reason for reason in said.reasons)


def test_the_right_answer_in_the_wrong_order_has_not():
    series = known_series(1000, r=0.6, size=0.6)
    said = judge_series("fmri", known_series(1000, r=0.6, size=0.6, truth=np.roll(series.truth, 300, axis=0)))
    assert said.verdict == "NOT LEARNED"


def test_ten_trs_cannot_tell_and_the_report_says_how_many_would():
    said = judge_series("fmri", known_series(10, r=0.6, size=0.6))
    assert said.verdict == "CANNOT TELL"
    assert said.trs_needed >= 20
    assert math.isnan(said.figures["skill_low"])


def test_fewer_than_39_shifts_cannot_show_that_it_was_no_chance():
    said = judge_series("fmri", known_series(32, r=0.8, size=0.8, rho=0.0, seed=3))
    assert said.figures["skill_low"] > 0
    assert said.figures["trs_over_tau"] >= 20
    assert said.figures["shift_p"] > 0.025
    assert said.verdict == "CANNOT TELL"
    assert 44 <= said.trs_needed <= 60
    assert any(f"room for {32 - 2 * 3 + 1} shifts" in reason for reason in said.reasons)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [({"complete": False}, "all ranks"), ({"leak_free": False}, "validation TRs")],
)
def test_a_fault_that_flatters_forbids_learned_and_no_number_of_trs_mends_it(fault, reason):
    said = judge_series("fmri", known_series(300, r=0.5, size=0.5, **fault))
    assert said.verdict == "CANNOT TELL"
    assert said.trs_needed is None
    assert any(reason in text for text in said.reasons)
    assert judge_series("fmri", known_series(1000, r=0.0, size=1.0, **fault)).verdict == "NOT LEARNED"


def test_a_baseline_that_does_better_forbids_learned_and_one_beside_does_not():
    series = known_series(300, r=0.5, size=0.5)
    better = 0.5 * (series.prediction + series.truth)
    said = judge_series("fmri", known_series(300, r=0.5, size=0.5, baselines={"AR(2)": better}))
    assert said.verdict == "CANNOT TELL"
    assert said.figures["bar"] == "AR(2)"
    assert said.trs_needed is None
    assert any("AR(2) does as well or better" in reason for reason in said.reasons)
    beside = judge_series("fmri", known_series(300, r=0.5, size=0.5, beside={"AR(2)": better}))
    assert beside.verdict == "LEARNED"
    assert any("sees what the model does not" in reason for reason in beside.reasons)


def test_the_line_of_r_is_a_twentieth_or_a_tenth_of_a_high_ceiling():
    """r is .055 +- .013; where the training variance was a fifth, skill says nothing against it."""
    series = known_series(4000, r=0.055, size=0.055, rho=0.3, variance=0.2, leak_free=False)
    found = judge_series("fmri", series)
    assert 0.05 < found.figures["r_time_high"] < 0.09
    assert found.figures["skill_high"] > 0.01
    assert found.verdict == "CANNOT TELL"
    assert judge_series("fmri", series, CEILING).verdict == "NOT LEARNED"


def test_predictions_that_are_no_numbers_have_not_learned():
    series = known_series(100, r=0.5, size=0.5)
    series.prediction[3, 4] = np.nan
    said = judge_series("fmri", series)
    assert said.verdict == "NOT LEARNED"
    assert "NaN" in said.reasons[0]


def test_a_truth_that_stands_still_tells_nothing():
    series = known_series(100, r=0.5, size=0.5)
    said = judge_series("fmri", known_series(100, r=0.5, size=0.5, truth=np.ones_like(series.truth)))
    assert said.verdict == "CANNOT TELL"
    assert said.trs_needed is None


def test_something_real_but_worthless_is_not_learned():
    series = known_series(40_000, r=0.03, size=0.03, rho=0.0)
    said = judge_series("fmri", series)
    assert said.figures["r_time_low"] > 0
    assert said.figures["skill_low"] > 0
    assert said.verdict == "NOT LEARNED"


def test_the_replay_of_report_002():
    said = judge_logged("fmri", 0.0013, 24, 190)
    assert said.verdict == "NOT LEARNED"
    assert round(said.figures["r_voxels_high"], 3) == 0.026
    assert any("24 of 190" in reason for reason in said.reasons)


def test_a_logged_mean_never_shows_that_something_was_learned():
    said = judge_logged("fmri", 0.4, 190, 190)
    assert said.verdict == "CANNOT TELL"
    assert said.trs_needed is None
    few = judge_logged("fmri", 0.0013, 4, 190)
    assert few.verdict == "CANNOT TELL"
    assert judge_logged("fmri", 0.0013, few.trs_needed, 190).verdict == "NOT LEARNED"
    assert judge_logged("fmri", 0.0013, few.trs_needed - 1, 190).verdict == "CANNOT TELL"
    assert judge_logged("fmri", math.nan, 24, 24).verdict == "NOT LEARNED"
    with pytest.raises(ValueError, match="num_trs"):
        judge_logged("fmri", 0.0, 0, 0)


def test_a_checkpoint_and_a_loss_without_a_baseline_cannot_tell():
    assert judge_checkpoint("fmri").verdict == "CANNOT TELL"
    said = judge_loss_only("audio", 167.15)
    assert said.verdict == "CANNOT TELL"
    assert "167" in said.reasons[0]


@pytest.mark.parametrize(
    ("gain", "num_trs", "verdict"),
    [(0.2, 300, "LEARNED"), (0.0, 1000, "NOT LEARNED"), (0.2, 10, "CANNOT TELL"), (-0.1, 300, "NOT LEARNED")],
)
def test_codes_are_judged_by_their_cost(gain, num_trs, verdict):
    rng = np.random.default_rng(2)
    unigram = 6 + 0.2 * smooth_field(num_trs, 1, 0.5, rng)[:, 0]
    model = unigram * (1 - gain) + 0.1 * smooth_field(num_trs, 1, 0.5, rng)[:, 0]
    said = judge_categorical(
        "audio", CategoricalSeries(cross_entropy=model, unigram=unigram, complete=True, leak_free=True)
    )
    assert said.verdict == verdict
    assert (said.trs_needed is not None) == (verdict == "CANNOT TELL")


def test_codes_that_a_shifted_copy_predicts_as_well_are_not_learned_from_the_input():
    rng = np.random.default_rng(3)
    unigram = 6 + 0.2 * smooth_field(300, 1, 0.5, rng)[:, 0]
    model = 0.8 * unigram
    copy = shifted(model)
    said = judge_categorical(
        "audio",
        CategoricalSeries(
            cross_entropy=model, unigram=unigram, baselines={"shifted copy": copy}, complete=True, leak_free=True
        ),
    )
    assert said.verdict == "CANNOT TELL"
    assert said.figures["bar"] == "shifted copy"
    broken = CategoricalSeries(cross_entropy=np.full(300, np.nan), unigram=unigram)
    assert judge_categorical("audio", broken).verdict == "NOT LEARNED"


def test_intervals_narrow_with_the_square_root_of_the_trs():
    value = Estimate(value=0.1, low=-0.1, high=0.3, num_trs=50, tau=2.0)
    assert to_lie_above(value) == pytest.approx(200)
    assert to_lie_above(value, 0.2) == math.inf
    assert to_lie_below(value, 0.2) == pytest.approx(200)
    assert to_lie_below(value, 0.05) == math.inf


def test_the_shift_test_needs_shifts_and_then_evidence():
    assert for_shift_test(0.01, 100, 150, 0.025) == 150
    assert for_shift_test(1 / 21, 20, 50, 0.025) == 50 + 39 - 20
    assert for_shift_test(0.16, 100, 150, 0.025) == pytest.approx(150 * (1.96 / 0.9945) ** 2, rel=1e-3)
    assert for_shift_test(0.6, 100, 150, 0.025) == math.inf


def test_decided_is_the_easier_of_two_ways_and_never_less_than_there_is():
    assert decided_after(100, [150.5, 120], [400]) == 151
    assert decided_after(100, [math.inf, 120], [400]) == 400
    assert decided_after(100, [], [math.inf]) is None
    assert decided_after(100, [50], [math.inf]) == 101


def test_the_trs_that_it_asks_for_do_decide():
    few = judge_series("fmri", known_series(60, r=0.34, size=0.5, seed=2))
    assert few.verdict == "CANNOT TELL"
    said = [
        judge_series("fmri", known_series(2 * few.trs_needed, r=0.34, size=0.5, seed=seed)).verdict
        for seed in range(10)
    ]
    assert said.count("LEARNED") >= 8
