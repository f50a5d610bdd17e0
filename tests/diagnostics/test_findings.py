"""Each rule on readings made for it: when it speaks, when it is silent, what it says; and the nine toy runs."""

import math
from dataclasses import replace

import pytest

from oct_foundation.diagnostics.findings import Finding, Reading, Thresholds, find
from tests.diagnostics.toy_runs import DEAD, NEARLY_DEAD, TABLE, WARMUP_STEPS, toy_run

HEALTHY = {
    "num_volumes": 64.0,
    "loss": 0.1,
    "loss_pos": 0.4,
    "loss_global": 0.45,
    "pos_ratio": 0.25,
    "ev_pos": 0.7,
    "centred_cos": 0.8,
    "foreground_pos_ratio": 0.3,
    "pooled_std": 0.1,
    "pooled_std_online": 0.11,
    "pooled_std_relative": 0.2,
    "token_cosine": 0.7,
    "rankme_tokens": 40.0,
    "rankme_centred": 38.0,
    "rankme_pooled": 12.0,
    "lidar": 10.0,
    "ema_gap/encoder": 0.02,
    "update_ratio/encoder": 1e-3,
    "update_ratio/predictor": 2e-3,
    "ema_momentum": 0.996,
    "learning_rate": 1e-4,
    "clipped_share": 0.1,
    "input_std": 0.9,
    "domain_loss/zeiss": 0.1,
    "domain_loss/topcon": 0.11,
    "domain_loss/heidelberg": 0.09,
}


def run(count=3, every=100, **changes):
    """A healthy run whose values all move; `changes` of a name: a list from step 0 on, or one value for all."""
    readings = []
    for index in range(count):
        drift = 1 - 0.01 * index
        values = {name: value if name == "num_volumes" else value * drift for name, value in HEALTHY.items()}
        for name, change in changes.items():
            name = name.replace("__", "/")
            value = change[index] if isinstance(change, list) else change
            values.pop(name, None) if value is None else values.update({name: value})
        readings.append(Reading(step=index * every, values=values))
    return readings


def names(readings, **settings):
    return [finding.name for finding in find(readings, **settings)]


def only(readings, **settings) -> Finding:
    (finding,) = find(readings, **settings)
    return finding


@pytest.mark.parametrize("count", range(9))
def test_a_healthy_run_gives_no_finding(count):
    assert names(run(count)) == []


def test_both_signs_of_a_collapse_twice_are_an_alarm_with_the_numbers():
    found = find(run(pos_ratio=[8.0, 1.2, 1.09], pooled_std=[0.1, 0.025, 0.022], ev_pos=None, centred_cos=None))
    assert [finding.name for finding in found] == ["collapse"]
    assert (found[0].severity, found[0].step) == ("alarm", 200)
    for number in ("100 and 200", "1.2 and 1.09", "0.25 and 0.22", "0.33"):
        assert number in found[0].evidence
    assert "optim.ema_momentum" in found[0].remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"pos_ratio": [8, 1.9, 0.9], "pooled_std": [0.1, 0.03, 0.03]},
        {"pos_ratio": [8, 0.9, 1.9], "pooled_std": [0.1, 0.03, 0.03]},
        {"pos_ratio": [8, 1.9, 1.9], "pooled_std": [0.1, 0.05, 0.03]},
        {"pos_ratio": [8, 1.9, 1.9], "pooled_std": [0.1, 0.03, math.nan]},
        {"pos_ratio": [8, 1.9, 1.9], "pooled_std": [None, 0.03, 0.03]},
        {"pos_ratio": [8, None, 1.9], "pooled_std": [0.1, 0.03, 0.03]},
    ],
)
def test_one_sign_or_one_reading_is_no_collapse(changes):
    assert "collapse" not in names(run(**changes))


def test_the_dead_state_of_an_early_phase_is_no_alarm():
    """All toy runs with EMA .9 were at pos_ratio 1.9 and .3 of their spread once, at step 100, and recovered."""
    assert names(run(2, pos_ratio=[8.0, 1.9], pooled_std=[0.1, 0.03])) == []
    early = run(4, pos_ratio=[8.0, 1.9, 1.9, 1.9], pooled_std=[0.1, 0.03, 0.03, 0.03], centred_cos=None, ev_pos=None)
    assert names(early[:3], warmup_steps=200) == []
    assert names(early, warmup_steps=200) == ["collapse"]
    assert names(early, warmup_steps=201) == []


def test_the_first_reading_never_counts_as_one_of_two():
    assert names(run(2, pos_ratio=1.5, token_cosine=0.99, clipped_share=1.0, update_ratio__encoder=0.0)) == []


def test_a_resumed_run_that_reads_the_same_step_again_has_read_it_once():
    first, second = run(2, pos_ratio=[8.0, 1.9], pooled_std=[0.1, 0.03])
    assert names([first, second, second]) == []


