"""Saving beside training: what is saved is the state of that step, nothing waits that need not, no failure is lost."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from oct_foundation.checkpoints.background import BackgroundSaver
from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.owner import OWNER_KEY, Ownership, TakenOver
from oct_foundation.checkpoints.retention import CheckpointSettings
from oct_foundation.checkpoints.store import StoreError, Unavailable


class TroubledStore(LocalStore):
    """A folder whose writes wait for `gate` and fail `failures` times."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate, self.failures = threading.Event(), 0
        self.gate.set()

    def put(self, key: str, write: Callable[[BinaryIO], None]) -> None:
        assert self.gate.wait(30)
        if self.failures:
            self.failures -= 1
            raise Unavailable(f"cannot write {key}: out for lunch")
        super().put(key, write)


@pytest.fixture
def store(tmp_path: Path) -> TroubledStore:
    return TroubledStore(tmp_path / "checkpoints")


@pytest.fixture
def saver(store: TroubledStore) -> BackgroundSaver:
    return BackgroundSaver(CheckpointManager(store, CheckpointSettings(keep_last=9), run_id="r"), max_failures=3)


def saved(store: LocalStore, step: int | None = None) -> float:
    found = CheckpointManager(store, CheckpointSettings(), run_id="r").restore(step)
    assert found is not None
    return float(found[0]["w"][0])


def steps(store: LocalStore) -> list[int]:
    return CheckpointManager(store, CheckpointSettings(), run_id="r").steps()


def test_training_goes_on_while_the_state_of_the_step_is_written(store: TroubledStore, saver: BackgroundSaver) -> None:
    weights = torch.ones(1000)
    store.gate.clear()
    assert saver.save(1, {"w": weights}, {}, {})
    assert saver.busy
    weights.fill_(7.0)  # the next update
    assert steps(store) == []
    store.gate.set()
    saver.close()
    assert saved(store, 1) == 1.0


def test_a_save_that_comes_too_early_is_skipped_and_counted_and_harms_nothing(
    store: TroubledStore, saver: BackgroundSaver
) -> None:
    store.gate.clear()
    assert saver.save(1, {"w": torch.full((5,), 1.0)}, {}, {})
    assert not saver.save(2, {"w": torch.full((5,), 2.0)}, {}, {})
    store.gate.set()
    saver.save_and_wait(3, {"w": torch.full((5,), 3.0)}, {}, {})
    assert (steps(store), saver.num_skipped) == ([1, 3], 1)
    assert (saved(store, 1), saved(store, 3)) == (1.0, 3.0)


def test_a_failure_is_counted_and_the_next_success_forgives_it(store: TroubledStore, saver: BackgroundSaver) -> None:
    for step, failures in ((1, 1), (2, 0), (3, 1), (4, 1), (5, 0)):
        store.failures = failures
        saver.save(step, {"w": torch.zeros(1)}, {}, {})
        saver.close()
    assert steps(store) == [2, 5]
    assert saver.num_failed == 3


def fail(saver: BackgroundSaver, store: TroubledStore, step: int) -> None:
    store.failures = 1
    saver.save(step, {"w": torch.zeros(1)}, {}, {})
    saver.close()
    assert store.failures == 0, "the fault did not happen"


def test_failures_in_a_row_are_fatal_with_the_cause_but_never_raised_in_a_step(
    store: TroubledStore, saver: BackgroundSaver
) -> None:
    for step in (1, 2):
        fail(saver, store, step)
        assert saver.fatal is None
    fail(saver, store, 3)
    assert "out for lunch" in str(saver.fatal)
    saver.save(4, {"w": torch.zeros(1)}, {}, {})
    saver.close()
    assert (saver.num_failed, saver.fatal) == (3, None)  # a success forgives


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(store: TroubledStore, clock: Clock) -> BackgroundSaver:
    return BackgroundSaver(CheckpointManager(store, CheckpointSettings(keep_last=9), run_id="r"), 99, clock=clock)


