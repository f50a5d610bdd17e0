"""Learning rate, weight decay and EMA momentum as pure functions of the finished optimizer steps.

Nothing is stepped, saved or replayed: after a resume, on another world size or inside a test, `step` alone decides.
A cosine here decays once over the whole run; the reports' warm restarts cannot be expressed.
"""

import math
from dataclasses import dataclass
from typing import Literal

ScheduleShape = Literal["constant", "cosine", "wsd"]
SCALARS = ("learning_rate", "weight_decay", "ema_momentum")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up from `start` to `peak`, then `shape` towards `final`, which is reached at `total_steps`.

    constant: `peak` for ever; cosine: half a period from `peak` to `final`; wsd (warm-up, stable, decay): `peak`,
    then linear to `final` over the last `decay_steps`.
    """

    shape: ScheduleShape
    peak: float
    total_steps: int
    start: float = 0.0
    final: float = 0.0
    warmup_steps: int = 0
    decay_steps: int = 0

    def __post_init__(self) -> None:
        if self.total_steps < 1:
            raise ValueError(f"total_steps must be at least 1; found {self.total_steps}")
        if self.warmup_steps < 0 or self.decay_steps < 0 or self.warmup_steps + self.decay_steps > self.total_steps:
            raise ValueError(
                f"optim.warmup_steps ({self.warmup_steps}) and optim.decay_steps ({self.decay_steps}) must not be "
                f"negative and must fit together into the run's {self.total_steps}: lower them, or train for longer"
            )

    def __call__(self, step: int) -> float:
        """The value for the update that follows `step` finished ones (0 for the first)."""
        if step < self.warmup_steps:
            return self.start + (self.peak - self.start) * step / self.warmup_steps
        match self.shape:
            case "constant":
                return self.peak
            case "cosine":
                share = self._share(step, since=self.warmup_steps)
                return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * share))
            case "wsd":
                share = self._share(step, since=self.total_steps - self.decay_steps)
                return self.peak + (self.final - self.peak) * share

    def _share(self, step: int, *, since: int) -> float:
        """How much of the decay that begins at `since` is over: 0 to 1."""
        return min(max(step - since, 0) / max(1, self.total_steps - since), 1.0)


@dataclass(frozen=True, kw_only=True)
class Schedules:
    """The three scalars of a step."""

    learning_rate: Schedule
    weight_decay: Schedule
    ema_momentum: Schedule

    def at(self, step: int) -> dict[str, float]:
        """The values for the update that follows `step` finished ones, by the names of `SCALARS`."""
        return {name: getattr(self, name)(step) for name in SCALARS}