def test_readings_may_come_in_any_order_and_the_later_of_a_step_counts():
    readings = run(pos_ratio=[8.0, 1.2, 1.1], pooled_std=[0.1, 0.03, 0.03], ev_pos=None, centred_cos=None)
    assert names(readings[::-1]) == ["collapse"]
    corrected = replace(readings[2], values={**readings[2].values, "pos_ratio": 0.2})
    assert "collapse" not in names([*readings, corrected])


@pytest.mark.parametrize(
    "sign", [{"pos_ratio": [8, 1.0, 1.3]}, {"ev_pos": [-5, -0.1, 0.0]}, {"centred_cos": [0, -0.02, -0.2]}]
)
def test_each_sign_of_a_predictor_that_knows_the_position_only_is_a_warning(sign):
    finding = only(run(**sign))
    assert (finding.name, finding.severity) == ("position_only", "warning")
    assert f"{next(iter(sign.values()))[2]:.3g}" in finding.evidence


@pytest.mark.parametrize(
    ("changes", "name", "severity"),
    [
        ({"pooled_std": [0.1, 0.03, 0.02]}, "shrunk_features", "warning"),
        ({"token_cosine": [0.7, 0.985, 0.99]}, "same_tokens", "warning"),
        ({"loss_pos": [0.06, 0.01, 0.002], "pos_ratio": 0.5}, "baseline_fallen", "warning"),
        ({"loss_global": [0.1, 0.01, 0.019]}, "baseline_fallen", "warning"),
        ({"pos_ratio": [8.0, 0.009, 0.002]}, "too_good", "warning"),
        ({"foreground_pos_ratio": [8.0, 1.1, 1.2]}, "background_only", "info"),
        ({"update_ratio__predictor": [0.1, 0.0, 0.0]}, "predictor_stands", "warning"),
        ({"update_ratio__encoder": [0.1, 0.0, 0.0]}, "nothing_trains", "alarm"),
        ({"pooled_std_online": 0.11}, "nothing_trains", "alarm"),
        ({"ema_gap__encoder": [0.0, 0.0, 0.0]}, "ema_copies", "warning"),
        ({"pooled_std": 0.1, "token_cosine": 0.7, "rankme_tokens": 40.0}, "ema_frozen", "alarm"),
        ({"input_std": [0.9, 0.002, 0.001]}, "constant_input", "warning"),
        ({"input_std": [0.9, 0.2, 0.2]}, "constant_input", "warning"),
        ({"input_distinct": [1.0, 0.2, 0.4]}, "repeated_input", "warning"),
        ({"pooled_std_relative": [1e-8, 0.1, 0.1]}, "constant_input", "warning"),
        ({"domain_loss__topcon": [0.1, 0.16, 0.2]}, "maker_behind", "info"),
        ({"clipped_share": [0.0, 0.6, 0.9]}, "mostly_clipped", "info"),
    ],
)
def test_a_rule_speaks_when_its_sign_holds_twice_and_is_silent_after_once(changes, name, severity):
    finding = only(run(**changes))
    assert (finding.name, finding.severity, finding.step) == (name, severity, 200)
    assert "100 and 200" in finding.evidence or name == "constant_input"
    once = {key: [*change[:1], None, *change[2:]] for key, change in changes.items() if isinstance(change, list)}
    if "pooled_std_relative" not in once:
        assert name not in names(run(2, **changes)), "one reading after the start"
        assert not once or name not in names(run(**once)), "the reading in between lacks the value"


def test_a_distance_of_teacher_and_student_that_stands_still_is_a_frozen_teacher():
    finding = only(run(4, ema_gap__encoder=[0.0, 0.02, 0.02, 0.02]))
    assert (finding.name, finding.severity) == ("ema_frozen", "alarm")
    assert "0.02" in finding.evidence
    assert names(run(4, ema_gap__encoder=[0.0, 0.02, 0.0201, 0.02])) == []


def test_a_teacher_may_stand_still_at_momentum_1_but_not_from_the_start():
    """Momentum schedules end at 1; a teacher that is what it was before training is delivered untrained."""
    gaps = [0.0, 0.02, 0.02, 0.02]
    assert names(run(4, ema_gap__encoder=gaps, ema_momentum=[0.996, 0.999, 0.9999, 1.0])) == []
    frozen = run(ema_momentum=1.0, pooled_std=0.1, token_cosine=0.7, rankme_tokens=40.0)
    assert names(frozen) == ["ema_frozen"]


def test_identical_networks_without_a_learning_rate_are_no_copies():
    assert names(run(ema_gap__encoder=0.0, learning_rate=0.0)) == []


def test_an_update_that_is_nan_is_no_update():
    assert names(run(update_ratio__encoder=[0.1, math.nan, math.nan])) == ["not_finite", "nothing_trains"]


def test_a_jump_of_the_update_is_measured_against_its_own_median():
    usual = [1e-1, 1e-3, 2e-3, 1.5e-3]
    assert names(run(5, update_ratio__encoder=[*usual, 1.4e-2])) == []
    finding = only(run(5, update_ratio__encoder=[*usual, 1.6e-2]))
    assert (finding.name, finding.severity) == ("update_jump", "warning")
    assert "update_ratio/encoder 0.016 after 0.0015" in finding.evidence
    assert names(run(4, update_ratio__encoder=[1e-1, 1e-3, 1e-3, 1.0])) == [], "two readings make no median"


