"""Saves while training goes on: the step waits for the copy to the host, a thread writes it to the store.

One save is in flight at most. A periodic save that finds the thread busy is skipped and counted, since two copies of
the state would double its memory; the last save of a run waits. `fatal` says when failures have to end the run.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from oct_foundation.checkpoints.host_state import to_host
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.store import StoreError, Unavailable

# With nothing durable for so long, or for three intervals where saves are rarer, going on risks too much work.
LONGEST_WITHOUT_S = 30 * 60.0
_INTERVALS_WITHOUT = 3

_log = logging.getLogger(__name__)


class BackgroundSaver:
    """Hands states to `manager` in a thread. num_skipped and num_failed count; stall_s is what the last save took from
    the training thread. `clock` gives seconds. After `max_failures` in a row, `fatal` is what the last one met.
    """

    def __init__(
        self, manager: CheckpointManager, max_failures: int = 3, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.manager = manager
        self.num_skipped, self.num_failed, self.stall_s = 0, 0, 0.0
        self._max_failures, self._clock = max_failures, clock
        self._failures: list[StoreError] = []  # in a row
        self._broken: Exception | None = None  # not the store's fault: raised at once
        self._host: Any = None  # buffers of the last copy, used again by the next
        self._thread: threading.Thread | None = None
        self._durable_at = self._due_at = clock()  # the last durable save, the last one that was due
        self._interval_s, self._owed = 0.0, False  # between the last two that were due; whether the last is not durable

    @property
    def busy(self) -> bool:
        """True while a save is being written."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def fatal(self) -> StoreError | None:
        """Why the run has to end, None while it may go on; to be asked by the thread that trains, and agreed upon.

        TakenOver as soon as it is known; the last failure after `max_failures` in a row, or when nothing became
        durable for max(30 min, 3 intervals between saves), hanging saves included.
        """
        ownership = self.manager.ownership
        if ownership is not None and ownership.taken_over is not None:
            return ownership.taken_over
        if len(self._failures) >= self._max_failures:
            return self._failures[-1]
        waited = self._clock() - self._durable_at
        if not self._owed or waited <= max(LONGEST_WITHOUT_S, _INTERVALS_WITHOUT * self._interval_s):
            return None
        cause = self._failures[-1] if self._failures else "the last save is still being written"
        return Unavailable(f"nothing became durable in {self._place} for {waited / 60:.0f} min: {cause}")

    def prepare(self, live: dict[str, Any]) -> None:
        """Makes and touches the host buffers before step 1, so that the first save does not stall: 1.4 s for 0.5 GB.

        Raises TypeError for state that could not be read back.
        """
        self._copy(live)

    def save(
        self,
        step: int,
        live: dict[str, Any],
        metrics: dict[str, float],
        facts: dict[str, Any],
        *,
        patient: bool = False,
    ) -> bool:
        """Copies `live`, on any device, and starts to write it; False where the last save is still being written.

        patient: waits for that one instead, for a state that must not be missed.
        Raises TypeError for state that could not be read back; what the store does wrong is told by `fatal`.
        """
        now = self._clock()
        self._interval_s, self._due_at, self._owed = now - self._due_at, now, True
        if self.busy and not patient:
            self.num_skipped += 1
            _log.warning("step %d is not saved: the save before it is still being written to %s", step, self._place)
            return False
        self._join()
        started = time.perf_counter()
        self._copy(live)
        self.stall_s = time.perf_counter() - started
        work = (step, self._host, dict(metrics), facts)
        # No daemon: an interpreter that ends waits for the save, rather than cutting it off.
        self._thread = threading.Thread(target=self._write, args=work, name="checkpoint")
        self._thread.start()
        return True

    def save_and_wait(
        self,
        step: int,
        live: dict[str, Any],
        metrics: dict[str, float],
        facts: dict[str, Any],
        *,
        timeout_s: float | None = None,
    ) -> None:
        """The last save of a run: waits for the one before it and for this one; raises the StoreError of this one.

        Raises Unavailable when `timeout_s` is over first; the writing goes on then, and an ordinary exit waits for it.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._join(deadline)
        self.save(step, live, metrics, facts)
        self._join(deadline)
        if self._failures:
            raise self._failures[-1]

    def close(self) -> None:
        """Waits for a save in flight; its failure is in the log and in `fatal`."""
        self._join()

    @property
    def _place(self) -> str:
        return str(self.manager.store)

    def _copy(self, live: dict[str, Any]) -> None:
        self._host = to_host(live, self._host)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # the copies into pinned memory run beside us until then

    def _join(self, deadline: float | None = None) -> None:
        """Waits for the writing thread, to `deadline` of time.monotonic; raises what it met that is no StoreError."""
        if self._thread is not None:
            self._thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if self._thread.is_alive():
                raise Unavailable(f"the save to {self._place} was not done in time")
            self._thread = None
        if self._broken is not None:
            raise self._broken

    def _write(self, step: int, state: dict[str, Any], metrics: dict[str, float], facts: dict[str, Any]) -> None:
        try:
            self.manager.save(step, state, metrics, facts)
            self._failures.clear()
            self._durable_at, self._owed = self._clock(), False
        except StoreError as error:
            self._failures.append(error)
            self.num_failed += 1
            _log.error(
                "step %d is not saved (%d of %d failures in a row that end the run): %s",
                step,
                len(self._failures),
                self._max_failures,
                error,
            )
        except Exception as error:  # the thread's top: training must learn of it
            self._broken = error
