import math

import pytest

from oct_foundation.diagnostics.loss_course import (
    LossCourse,
    best_final_gap,
    divergence,
    dominance,
    flat_loss,
    not_finite,
    over_fit,
    partial_validation,
)


def course(losses, epochs=None, name="train loss", **known) -> LossCourse:
    return LossCourse(name=name, epochs=epochs or range(1, len(losses) + 1), losses=losses, **known)


def falling(count: int, start: float = 1.0, end: float = 0.4) -> list[float]:
    return [end + (start - end) * math.exp(-epoch / 5) for epoch in range(count)]


def test_the_replay_of_report_002_is_flat_with_its_figures():
    found = flat_loss(course([725.73, 720.70, 721.16, 707.66], epochs=[1, 2, 3, 29]))
    assert found.severity == "warning"
    assert "725.73 to 707.66" in found.evidence
    assert "-2.5%" in found.evidence
    assert flat_loss(course([725.73, 720.70, 721.16])) is None


def test_a_loss_that_falls_is_not_flat_nor_diverged():
    losses = falling(20)
    for known in ({}, {"baseline": 1.0, "best": 0.2}):
        assert flat_loss(course(losses, **known)) is None
        assert divergence(course(losses, **known)) is None


def test_near_its_baseline_a_standstill_is_a_warning_and_near_its_ceiling_an_info():
    stuck = course([1.0 - 0.0001 * epoch for epoch in range(15)], baseline=1.0, best=0.2)
    assert flat_loss(stuck).severity == "warning"
    done = course([0.25 - 0.0001 * epoch for epoch in range(15)], baseline=1.0, best=0.2)
    assert flat_loss(done).severity == "info"
    assert "94% of the way" in flat_loss(done).evidence


def test_a_loss_that_ends_above_its_start_has_diverged():
    found = divergence(course([1.0, 0.8, 1.5, 2.0, 2.2]))
    assert found.severity == "alarm"
    assert divergence(course([1.0, 0.8, 0.7, 5.0, 0.7])) is None  # one spike is none
    assert flat_loss(course([1.0 + 0.1 * epoch for epoch in range(15)])) is None


def test_validation_that_rises_while_training_falls_is_over_fit():
    train = course(falling(20))
    val = course(falling(8) + [0.55 + 0.02 * epoch for epoch in range(12)], name="val loss")
    found = over_fit(train, val, patience=20)
    assert "best at epoch 8" in found.evidence
    assert over_fit(train, val, patience=40) is None  # half the patience is not over
    assert over_fit(train, course(falling(20), name="val loss"), patience=10) is None
    assert over_fit(course([1.0] * 20), val, patience=20) is None  # training stands still
    plateau = [*falling(8), 0.56, 0.55, 0.57, 0.55, 0.56, 0.55, 0.57, 0.56, 0.55, 0.56, 0.55, 0.57]
    assert over_fit(train, course(plateau, name="val loss"), patience=10) is None


@pytest.mark.parametrize(("saved", "severity"), [(True, "warning"), (None, "warning"), (False, "alarm")])
def test_the_gap_of_report_002_is_found_with_its_figures(saved, severity):
    found = best_final_gap(167.15, 274.71, 29, best_saved=saved)
    assert found.severity == severity
    assert "274.71" in found.evidence
    assert "167.15 (+64%)" in found.evidence
    assert ("in no file" in found.evidence) == (saved is False)
    assert best_final_gap(167.15, 168.0, 29, best_saved=saved) is None


def test_nan_is_never_averaged_away():
    rows = [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 1.0, "grad": math.inf}, {"epoch": 3, "loss": math.nan}]
    found = not_finite(rows)
    assert found.severity == "alarm"
    assert found.step == 2
    assert "grad from epoch 2, loss from epoch 3" in found.evidence
    assert not_finite(rows[:1]) is None


def test_24_of_190_trs_are_partial():
    assert "24 of 190" in partial_validation(24, 190, 29).evidence
    assert partial_validation(190, 190, 29) is None


def test_one_modality_above_80_percent_dominates():
    found = dominance({"video": 0.25, "audio": 295.0, "text": 0.018, "fmri": 0.5}, "the loss", 1)
    assert found.evidence == "audio makes 99.7% of the loss."
    assert dominance({"video": 0.79, "fmri": 0.21}, "the loss", 1) is None
    assert dominance({"fmri": 1.0}, "the loss", 1) is None
    assert dominance({"fmri": math.nan, "video": 1.0}, "the loss", 1) is None


def test_a_course_that_is_none_is_refused():
    with pytest.raises(ValueError, match="epochs must rise"):
        course([1.0, 2.0], epochs=[2, 1])
    with pytest.raises(ValueError, match="best must be below"):
        course([1.0], baseline=0.5, best=0.5)
    with pytest.raises(ValueError, match="same epochs"):
        over_fit(course([1.0]), course([1.0, 2.0]), patience=1)
