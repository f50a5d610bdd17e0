"""Saves while training goes on: the step waits for the copy to the host, a thread writes it to the store.

One save is in flight at most. A periodic save that finds the thread busy is skipped and counted, since two copies of
the state would double its memory; the last save of a run waits. Failures are counted and end the run at a limit.
"""

import logging
import threading
import time
from typing import Any

import torch

from oct_foundation.checkpoints.host_state import to_host
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.store import StoreError

_log = logging.getLogger(__name__)


class BackgroundSaver:
    """Hands states to `manager` in a thread. num_skipped and num_failed count; stall_s is what the last save took from
    the training thread. After `max_failures` in a row a save raises what the last one met.
    """

    def __init__(self, manager: CheckpointManager, max_failures: int = 3) -> None:
        self.manager = manager
        self.num_skipped, self.num_failed, self.stall_s = 0, 0, 0.0
        self._max_failures = max_failures
        self._failures: list[StoreError] = []  # in a row
        self._broken: Exception | None = None  # not the store's fault: raised at once
        self._host: Any = None  # buffers of the last copy, used again by the next
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """True while a save is being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, step: int, live: dict[str, Any], metrics: dict[str, float], facts: dict[str, Any]) -> bool:
        """Copies `live`, on any device, and starts to write it; False where the last save is still being written.

        Raises TypeError for state that could not be read back, and the StoreError of the last of `max_failures`
        failed saves in a row.
        """
        if self.busy:
            self.num_skipped += 1
            _log.warning("step %d is not saved: the save before it is still being written to %s", step, self._place)
            return False
        self._settle()
        started = time.perf_counter()
        self._host = to_host(live, self._host)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # the copies into pinned memory run beside us until then
        self.stall_s = time.perf_counter() - started
        work = (step, self._host, dict(metrics), facts)
        # No daemon: an interpreter that ends waits for the save, rather than cutting it off.
        self._thread = threading.Thread(target=self._write, args=work, name="checkpoint")
        self._thread.start()
        return True

    def save_and_wait(self, step: int, live: dict[str, Any], metrics: dict[str, float], facts: dict[str, Any]) -> None:
        """The last save of a run: waits for the one before it and for this one; raises the StoreError of this one."""
        self._join()
        self.save(step, live, metrics, facts)
        self._join()
        if self._failures:
            raise self._failures[-1]

    def close(self) -> None:
        """Waits for a save in flight; its failure is in the log and, at the limit, has been raised."""
        self._join()

    @property
    def _place(self) -> str:
        return str(self.manager.store)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._broken is not None:
            raise self._broken

    def _settle(self) -> None:
        """Looks at how the last save ended; raises at the limit."""
        self._join()
        if len(self._failures) >= self._max_failures:
            raise self._failures[-1]

    def _write(self, step: int, state: dict[str, Any], metrics: dict[str, float], facts: dict[str, Any]) -> None:
        try:
            self.manager.save(step, state, metrics, facts)
            self._failures.clear()
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
