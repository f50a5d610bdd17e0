"""Which committed checkpoints may go: a pure function of their manifests and the user's wishes."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from oct_foundation.checkpoints.manifest import CheckpointName, Manifest


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """When the loop saves (every `every_steps` optimizer steps) and what stays.

    keep_last: the newest; with 1 nothing older is left when the newest turns out damaged, so 2 is the least that
    survives one bad file. keep_best: the best by best_metric, none without one. keep_every: every n-th optimizer
    step, null: none. The one resumed from and the newest intact one stay besides.
    """

    every_steps: int = 500
    keep_last: int = 3
    keep_best: int = 1
    keep_every: int | None = None
    best_metric: str | None = None
    best_mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        _check_whole("every_steps", self.every_steps, 1)
        _check_whole("keep_last", self.keep_last, 1)
        _check_whole("keep_best", self.keep_best, 0)
        if self.keep_every is not None:
            _check_whole("keep_every", self.keep_every, 1)
            if self.keep_every % self.every_steps:
                raise ValueError(
                    f"checkpoint.keep_every is {self.keep_every}, but steps are saved every {self.every_steps} "
                    "(checkpoint.every_steps); a multiple of that, or null, is allowed"
                )
        if self.best_mode not in ("min", "max"):
            raise ValueError(f"checkpoint.best_mode is {self.best_mode!r}; allowed: 'min', 'max'")
        if self.best_metric is not None and not self.best_metric:
            raise ValueError("checkpoint.best_metric is empty; name a logged metric, or null: none")


def ranked(manifests: Sequence[Manifest], settings: CheckpointSettings) -> list[Manifest]:
    """Those with a finite value of the metric, the best first, the newest of equals first; none without a metric."""
    if settings.best_metric is None:
        return []
    sign = 1.0 if settings.best_mode == "max" else -1.0
    scored = [
        (sign * value, m.name, m) for m in manifests if (value := m.metrics.get(settings.best_metric)) is not None
    ]
    return [manifest for _, _, manifest in sorted(scored, key=lambda item: item[:2], reverse=True)]


def expendable(
    manifests: Sequence[Manifest], settings: CheckpointSettings, protected: Collection[CheckpointName]
) -> list[CheckpointName]:
    """What to delete, oldest first: neither among the last, the best and every n-th that stay, nor `protected`."""
    names = sorted(manifest.name for manifest in manifests)
    kept = {*names[-settings.keep_last :], *protected}
    kept |= {manifest.name for manifest in ranked(manifests, settings)[: settings.keep_best]}
    if settings.keep_every is not None:
        kept |= {name for name in names if name.step % settings.keep_every == 0}
    return [name for name in names if name not in kept]


def _check_whole(name: str, value: object, least: int) -> None:
    """Raises ValueError, naming the key, unless `value` is a whole number >= `least`; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"checkpoint.{name} is {value!r}; a whole number >= {least} is allowed")
