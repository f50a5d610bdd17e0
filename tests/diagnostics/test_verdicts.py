"""The verdict on runs whose truth is known: nine toy runs, states built by hand, and records that are cut short."""

import math

import pytest

from oct_foundation.diagnostics.findings import Reading, Thresholds
from oct_foundation.diagnostics.verdicts import judge
from tests.diagnostics.toy_runs import DEAD, TABLE, WARMUP_STEPS, toy_run


def run(ratios=(8.0, 0.5, 0.3), spreads=(0.1, 0.09, 0.1), **changes):
    """Readings every 100 steps; `changes` of a name: a list for the readings from step 0 on, or one value for all."""
    readings = []
    for index, (ratio, spread) in enumerate(zip(ratios, spreads, strict=True)):
        values = {
            "num_volumes": 64,
            "pos_ratio": ratio,
            "pooled_std": spread,
            "pooled_std_online": spread * (1 + 0.1 * index),
            "update_ratio/encoder": 1e-3,
        }
        for name, change in changes.items():
            name = name.replace("__", "/")
            value = change[index] if isinstance(change, list) else change
            values.pop(name, None) if value is None else values.update({name: value})
        readings.append(Reading(step=100 * index, values=values))
    return readings


DYING = {"ratios": (8.0, 1.2, 1.1), "spreads": (0.1, 0.025, 0.022)}


@pytest.mark.parametrize("probes", [False, True])
@pytest.mark.parametrize("name", TABLE)
def test_of_nine_toy_runs_the_dead_are_collapsed_and_the_others_are_not(name, probes):
    """The live ones crossed the line between steps 100 and 600; their last two readings are on the good side, or not
    both: the run that nearly died had one good reading only, and its probes decide."""
    verdict = judge(toy_run(name, probes=probes), warmup_steps=WARMUP_STEPS).verdict
    live = "CANNOT TELL" if name == "ema 0, seed 2" and not probes else "LEARNING"
    assert verdict == ("COLLAPSED" if name in DEAD else live)


@pytest.mark.parametrize("name", TABLE)
def test_a_toy_run_that_crashed_early_is_not_judged_too_soon(name):
    readings = toy_run(name)
    for end in (0, 1, 2):
        assert judge(readings[:end], warmup_steps=WARMUP_STEPS).verdict == "CANNOT TELL"
    at_300 = judge(readings[:3], warmup_steps=WARMUP_STEPS)
    assert (at_300.verdict == "COLLAPSED") is (name in DEAD)
    assert at_300.verdict != "LEARNING", "one reading of two was still at or above the line"


def test_a_run_that_beats_the_average_scan_and_keeps_its_spread_is_learning():
    judgement = judge(run())
    assert judgement.verdict == "LEARNING"
    assert judgement.findings == ()
    assert "0.5 and 0.3" in judgement.reasons[0]
    assert "0.9 and 1" in judgement.reasons[1]


def test_the_loss_has_no_say():
    for loss in (0.00033, 0.5):
        assert judge(run(loss=loss)).verdict == "LEARNING"
        assert judge(run(**DYING, loss=loss)).verdict == "COLLAPSED"


def test_a_collapse_is_told_with_its_numbers_and_its_finding():
    judgement = judge(run(**DYING))
    assert judgement.verdict == "COLLAPSED"
    assert [finding.name for finding in judgement.findings] == ["collapse"]
    assert "1.2 and 1.1" in judgement.reasons[0]
    assert "0.25 and 0.22" in judgement.reasons[1]