@pytest.mark.parametrize(("interval_min", "limit_min"), [(5, 30), (10, 30), (60, 180)])
def test_failures_that_leave_nothing_durable_for_too_long_are_fatal(
    store: TroubledStore, timed: BackgroundSaver, clock: Clock, interval_min: int, limit_min: int
) -> None:
    timed.save_and_wait(0, {"w": torch.zeros(1)}, {}, {})
    for minute in range(interval_min, limit_min + 1, interval_min):
        clock.now = minute * 60.0
        fail(timed, store, minute)
        assert timed.fatal is None
    clock.now += 1.0
    assert f"for {limit_min} min: cannot write" in str(timed.fatal)
    timed.save_and_wait(999, {"w": torch.zeros(1)}, {}, {})
    assert timed.fatal is None


def test_a_save_that_hangs_is_fatal_too(store: TroubledStore, timed: BackgroundSaver, clock: Clock) -> None:
    store.gate.clear()
    for minute in (10, 20, 30):
        clock.now = minute * 60.0
        timed.save(minute, {"w": torch.zeros(1)}, {}, {})
        assert timed.fatal is None
    clock.now += 1.0
    assert "the last save is still being written" in str(timed.fatal)
    store.gate.set()
    timed.close()
    assert timed.fatal is None
    assert timed.num_skipped == 2


def test_a_run_that_seldom_saves_is_not_ended_between_two_saves(timed: BackgroundSaver, clock: Clock) -> None:
    clock.now = 9000.0
    assert timed.fatal is None
    timed.save_and_wait(1, {"w": torch.zeros(1)}, {}, {})
    clock.now = 99000.0
    assert timed.fatal is None


def test_a_takeover_is_fatal_as_soon_as_the_renewing_thread_has_seen_it(store: TroubledStore) -> None:
    ownership = Ownership(store, "a", renew_s=0.02, patience_s=1.0)
    ownership.claim()
    saver = BackgroundSaver(CheckpointManager(store, CheckpointSettings(), "r", "a", ownership=ownership))
    assert saver.fatal is None
    store.commit(f"{OWNER_KEY}/00000002.json", b"somebody's")
    ownership.start_renewing()
    deadline = time.monotonic() + 20
    while saver.fatal is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert isinstance(saver.fatal, TakenOver)
    with pytest.raises(TakenOver):
        saver.save_and_wait(1, {"w": torch.zeros(1)}, {}, {})
    assert steps(store) == []
    ownership.release()


def test_an_emergency_save_gives_up_in_time_and_the_writing_goes_on(
    store: TroubledStore, saver: BackgroundSaver
) -> None:
    store.gate.clear()
    started = time.monotonic()
    with pytest.raises(Unavailable, match="not done in time"):
        saver.save_and_wait(1, {"w": torch.zeros(1)}, {}, {}, timeout_s=0.2)
    with pytest.raises(Unavailable, match="not done in time"):  # now the one before it is in the way
        saver.save_and_wait(2, {"w": torch.zeros(1)}, {}, {}, timeout_s=0.2)
    assert time.monotonic() - started < 10
    store.gate.set()
    saver.close()
    assert steps(store) == [1]
    saver.save_and_wait(2, {"w": torch.zeros(1)}, {}, {}, timeout_s=30)
    assert steps(store) == [1, 2]


def test_the_buffers_made_before_step_1_are_those_of_the_first_save(
    store: TroubledStore, saver: BackgroundSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = {"w": torch.zeros(1000), "list": [torch.ones(5), 1]}
    saver.prepare(live)
    live["w"].fill_(3.0)
    monkeypatch.setattr(torch, "empty", None)  # nothing is allocated any more
    saver.save(1, live, {}, {})
    monkeypatch.undo()
    saver.close()
    assert saved(store, 1) == 3.0


def test_the_last_save_of_a_run_says_when_it_failed(store: TroubledStore, saver: BackgroundSaver) -> None:
    store.failures = 1
    with pytest.raises(StoreError, match="out for lunch"):
        saver.save_and_wait(1, {"w": torch.zeros(1)}, {}, {})


def test_state_that_could_not_be_read_back_is_an_error_at_once(saver: BackgroundSaver) -> None:
    with pytest.raises(TypeError, match="object"):
        saver.save(1, {"w": object()}, {}, {})


def test_facts_that_are_no_json_reach_the_training_thread(saver: BackgroundSaver) -> None:
    saver.save(1, {"w": torch.zeros(1)}, {}, {"set": {1}})
    with pytest.raises(TypeError, match="set"):
        saver.close()
