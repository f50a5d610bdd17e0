"""The readings of a run, what a rule may ask of them, and what it says.

A reading is one line of `diag/...` in metrics.jsonl; rules see numbers alone, so that a report of a crashed run finds
what the running job would have found. Nothing here needs torch.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, Self

Severity = Literal["info", "warning", "alarm"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The values, without their prefix, after `step` finished updates."""

    step: int
    values: Mapping[str, float] = field(default_factory=dict)


PREFIX = "diag/"  # of a reading's values in the record of a run


def readings_of(rows: Iterable[Mapping[str, float]]) -> list[Reading]:
    """What the rows of a record say under PREFIX at each step, rising; several rows of one step are one reading."""
    values: dict[int, dict[str, float]] = {}
    for row in rows:
        found = {name.removeprefix(PREFIX): value for name, value in row.items() if name.startswith(PREFIX)}
        if found:
            values.setdefault(int(row["step"]), {}).update(found)
    return [Reading(step=step, values=values[step]) for step in sorted(values)]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a rule found at `step`: the numbers that say so, and what to do, for a reader who knows OCT but not JEPA."""

    name: str
    severity: Severity
    step: int
    evidence: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where the rules draw their lines. [T] fitted to the nine toy runs of jepa.md, section 4; [F] to the twenty runs
    of docs/figures/verdicts_fit.json; [G] a guess.

    pos_ratio: error over that of the position average, dead 1.09 and 1.38, alive .06-.39 [T].
    centred_cos: 75 of the 80 runs of docs/figures/verdicts_{fit,judged_500,judged_1000,judged_again}.json are right
    with it, 73 with .4; frozen encoders, with up to .41, have a rule of their own.
    legible_more: scan_r2 over its initial value: 1.5 in the run that gained though its predictor was taught nonsense,
    at most 1.3 in others [F].
    spread: pooled_std over its initial value, dead .21 and .22, alive .92-1.56 [T].
    token_cosine: dead .993, alive at most .902 [T]. baseline_drop: loss_pos over its initial value, dead .03-.04, alive
    at least .4 [T]. leak_ratio: a pos_ratio below it leaves no room for speckle; the best live run has .06 [T].
    update_jump: update_ratio over its median [G]. rank_drop: a RankMe over its median [G]. lidar_drop: lidar over its
    value two readings before [G]. loss_drop: loss over its median; vjepa2#74 calls such drops partial collapse.
    loss_jump: loss over its median; a toy run that nearly died rose to .27 and ended at .011, healthy published runs on
    OCT drift up from .052 to .145 at most [G]. maker_loss: a maker's loss over the median of the others' [G].
    clipped_share: of the updates [G]. input_distinct: share of a batch's volumes that no other one equals [G].
    input_std: of the voxels over the first reading's [G]; input_std_least: for voxels of 0 to 1 or standardised, one
    scan has .2 or more. unchanged: relative difference of two values of networks that stand still; fixed volumes give a
    moving network another value beyond it within ten updates [G].
    probe_gain: what a probe must gain over the random-init encoder, in its own score. min_volumes: fewer held-out
    volumes make no position average.
    """

    pos_ratio: float = 1.0
    centred_cos: float = 0.25
    legible_more: float = 1.35
    spread: float = 1 / 3
    token_cosine: float = 0.98
    baseline_drop: float = 0.2
    leak_ratio: float = 0.01
    update_jump: float = 10.0
    rank_drop: float = 0.5
    lidar_drop: float = 0.8
    loss_drop: float = 0.5
    loss_jump: float = 3.0
    maker_loss: float = 1.5
    clipped_share: float = 0.5
    input_std: float = 1 / 3
    input_std_least: float = 0.01
    input_distinct: float = 0.5
    unchanged: float = 1e-6
    probe_gain: float = 0.0
    min_volumes: int = 8
    min_steps: int = 100

    def __post_init__(self) -> None:
        for name in (item.name for item in fields(self)):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"threshold {name} must be a number of 0 or more; found {value}")