def test_half_the_rank_is_worth_a_look_only():
    finding = only(run(5, rankme_pooled=[50, 12, 13, 12, 5.9]))
    assert (finding.name, finding.severity) == ("rank_halved", "info")
    assert "rankme_pooled 5.9 after 12" in finding.evidence
    assert names(run(5, rankme_pooled=[50, 12, 13, 12, 6.1])) == []


@pytest.mark.parametrize(
    ("lidars", "losses", "expected"),
    [
        ([22, 10, 8, 6], [0.5, 0.11, 0.10, 0.09], ["lidar_falling"]),
        ([22, 10, 8, 6], [0.5, 0.09, 0.10, 0.11], []),
        ([22, 10, 12, 6], [0.5, 0.11, 0.10, 0.09], []),
        ([22, 10, 9.5, 9], [0.5, 0.11, 0.10, 0.09], []),
    ],
)
def test_lidar_that_falls_with_the_loss_is_a_warning(lidars, losses, expected):
    assert names(run(4, lidar=lidars, loss=losses)) == expected


@pytest.mark.parametrize(("last", "expected"), [(0.31, ["loss_jump"]), (0.29, []), (0.051, []), (0.049, ["loss_drop"])])
def test_a_loss_is_measured_against_the_median_of_recent_readings(last, expected):
    losses = [9.0, 8.0, 8.0, 7.0, 7.0, 6.0, 6.0, 0.1, 0.1, 0.1, 0.1, 0.1, last]
    assert names(run(13, loss=losses)) == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_an_alarm_at_once_even_during_warm_up(bad):
    finding = only(run(1, loss=bad, lidar=bad), warmup_steps=1000)
    assert (finding.name, finding.severity, finding.step) == ("not_finite", "alarm", 0)
    assert "lidar, loss" in finding.evidence
    many = Reading(step=7, values={f"value_{index}": bad for index in range(9)})
    assert "and 4 more" in only([many]).evidence


def test_the_makers_own_scans_do_not_count_as_the_others():
    """Two makers: each is compared with the other, and the better one is never behind."""
    readings = run(domain_loss__heidelberg=None, domain_loss__topcon=[0.1, 0.2, 0.2])
    assert "topcon 2.0 times" in only(readings).evidence
    assert names(run(domain_loss__heidelberg=None, domain_loss__topcon=None)) == []


def test_every_finding_has_evidence_with_a_number_and_a_remedy_in_sentences():
    everything = run(
        5,
        pos_ratio=[8, 1, 1, 1.2, 1.1],
        pooled_std=[0.1, 0.1, 0.1, 0.03, 0.03],
        token_cosine=0.99,
        loss_pos=[0.4, 0.1, 0.1, 0.01, 0.01],
        loss=[0.4, 0.1, 0.1, 0.1, 0.9],
        rankme_tokens=[40, 40, 40, 40, 4],
        clipped_share=1.0,
        input_std=0.0,
        ema_gap__encoder=0.0,
        update_ratio__predictor=0.0,
        domain_loss__topcon=3.0,
        lidar=math.nan,
    )
    found = find(everything)
    assert len(found) >= 9
    assert len({finding.name for finding in found}) == len(found)
    severities = [finding.severity for finding in found]
    assert severities == sorted(severities, key=["alarm", "warning", "info"].index), "the gravest first"
    for finding in found:
        assert any(character.isdigit() for character in finding.evidence) or finding.name == "not_finite"
        assert finding.evidence.endswith(".")
        assert finding.remedy.endswith(".")


def test_thresholds_move_the_lines():
    readings = run(pos_ratio=[8, 0.8, 0.8])
    assert names(readings) == []
    assert names(readings, thresholds=Thresholds(pos_ratio=0.7)) == ["position_only"]


@pytest.mark.parametrize("bad", [-0.1, math.inf, math.nan])
def test_a_threshold_that_is_no_line_is_refused(bad):
    with pytest.raises(ValueError, match=r"threshold spread must be .* found"):
        Thresholds(spread=bad)


@pytest.mark.parametrize("name", TABLE)
def test_of_nine_toy_runs_the_dead_alone_raise_an_alarm_and_do_so_at_step_300(name):
    readings = toy_run(name)
    for end in (1, 2, 3, 4):
        alarms = [f.name for f in find(readings[:end], warmup_steps=WARMUP_STEPS) if f.severity == "alarm"]
        assert alarms == (["collapse"] if name in DEAD and end >= 3 else []), f"step {readings[end - 1].step}"


def test_the_toy_run_that_nearly_died_is_warned_of_at_300_and_cleared_at_600():
    readings = toy_run(NEARLY_DEAD)
    assert "position_only" in names(readings[:3], warmup_steps=WARMUP_STEPS)
    assert "position_only" not in names(readings, warmup_steps=WARMUP_STEPS)
