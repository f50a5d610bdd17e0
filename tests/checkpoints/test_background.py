"""Saving beside training: what is saved is the state of that step, nothing waits that need not, no failure is lost."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from oct_foundation.checkpoints.background import BackgroundSaver
from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.manager import CheckpointManager
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


def test_failures_in_a_row_end_the_run_with_the_cause(store: TroubledStore, saver: BackgroundSaver) -> None:
    store.failures = 99
    for step in (1, 2, 3):
        saver.save(step, {"w": torch.zeros(1)}, {}, {})
        saver.close()
    with pytest.raises(StoreError, match="out for lunch"):
        saver.save(4, {"w": torch.zeros(1)}, {}, {})
    assert saver.num_failed == 3


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
