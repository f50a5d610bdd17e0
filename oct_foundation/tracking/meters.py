"""Host-side meters: how fast, how much on average, where the time went, whether train metrics still come.

Numbers that are on the host already go in; nothing here touches a device. `clock` returns seconds and never
goes back; tests pass their own.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

Clock = Callable[[], float]
Phase = Literal["compile", "data_wait", "step", "logging", "checkpoint", "validation", "diagnostics"]


class Stopwatch:
    """Wall time by phase; a phase inside another one counts for itself only, so that the split adds up."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._seconds: dict[str, float] = dict.fromkeys(get_args(Phase), 0.0)
        self._inner: list[float] = []  # for each open phase: seconds spent in phases inside it

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Adds the time of the body to `name`, also when the body raises."""
        begin = self._clock()
        self._inner.append(0.0)
        try:
            yield
        finally:
            taken = self._clock() - begin
            self._seconds[name] += taken - self._inner.pop()
            if self._inner:
                self._inner[-1] += taken

    def add(self, name: Phase, seconds: float) -> None:
        """Counts time just spent whose phase is known only now: a step that turned out to compile."""
        self._seconds[name] += seconds
        if self._inner:
            self._inner[-1] += seconds

    def split(self) -> dict[str, float]:
        """Seconds by phase, `other` for what was in none, `total` since the start; for use outside phases."""
        total = self._clock() - self._start
        return {**self._seconds, "other": total - sum(self._seconds.values()), "total": total}


class MetricGuard:
    """Notices that the loop runs on while train metrics have ceased to be logged.

    Lost train curves were the worst failure of earlier trainers: the run looked healthy, its record was
    empty.
    """

    def __init__(self, max_gap_steps: int, start_step: int = 0, prefix: str = "train/") -> None:
        if max_gap_steps < 1:
            raise ValueError(f"max_gap_steps is {max_gap_steps}; train metrics may be missing for 1 step at least")
        self._max_gap_steps = max_gap_steps
        self._prefix = prefix
        self._last_step = start_step
        self._told = False

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Sees what is handed to the trackers; the prefix tells train metrics from others."""
        if any(name.startswith(self._prefix) for name in metrics):
            self._last_step = max(self._last_step, step)
            self._told = False

    def check(self, step: int) -> str | None:
        """Called after every step: the warning when metrics are missing for too long, once a silence."""
        if self._told or step - self._last_step <= self._max_gap_steps:
            return None
        self._told = True
        return (
            f"no {self._prefix} metrics since step {self._last_step}, training is at step {step}: "
            "the loop runs, its record does not"
        )


@dataclass
class Interval:
    """What has been logged last, for rates."""

    step: int
    samples: int
    time: float = field(default_factory=time.perf_counter)
    started_at: int = field(init=False)

    def __post_init__(self) -> None:
        self.started_at = self.step