@dataclass(frozen=True, kw_only=True)
class Course:
    """What rules look at: the reading of the untrained networks, and those after warm-up, oldest first.

    initial: the reading at step 0, None where the record lacks it. later: readings of later steps with
    step >= warmup_steps; nothing earlier is judged, as healthy runs pass through the dead state (jepa.md, section 4).
    last: the newest of all, None where there is none.
    """

    initial: Reading | None
    later: tuple[Reading, ...]
    last: Reading | None
    thresholds: Thresholds

    @classmethod
    def of(cls, readings: Sequence[Reading], thresholds: Thresholds, warmup_steps: int) -> Self:
        """Sorted by step; of two readings of one step (a resumed run reads again) the later in the sequence counts."""
        by_step = {reading.step: reading for reading in readings}
        ordered = [by_step[step] for step in sorted(by_step)]
        return cls(
            initial=by_step.get(0),
            later=tuple(reading for reading in ordered if reading.step >= max(warmup_steps, 1)),
            last=ordered[-1] if ordered else None,
            thresholds=thresholds,
        )

    def latest(self, name: str, count: int = 2) -> tuple[float, ...] | None:
        """The value at the last `count` readings after warm-up, oldest first; None where one lacks it."""
        values = [reading.values.get(name) for reading in self.later[-count:]]
        found = tuple(value for value in values if value is not None)
        return found if len(found) == count else None

    def twice(self, name: str, holds: Callable[[float], bool]) -> tuple[float, ...] | None:
        """The last two values where `holds` is true of both, else None: one reading alone never speaks."""
        values = self.latest(name)
        return values if values and all(map(holds, values)) else None

    def relative(self, name: str) -> tuple[float, ...] | None:
        """The last two values over the initial one; None where one is missing or not finite, or the initial one 0."""
        values, start = self.latest(name), self.initial_value(name)
        if values is None or not start or not all(map(math.isfinite, (start, *values))):
            return None
        return tuple(value / start for value in values)

    def scans_alike(self) -> bool:
        """Whether all held-out scans had the same features before training and at the last two readings: then they may
        be copies of one scan, and nothing that compares scans has a meaning.
        """
        return self.initial_value("pooled_std") == 0 and self.latest("pooled_std") == (0, 0)

    def initial_value(self, name: str) -> float | None:
        """The value of the untrained networks; None where it is missing."""
        return self.initial.values.get(name) if self.initial else None

    def over_median(self, name: str, window: int | None = None) -> tuple[float, float] | None:
        """The last value, and the median of those before it, of the last `window` or of all; None for fewer than 3.

        A median that is 0 or not finite is none.
        """
        values = [reading.values[name] for reading in self.later if name in reading.values]
        if len(values) < 4 or name not in self.later[-1].values:
            return None
        before = values[:-1] if window is None else values[-1 - window : -1]
        median = statistics.median(before)
        return (values[-1], median) if median and math.isfinite(median) else None

    def unchanged(self, name: str) -> bool:
        """Whether the last two values are the initial one to within the threshold `unchanged`."""
        ratios = self.relative(name)
        return ratios is not None and all(abs(ratio - 1) <= self.thresholds.unchanged for ratio in ratios)

    def names(self, prefix: str) -> list[str]:
        """The names with this prefix at the last reading after warm-up, sorted."""
        return sorted(name for name in self.later[-1].values if name.startswith(prefix)) if self.later else []

    def found(self, name: str, severity: Severity, evidence: str, remedy: str) -> Finding:
        """A finding at the last reading."""
        return Finding(
            name=name, severity=severity, step=self.last.step if self.last else 0, evidence=evidence, remedy=remedy
        )

    def steps(self) -> str:
        """The steps of the last two readings after warm-up, as evidence names them."""
        return " and ".join(f"{reading.step:,}" for reading in self.later[-2:])


def shown(values: Sequence[float]) -> str:
    """Values as evidence names them: 3 digits each."""
    return " and ".join(f"{value:.3g}" for value in values)