def test_the_early_phase_alone_is_no_collapse():
    once = run(ratios=(8.0, 1.9, 0.6), spreads=(0.1, 0.03, 0.09))
    assert judge(once).verdict == "CANNOT TELL"
    recovered = run(ratios=(8.0, 1.9, 0.6, 0.4), spreads=(0.1, 0.03, 0.09, 0.1))
    assert judge(recovered).verdict == "LEARNING"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"update_ratio__encoder": 0.0}, "0 and 0"),
        ({"pooled_std_online": 0.1}, "same features"),
        ({"spreads": (0.1, 0.1, 0.1), "token_cosine": 0.7, "rankme_tokens": 20.0}, "teacher"),
        ({"loss": [0.4, 0.3, math.nan]}, "loss"),
        ({"ratios": (8.0, 1.2, 1.0)}, "1.2 and 1"),
    ],
)
def test_what_stands_still_breaks_or_knows_the_position_only_is_not_learning(changes, word):
    judgement = judge(run(**changes))
    assert judgement.verdict == "NOT LEARNING"
    assert word in " ".join(judgement.reasons)


def test_broken_numbers_are_told_from_one_reading():
    assert judge(run()[:1]).verdict == "CANNOT TELL"
    broken = run(loss=math.nan)[:1]
    assert judge(broken, warmup_steps=500).verdict == "NOT LEARNING"


def probes(trained, untrained, other=0.5):
    """Scores at the last reading: of one label, and of another that is the same for both encoders."""
    scores = {"probe__age": trained, "probe_init__age": untrained, "probe__laterality": other}
    return {**{name: [None, None, score] for name, score in scores.items()}, "probe_init__laterality": other}


@pytest.mark.parametrize(
    ("state", "trained", "untrained", "verdict"),
    [
        ({}, 0.8, 0.5, "LEARNING"),
        ({}, 0.5, 0.5, "NOT LEARNING"),
        ({}, 0.4, 0.5, "NOT LEARNING"),
        (DYING, 0.4, 0.5, "COLLAPSED"),
        (DYING, 0.8, 0.5, "CANNOT TELL"),
        ({"ratios": (8.0, 1.2, 1.1)}, 0.8, 0.5, "CANNOT TELL"),
        ({"ratios": (8.0, 1.2, 1.1)}, 0.4, 0.5, "NOT LEARNING"),
    ],
)
def test_probes_confirm_or_contradict_the_features(state, trained, untrained, verdict):
    judgement = judge(run(**state, **probes(trained, untrained)))
    assert judgement.verdict == verdict
    mean_trained, mean_untrained = (trained + 0.5) / 2, (untrained + 0.5) / 2
    assert f"(age, laterality) was {mean_trained:.3g}, and {mean_untrained:.3g}" in judgement.reasons[-1]


def test_probes_that_are_behind_count_only_after_a_quarter_of_the_run():
    readings = run(**probes(0.4, 0.5))
    assert judge(readings, total_steps=1000).verdict == "LEARNING"
    assert "too early" in judge(readings, total_steps=1000).reasons[-1]
    assert judge(readings, total_steps=800).verdict == "NOT LEARNING"


def test_the_newest_probes_count_even_where_the_last_reading_has_none():
    readings = run((8.0, 0.5, 0.4, 0.3), (0.1,) * 4, probe__age=[0.5, 0.9, 0.4, None], probe_init__age=0.5)
    assert judge(readings).verdict == "NOT LEARNING"


def test_a_probe_without_its_control_says_nothing():
    assert judge(run(probe__age=0.1)).verdict == "LEARNING"


def test_prediction_without_spread_is_a_contradiction():
    judgement = judge(run(spreads=(0.1, 0.03, 0.03)))
    assert judgement.verdict == "CANNOT TELL"
    assert [finding.name for finding in judgement.findings] == ["shrunk_features"]


def test_scans_that_all_look_the_same_to_the_untrained_encoder_are_not_learned_from():
    judgement = judge(run(ratios=(1.0, 1e6, 1e6), spreads=(0.0, 0.0, 0.1)))
    assert judgement.verdict == "NOT LEARNING"
    assert "no measure" in judgement.reasons[1]


