"""Ends a rank that makes no progress, with the stacks of all its threads in the log, and one whose launcher is gone.

A thread looks every second. Where a C call keeps the GIL no Python thread can look: `faulthandler`'s own timer, armed
anew at each look, then dumps the stacks and ends the process with code 1, without a record. (Its clock runs on while a
process is stopped: one that SIGSTOP holds for longer than its limit ends on waking, and is started again.)
"""

import faulthandler
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Literal

from oct_foundation.runtime.exits import ExitCode
from oct_foundation.runtime.rank_exit import RankExit

Phase = Literal["compile", "validation", "save"]
STDERR = 2
# Steps that may compile: the first one builds the program, the second one again where moments have come into being.
NUM_COMPILING_STEPS = 2
# A step may take this many times its usual time: a slow disk or a neighbour on the host is no hang.
SLOWEST_STEP = 20
# A look that comes this many looks late tells that the process was stopped or the machine slept.
ASLEEP_LOOKS = 10


@dataclass(frozen=True, kw_only=True)
class WatchdogSettings:
    """For how long, in seconds, a rank may show no progress: in training, and in each phase of another kind."""

    enabled: bool = True
    stall_s: float = 300.0
    compile_s: float = 3600.0
    validation_s: float = 1800.0
    save_s: float = 900.0

    def __post_init__(self) -> None:
        for limit in fields(self)[1:]:
            value = getattr(self, limit.name)
            if not 0 < value < float("inf"):
                raise ValueError(
                    f"runtime.watchdog.{limit.name}: found {value}, allowed is a number of seconds above 0; "
                    "runtime.watchdog.enabled: false switches the watchdog off"
                )


class Watchdog:
    """Watches one rank. `look_s`: between two looks; `margin_s`: from a limit to the end by faulthandler's timer."""

    def __init__(
        self, settings: WatchdogSettings, exit: RankExit, *, look_s: float = 1.0, margin_s: float = 60.0
    ) -> None:
        self._settings, self._exit, self._look_s, self._margin_s = settings, exit, look_s, margin_s
        self._launcher = _launcher_pid()
        self._phases: list[Phase] = []
        self._step: int | None = None
        self._num_beats = 0
        self._durations_s: deque[float] = deque(maxlen=32)
        self._progress = time.monotonic()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to watch; the time to the first beat counts as compiling."""
        if self._settings.enabled:
            self._progress = time.monotonic()
            self._arm_backstop()
            self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
            self._thread.start()

    def stop(self) -> None:
        """Ends the watch; what follows may take as long as it likes."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def beat(self, step: int) -> None:
        """Step `step` is finished. Costs about a microsecond."""
        now = time.monotonic()
        if self._num_beats >= NUM_COMPILING_STEPS:
            self._durations_s.append(now - self._progress)
        self._num_beats += 1
        self._step, self._progress = step, now

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """A part of the run with a limit of its own; afterwards the limit around it starts anew."""
        self._phases.append(name)
        self._enter_phase()
        try:
            yield
        finally:
            self._phases.pop()
            self._enter_phase()

    def _enter_phase(self) -> None:
        self._progress = time.monotonic()
        if self._thread is not None and not self._stopped.is_set():
            self._arm_backstop()

    def _limit_s(self) -> float:
        """Seconds without progress that are allowed now."""
        match self._phase():
            case "compile":
                return self._settings.compile_s
            case "validation":
                return self._settings.validation_s
            case "save":
                return self._settings.save_s
            case "training":
                usual_s = statistics.median(self._durations_s.copy() or [0.0])
                return max(self._settings.stall_s, SLOWEST_STEP * usual_s)

    def _phase(self) -> Phase | Literal["training"]:
        if phases := self._phases[-1:]:
            return phases[0]
        return "compile" if self._num_beats < NUM_COMPILING_STEPS else "training"

    def _arm_backstop(self) -> None:
        """50 microseconds: a thread of C that needs no GIL."""
        faulthandler.dump_traceback_later(self._limit_s() + self._margin_s, exit=True, file=STDERR)

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._stopped.wait(self._look_s):
            now = time.monotonic()
            if now - looked > (1 + ASLEEP_LOOKS) * self._look_s:
                self._progress = now  # asleep: nobody can have made progress, so the limit starts anew
            looked = now
            if self._launcher is not None and os.getppid() != self._launcher:
                self._exit.now(ExitCode.FAILED, f"the launcher is gone (pid {self._launcher})")
            without_s, limit_s = now - self._progress, self._limit_s()
            if without_s > limit_s:
                self._end(without_s, limit_s)
            self._arm_backstop()

    def _end(self, without_s: float, limit_s: float) -> None:
        """The headline, the stacks, the end."""
        done = "before the first step" if self._step is None else f"after step {self._step}"
        reason = f"no progress for {without_s:.0f} s {done}, in {self._phase()} (limit {limit_s:.0f} s)"
        print(f"rank {self._exit.rank}: {reason}; the stacks of all threads:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=STDERR, all_threads=True)
        self._exit.now(ExitCode.NO_PROGRESS, reason)


def _launcher_pid() -> int | None:
    """The process without which this rank is an orphan; None where a shell started it, which a user may close."""
    started_by_ours = multiprocessing.parent_process() is not None
    return os.getppid() if started_by_ours or "TORCHELASTIC_RUN_ID" in os.environ else None
