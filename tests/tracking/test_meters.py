"""Meters against hand-counted time."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oct_foundation.tracking.meters import MetricGuard, RunningMean, Stopwatch, Throughput


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_throughput_is_samples_over_seconds_of_the_last_updates():
    clock = Clock()
    meter = Throughput(window=2, clock=clock)
    assert meter.samples_per_s == 0.0
    rates = []
    for seconds, num_samples in [(1, 10), (1, 20), (2, 30), (0.5, 5)]:
        clock.wait(seconds)
        meter.update(num_samples)
        rates.append(meter.samples_per_s)
    assert rates == [10.0, 15.0, 50 / 3, 14.0]


def test_time_before_a_restart_does_not_count():
    clock = Clock()
    meter = Throughput(clock=clock)
    meter.update(8)
    clock.wait(1000)  # a compile
    meter.restart()
    clock.wait(2)
    meter.update(8)
    assert meter.samples_per_s == 4.0


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.integers(1, 10))
def test_running_mean_is_the_mean_of_the_tail(values, window):
    meter = RunningMean(window)
    for value in values:
        meter.update(value)
    tail = values[-window:]
    assert meter.value == pytest.approx(sum(tail) / len(tail))


def test_running_mean_of_nothing_is_nan_and_a_nan_leaves_with_its_window():
    meter = RunningMean(2)
    assert math.isnan(meter.value)
    meter.update(float("nan"))
    meter.update(1.0)
    assert math.isnan(meter.value)
    meter.update(3.0)
    assert meter.value == 2.0


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
    phases = {"compile": 10.0, "data_wait": 0.5, "step": 9.0, "checkpoint": 0.0, "validation": 0.0}
    assert split == {**phases, "other": 1.0, "total": 20.5}


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


@pytest.mark.parametrize("make", [lambda: Throughput(window=0), lambda: RunningMean(0), lambda: MetricGuard(0)])
def test_sizes_below_one_are_refused(make):
    with pytest.raises(ValueError, match=r"at least|for 1 step"):
        make()
