"""The one way for a rank to leave early, from whichever thread: written down, said, told to the others, gone.

`sys.exit` ends a thread, and a raised error waits for threads that hang in a collective: hence `os._exit`. Nothing on
the way out may keep the rank: a full disk, a dead file server and a deaf neighbour each cost two seconds at most.
"""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from oct_foundation.runtime.exits import ExitRecord

# For each of: writing the record, saying it, each call of `on_leave`. A grace of 30 s must still hold all of them.
PATIENCE_S = 2.0


class RankExit:
    """Leaves with a code and a reason. `folder`: where the records of this start lie, `<run>/exits`.

    step: finished optimizer steps, kept up to date by the loop; None before training.
    on_leave: called with the record before the process ends; must not wait for the device.
    """

    def __init__(self, *, rank: int, folder: Path) -> None:
        self.rank, self.folder = rank, folder
        self.step: int | None = None
        self.on_leave: list[Callable[[ExitRecord], None]] = []
        self._announced, self._leaving = threading.Lock(), threading.Lock()

    def announce(self, code: int, reason: str, *, cause: bool = True) -> None:
        """Writes down and tells the others why this rank is about to leave; the first announcement counts.

        cause: False where another rank is the reason.
        """
        if not self._announced.acquire(blocking=False):
            return
        record = ExitRecord(rank=self.rank, code=int(code), reason=reason, step=self.step, cause=cause)
        _within_patience("the exit record", record.write, self.folder)
        _within_patience("the last words", _say, f"rank {self.rank} leaves with code {record.code}: {reason}")
        for callback in self.on_leave:
            _within_patience(getattr(callback, "__qualname__", repr(callback)), callback, record)

    def now(self, code: int, reason: str, *, cause: bool = True) -> NoReturn:
        """Announces it, where that has not happened, and ends the process. Whoever comes second waits for the end."""
        if not self._leaving.acquire(blocking=False):
            threading.Event().wait()
        self.announce(code, reason, cause=cause)
        _within_patience("stdout", sys.stdout.flush)
        _within_patience("stderr", sys.stderr.flush)
        os._exit(int(code))


def _within_patience(what: str, call: Callable[..., None], *args: object) -> None:
    """Runs `call(*args)` in a thread of its own, and goes on without it when it fails or takes too long."""

    def run() -> None:
        try:
            call(*args)
        except Exception as error:  # the top of a thread: whatever it is, the rank leaves
            _say(f"on the way out, {what}: {type(error).__name__}: {error}")

    thread = threading.Thread(target=run, daemon=True, name=f"leaving: {what}")
    try:
        thread.start()
    except RuntimeError:  # no thread to be had (out of memory, or the interpreter is ending): then without a limit
        run()
        return
    thread.join(PATIENCE_S)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
