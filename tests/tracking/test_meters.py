"""Meters against hand-counted time."""

import pytest

from oct_foundation.tracking.meters import MetricGuard, Stopwatch


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_the_split_of_wall_time_adds_up_with_phases_inside_phases():
    clock = Clock()
    watch = Stopwatch(clock)
    clock.wait(1)
    with watch.phase("step"):
        clock.wait(2)
        with watch.phase("compile"):
            clock.wait(10)
            with watch.phase("data_wait"):
                clock.wait(0.5)
        clock.wait(3)
    with watch.phase("step"):
        clock.wait(4)
    split = watch.split()
    idle = dict.fromkeys(("logging", "checkpoint", "validation", "diagnostics"), 0.0)
    assert split == {"compile": 10.0, "data_wait": 0.5, "step": 9.0, **idle, "other": 1.0, "total": 20.5}


def test_time_whose_phase_is_known_afterwards_leaves_the_phase_around_it():
    clock = Clock()
    watch = Stopwatch(clock)
    with watch.phase("step"):
        clock.wait(5)
        watch.add("compile", 4)
    clock.wait(2)
    watch.add("data_wait", 2)
    split = watch.split()
    assert (split["step"], split["compile"], split["data_wait"], split["other"]) == (1.0, 4.0, 2.0, 0.0)


def test_a_phase_that_raises_counts_too():
    clock = Clock()
    watch = Stopwatch(clock)

    def save() -> None:
        with watch.phase("checkpoint"):
            clock.wait(3)
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        save()
    with watch.phase("step"):
        clock.wait(1)
    assert (watch.split()["checkpoint"], watch.split()["step"], watch.split()["other"]) == (3.0, 1.0, 0.0)


def test_the_guard_is_silent_while_train_metrics_come():
    guard = MetricGuard(max_gap_steps=4)
    for step in range(1, 100):
        if step % 4 == 0:
            guard.log({"train/loss": 1.0}, step)
        assert guard.check(step) is None


def test_the_guard_tells_once_when_only_validation_still_comes():
    guard = MetricGuard(max_gap_steps=4)
    guard.log({"train/loss": 1.0}, 10)
    told = []
    for step in range(11, 31):
        guard.log({"val/loss": 1.0}, step)
        told.append(guard.check(step))
    assert told[:4] == [None] * 4
    assert told[4] is not None
    assert "since step 10" in told[4]
    assert "at step 15" in told[4]
    assert told[5:] == [None] * 15
    guard.log({"train/loss": 1.0}, 31)
    assert [guard.check(step) is not None for step in (35, 36)] == [False, True]  # armed again


def test_the_guard_counts_from_the_resumed_step():
    guard = MetricGuard(max_gap_steps=4, start_step=1000)
    assert guard.check(1004) is None
    assert guard.check(1005) is not None


def test_a_gap_below_one_is_refused():
    with pytest.raises(ValueError, match="1 step at least"):
        MetricGuard(0)
