"""Which checkpoints go: by hand-made cases and by the laws that hold for all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oct_foundation.checkpoints.manifest import CheckpointName, Manifest
from oct_foundation.checkpoints.retention import CheckpointSettings, expendable, ranked


def manifest(step: int, attempt: str = "a", **metrics: float | None) -> Manifest:
    named = {f"val/{name}": value for name, value in metrics.items()}
    return Manifest(run="r", step=step, attempt=attempt, time_utc="", files={}, metrics=named, facts={})


def settings(**changes) -> CheckpointSettings:
    return CheckpointSettings(**{"every_steps": 1, "keep_last": 2, "best_metric": "val/loss", **changes})


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
    assert steps(expendable(saved, settings(keep_last=1, keep_best=0), ())) == [10, 20, 30]
    assert steps(expendable(saved, settings(keep_last=1, keep_best=2), ())) == [10]


def test_every_nth_step_stays():
    saved = [manifest(step) for step in range(10, 101, 10)]
    assert steps(expendable(saved, settings(keep_last=1, keep_every=40), ())) == [10, 20, 30, 50, 60, 70, 90]


def test_a_value_that_is_not_finite_is_never_among_the_best():
    saved = [manifest(10, loss=None), manifest(20, loss=0.1), manifest(30)]
    assert [best.step for best in ranked(saved, settings())] == [20]


def test_without_a_metric_none_is_the_best_and_the_last_ones_stay():
    saved = [manifest(step, loss=loss) for step, loss in ((10, 0.1), (20, 0.3), (30, 0.2))]
    assert ranked(saved, settings(best_metric=None)) == []
    assert steps(expendable(saved, settings(best_metric=None, keep_last=1), ())) == [10, 20]


def test_of_equals_the_newest_is_the_best():
    assert [
        m.step for m in ranked([manifest(20, loss=0.1), manifest(30, loss=0.1), manifest(9, loss=0.0)], settings())
    ] == [
        9,
        30,
        20,
    ]


def test_attempts_at_one_step_are_told_apart_the_later_is_the_newer():
    saved = [manifest(10, "20260102T000000-a"), manifest(10, "20260101T000000-b")]
    assert expendable(saved, settings(keep_last=1), ()) == [CheckpointName(step=10, attempt="20260101T000000-b")]


names = st.builds(CheckpointName, step=st.integers(0, 30), attempt=st.sampled_from("abc"))
values = st.none() | st.floats(-1, 1)


wishes_of_all_kinds = st.builds(
    settings,
    keep_last=st.integers(1, 5),
    keep_best=st.integers(0, 4),
    keep_every=st.none() | st.integers(1, 12),
    best_mode=st.sampled_from(["min", "max"]),
)


def stays(name: CheckpointName, saved: dict[CheckpointName, float | None], wishes: CheckpointSettings) -> bool:
    """The rules one by one, by counting who is ahead of `name`."""
    num_newer = sum(other > name for other in saved)
    num_better, value = 0, saved[name]
    for other, theirs in saved.items():
        if value is not None and theirs is not None:
            is_better = theirs < value if wishes.best_mode == "min" else theirs > value
            num_better += is_better or (theirs == value and other > name)
    return (
        num_newer < wishes.keep_last
        or (value is not None and num_better < wishes.keep_best)
        or (wishes.keep_every is not None and name.step in range(0, 31, wishes.keep_every))
    )


@given(st.dictionaries(names, values, max_size=14), st.sets(names), wishes_of_all_kinds)
def test_what_goes_is_what_no_rule_keeps(saved, protected, wishes):
    manifests = [manifest(name.step, name.attempt, loss=value) for name, value in saved.items()]
    gone = expendable(manifests, wishes, protected)
    assert gone == sorted(name for name in saved if name not in protected and not stays(name, saved, wishes))


@given(st.dictionaries(names, values, max_size=14), st.sets(names), wishes_of_all_kinds)
def test_laws(saved, protected, wishes):
    manifests = [manifest(name.step, name.attempt, loss=value) for name, value in saved.items()]
    gone = expendable(manifests, wishes, protected)
    assert not saved or max(saved) not in gone
    left = [m for m in manifests if m.name not in gone]
    assert expendable(left, wishes, protected) == []  # pruning twice changes nothing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_last": 0}, "checkpoint.keep_last is 0"),
        ({"every_steps": 0}, "checkpoint.every_steps is 0"),
        ({"every_steps": 1.5}, "checkpoint.every_steps is 1.5"),
        ({"keep_last": True}, "checkpoint.keep_last is True"),
        ({"keep_best": -1}, "checkpoint.keep_best is -1; a whole number >= 0"),
        ({"keep_best": True}, "checkpoint.keep_best is True"),
        ({"keep_every": 0}, "checkpoint.keep_every is 0"),
        ({"every_steps": 500, "keep_every": 700}, "keep_every is 700, but steps are saved every 500"),
        ({"best_mode": "lowest"}, "checkpoint.best_mode is 'lowest'"),
        ({"best_metric": ""}, "checkpoint.best_metric is empty"),
    ],
)
def test_wishes_that_make_no_sense_are_refused_by_key(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)
