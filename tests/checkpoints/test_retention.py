"""Which checkpoints go: by hand-made cases and by the laws that hold for all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oct_foundation.checkpoints.manifest import CheckpointName, Manifest
from oct_foundation.checkpoints.retention import CheckpointSettings, best_of, expendable


def manifest(step: int, attempt: str = "a", **metrics: float | None) -> Manifest:
    named = {f"val/{name}": value for name, value in metrics.items()}
    return Manifest(run="r", step=step, attempt=attempt, time_utc="", files={}, metrics=named, facts={})


def settings(**changes) -> CheckpointSettings:
    return CheckpointSettings(**{"every_steps": 1, "keep_last": 2, **changes})


def steps(names: list[CheckpointName]) -> list[int]:
    return [name.step for name in names]


def test_the_last_ones_stay():
    saved = [manifest(step) for step in (30, 10, 20, 40)]
    assert steps(expendable(saved, settings(), ())) == [10, 20]
    assert steps(expendable(saved, settings(keep_last=9), ())) == []


def test_the_best_stays_besides():
    saved = [manifest(10, loss=0.5), manifest(20, loss=0.1), manifest(30, loss=0.3), manifest(40, loss=0.4)]
    assert steps(expendable(saved, settings(keep_last=1), ())) == [10, 30]
    assert steps(expendable(saved, settings(keep_last=1, best_mode="max"), ())) == [20, 30]
    assert steps(expendable(saved, settings(keep_last=1, keep_best=False), ())) == [10, 20, 30]


def test_a_value_that_is_not_finite_is_never_the_best():
    saved = [manifest(10, loss=None), manifest(20, loss=0.1), manifest(30)]
    best = best_of(saved, settings())
    assert best is not None
    assert best.step == 20
    assert best_of([saved[0], saved[2]], settings()) is None


def test_of_equals_the_newest_is_the_best():
    best = best_of([manifest(20, loss=0.1), manifest(30, loss=0.1), manifest(10, loss=0.1)], settings())
    assert best is not None
    assert best.step == 30


def test_attempts_at_one_step_are_told_apart_the_later_is_the_newer():
    saved = [manifest(10, "20260102T000000-a"), manifest(10, "20260101T000000-b")]
    assert expendable(saved, settings(keep_last=1), ()) == [CheckpointName(step=10, attempt="20260101T000000-b")]


names = st.builds(CheckpointName, step=st.integers(0, 30), attempt=st.sampled_from("abc"))
values = st.none() | st.floats(-1, 1)


wishes_of_all_kinds = st.builds(
    settings, keep_last=st.integers(1, 5), keep_best=st.booleans(), best_mode=st.sampled_from(["min", "max"])
)


@given(st.dictionaries(names, values, max_size=12), st.sets(names), wishes_of_all_kinds)
def test_laws(saved, protected, wishes):
    manifests = [manifest(name.step, name.attempt, loss=value) for name, value in saved.items()]
    gone = expendable(manifests, wishes, protected)
    stay = set(saved) - set(gone)
    assert gone == sorted(gone)
    assert set(gone) <= set(saved)
    assert not protected & set(gone)
    assert set(sorted(saved)[-wishes.keep_last :]) <= stay
    assert len(stay - protected) <= wishes.keep_last + wishes.keep_best
    scores = [value for value in saved.values() if value is not None]
    if wishes.keep_best and scores:
        wanted = min(scores) if wishes.best_mode == "min" else max(scores)
        assert wanted in [saved[name] for name in stay]
    left = [m for m in manifests if m.name in stay]
    assert expendable(left, wishes, protected) == []  # pruning twice changes nothing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_last": 0}, "checkpoint.keep_last is 0"),
        ({"every_steps": 0}, "checkpoint.every_steps is 0"),
        ({"every_steps": 1.5}, "checkpoint.every_steps is 1.5"),
        ({"keep_last": True}, "checkpoint.keep_last is True"),
        ({"best_mode": "lowest"}, "checkpoint.best_mode is 'lowest'"),
        ({"best_metric": ""}, "checkpoint.best_metric is empty"),
    ],
)
def test_wishes_that_make_no_sense_are_refused_by_key(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)
