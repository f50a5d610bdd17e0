import itertools
import math

import pytest

from oct_foundation.optim.schedules import Schedule, Schedules

STEPS_150_EPOCHS = 150 * 18


def by_hand(shape: str, step: int, *, start: float, peak: float, final: float, warmup: int, decay: int, total: int):
    """The definition, written a second time without the class."""
    if step < warmup:
        return start + (peak - start) * step / warmup
    if shape == "constant":
        return peak
    begin = warmup if shape == "cosine" else total - decay
    share = min(max(step - begin, 0) / max(1, total - begin), 1.0)
    if shape == "cosine":
        return final + (peak - final) * (1 + math.cos(math.pi * share)) / 2
    return peak * (1 - share) + final * share


@pytest.mark.parametrize("shape", ["constant", "cosine", "wsd"])
def test_schedule_follows_its_definition_at_every_step(shape):
    schedule = Schedule(
        shape=shape, start=1e-6, peak=1e-3, final=1e-5, warmup_steps=30, decay_steps=40, total_steps=200
    )
    for step in range(260):
        expected = by_hand(shape, step, start=1e-6, peak=1e-3, final=1e-5, warmup=30, decay=40, total=200)
        assert schedule(step) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", ["constant", "cosine", "wsd"])
def test_no_schedule_restarts_over_150_epochs(shape):
    schedule = Schedule(
        shape=shape, peak=1e-4, final=1e-6, warmup_steps=100, decay_steps=500, total_steps=STEPS_150_EPOCHS
    )
    values = [schedule(step) for step in range(STEPS_150_EPOCHS + 1)]
    assert values[0] == 0.0
    assert values[100] == max(values) == 1e-4
    after = values[100:]
    assert all(later <= earlier for earlier, later in itertools.pairwise(after)), "it rose again: a restart"
    assert after[-1] == pytest.approx(1e-4 if shape == "constant" else 1e-6)


def test_values_depend_on_the_step_alone():
    schedule = Schedule(shape="cosine", peak=1.0, total_steps=100, warmup_steps=10)
    forwards = [schedule(step) for step in range(100)]
    assert [schedule(step) for step in reversed(range(100))] == forwards[::-1]


def test_weight_decay_may_rise():
    schedule = Schedule(shape="cosine", peak=0.04, final=0.4, total_steps=10)
    assert schedule(0) == pytest.approx(0.04)
    assert schedule(10) == pytest.approx(0.4)


def test_schedules_name_their_scalars():
    one = Schedule(shape="constant", peak=0.5, total_steps=1)
    assert Schedules(learning_rate=one, weight_decay=one, ema_momentum=one).at(0) == {
        "learning_rate": 0.5,
        "weight_decay": 0.5,
        "ema_momentum": 0.5,
    }


@pytest.mark.parametrize("wrong", [{"total_steps": 0}, {"warmup_steps": -1}, {"warmup_steps": 8, "decay_steps": 8}])
def test_impossible_lengths_are_refused(wrong):
    with pytest.raises(ValueError, match=r"total_steps|warmup_steps"):
        Schedule(**{"shape": "cosine", "peak": 1.0, "total_steps": 10, **wrong})