def test_held_out_scans_that_never_differ_say_nothing():
    judgement = judge(run(ratios=(1.0, 1e6, 1e6), spreads=(0.0, 0.0, 0.0), centred_cos=0.0))
    assert judgement.verdict == "CANNOT TELL"
    assert "copies of one scan" in judgement.reasons[0]
    assert judgement.findings == ()
    assert judge(run(ratios=(8.0, 1e6, 1e6), spreads=(0.1, 0.0, 0.0))).verdict == "COLLAPSED"


@pytest.mark.parametrize(("num_volumes", "verdict"), [(7, "CANNOT TELL"), (8, "LEARNING")])
def test_too_few_volumes_say_nothing(num_volumes, verdict):
    judgement = judge(run(num_volumes=num_volumes))
    assert judgement.verdict == verdict
    assert num_volumes == 8 or "7 held-out volumes" in judgement.reasons[0]


def test_a_record_without_its_start_or_its_values_says_what_is_missing():
    assert "step 0" in judge(run()[1:]).reasons[0]
    judgement = judge(run(pos_ratio=[8.0, None, 0.3]))
    assert judgement.verdict == "CANNOT TELL"
    assert "lack pos_ratio" in judgement.reasons[0]
    assert "0 of the 2 readings after the warm-up of 500 steps" in judge(run(), warmup_steps=500).reasons[0]


def test_no_record_is_judged_as_such():
    judgement = judge([])
    assert judgement.verdict == "CANNOT TELL"
    assert len(judgement.reasons) == 2


@pytest.mark.parametrize("state", [{}, DYING, {"loss": math.nan}, {"num_volumes": 3}, {"update_ratio__encoder": 0.0}])
def test_every_prefix_of_a_record_has_a_verdict_with_reasons_in_sentences(state):
    readings = run(**state)
    for end in range(len(readings) + 1):
        reasons = judge(readings[:end]).reasons
        assert reasons
        assert all(reason.endswith(".") and reason[0].isupper() for reason in reasons)


def test_thresholds_move_the_verdict():
    assert judge(run(), thresholds=Thresholds(pos_ratio=0.2)).verdict == "NOT LEARNING"
    assert judge(run(**probes(0.8, 0.5)), thresholds=Thresholds(probe_gain=0.2)).verdict == "NOT LEARNING"


@pytest.mark.parametrize(
    ("cosines", "legible", "verdict"),
    [
        ((0.0, 0.5, 0.5), (0.2, 0.2, 0.2), "LEARNING"),
        ((0.0, 0.2, 0.2), (0.2, 0.2, 0.2), "NOT LEARNING"),
        ((0.0, 0.5, 0.5), (0.2, 0.1, 0.1), "LEARNING"),  # runs that gained lost some of it
        ((0.0, 0.2, 0.2), (0.2, 0.1, 0.1), "NOT LEARNING"),
        ((0.0, -0.1, -0.1), (0.2, 0.3, 0.3), "LEARNING"),  # a predictor that was taught nonsense
        ((0.0, 0.5, 0.5), (-0.1, 0.2, 0.2), "LEARNING"),  # no measure: random features said nothing
    ],
)
def test_what_can_be_read_off_features_is_a_witness_of_its_own(cosines, legible, verdict):
    judgement = judge(run(centred_cos=list(cosines), scan_r2=list(legible)))
    assert judgement.verdict == verdict
    assert f"{cosines[1]:.3g} and {cosines[2]:.3g}" in judgement.reasons[0]


def test_likeness_decides_where_the_error_beside_the_average_scan_says_otherwise():
    assert judge(run(ratios=(8.0, 1.05, 1.1), centred_cos=[0.0, 0.6, 0.6])).verdict == "LEARNING"
    assert judge(run(ratios=(8.0, 0.7, 0.7), centred_cos=[0.0, 0.2, 0.2])).verdict == "NOT LEARNING"


def test_before_a_hundred_updates_nothing_is_judged():
    readings = [Reading(step=reading.step // 10, values=reading.values) for reading in run()]
    judgement = judge(readings)
    assert judgement.verdict == "CANNOT TELL"
    assert "Only 20 updates" in judgement.reasons[0]
