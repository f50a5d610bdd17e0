"""Which committed checkpoints may go: a pure function of their manifests and the user's wishes."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from oct_foundation.checkpoints.manifest import CheckpointName, Manifest


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """When the loop saves (every `every_steps` optimizer steps) and what stays: the last and the best."""

    every_steps: int = 500
    keep_last: int = 3
    keep_best: bool = True
    best_metric: str = "val/loss"
    best_mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        for name in ("every_steps", "keep_last"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"checkpoint.{name} is {value!r}; a whole number >= 1 is allowed")
        if self.best_mode not in ("min", "max"):
            raise ValueError(f"checkpoint.best_mode is {self.best_mode!r}; allowed: 'min', 'max'")
        if self.keep_best and not self.best_metric:
            raise ValueError("checkpoint.best_metric is empty; name a logged metric or set checkpoint.keep_best: false")


def best_of(manifests: Sequence[Manifest], settings: CheckpointSettings) -> Manifest | None:
    """The checkpoint with the best finite value of the metric, the newest of equals; None without any."""
    sign = 1.0 if settings.best_mode == "max" else -1.0
    scored = [
        (sign * value, m.name, m) for m in manifests if (value := m.metrics.get(settings.best_metric)) is not None
    ]
    return max(scored, key=lambda item: item[:2])[2] if scored else None


def expendable(
    manifests: Sequence[Manifest], settings: CheckpointSettings, protected: Collection[CheckpointName]
) -> list[CheckpointName]:
    """What to delete, oldest first: not among the last `keep_last`, not the best, not `protected`."""
    names = sorted(manifest.name for manifest in manifests)
    kept = {*names[-settings.keep_last :], *protected}
    if settings.keep_best and (best := best_of(manifests, settings)):
        kept.add(best.name)
    return [name for name in names if name not in kept]
