"""What lives beside a rank's training, in threads, and can end the process with a reason when training cannot.

One per rank, opened when the rank knows its number, closed when its work is done.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oct_foundation.runtime.exits import write_step
from oct_foundation.runtime.rank_exit import RankExit
from oct_foundation.runtime.siblings import Siblings
from oct_foundation.runtime.stopping import GRACE_S, StopRequest
from oct_foundation.runtime.watchdog import Watchdog, WatchdogSettings

NOTE_S = 5.0  # between two notes of the step on the disk


@dataclass(frozen=True, kw_only=True)
class LifelineSettings:
    """exits: folder of the exit records; grace_s: from a stop request until the rank leaves, saved or not."""

    exits: Path
    watchdog: WatchdogSettings
    grace_s: float = GRACE_S


class Lifeline:
    """`exit` is how to leave early, `stop` whether to; `watchdog` wants a beat per step; `siblings` are the others."""

    def __init__(self, settings: LifelineSettings, *, rank: int, world_size: int) -> None:
        self.exit = RankExit(rank=rank, folder=settings.exits)
        self.stop = StopRequest(self.exit, settings.grace_s)
        self.watchdog = Watchdog(settings.watchdog, self.exit)
        self.siblings = Siblings(rank, world_size, self.exit)
        self._noted = 0.0

    def open(self, gather: Callable[[Any], list[Any]]) -> None:
        """Starts the threads; every rank calls it, since the siblings exchange addresses by `gather`."""
        self.stop.listen()
        self.watchdog.start()  # before the first exchange: a host that is gone must not be waited for without end
        self.siblings.start(gather)

    def beat(self, step: int) -> None:
        """Another step is done."""
        self.exit.step = step
        self.watchdog.beat(step)
        if (now := time.monotonic()) - self._noted > NOTE_S:
            self._noted = now
            write_step(self.exit.folder, self.exit.rank, step)

    def close(self) -> None:
        """Training is over: silence is no alarm any more."""
        self.watchdog.stop()
        self.siblings.stop()
