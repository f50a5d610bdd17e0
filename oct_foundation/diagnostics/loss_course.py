"""The losses of a run, epoch by epoch -> findings: flat, diverged, over-fit, not finite, final worse than best.

Small functions, each a finding or None, over what any of the three trainers records; `step` of a finding is the epoch.
A loss is compared with its own baseline and best where they are known, with its own past where they are not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from oct_foundation.diagnostics.readings import Finding, Severity

# Share of the way from baseline to ceiling in FLAT_EPOCHS below which a loss stands still.
FLAT_SHARE, FLAT_EPOCHS = 0.01, 10
# A loss that has come this far and stands has converged; that is no fault.
_FAR = 0.5
# The end over the beginning [a guess]; final validation loss over the best; one modality's share of all.
_DIVERGED, _GAP, _DOMINANT = 1.1, 0.05, 0.8
_TREND_P = 0.025


@dataclass(frozen=True, kw_only=True)
class LossCourse:
    """One loss: epochs, rising; its value after each. baseline: what predict-the-mean scores; best: what the noise
    ceiling allows; None where nobody knows. Raises ValueError.
    """

    name: str
    epochs: Sequence[int]
    losses: Sequence[float]
    baseline: float | None = None
    best: float | None = None

    def __post_init__(self) -> None:
        if len(self.epochs) != len(self.losses) or list(self.epochs) != sorted(set(self.epochs)):
            raise ValueError(f"{self.name}: epochs must rise, one for each loss; found {list(self.epochs)[:8]}")
        if self.baseline is not None and self.best is not None and not self.best < self.baseline:
            raise ValueError(f"{self.name}: best must be below baseline {self.baseline}; found {self.best}")


def not_finite(rows: Sequence[Mapping[str, float]]) -> Finding | None:
    """NaN or Inf among the metrics of rows that have an `epoch`; averages never hide them."""
    broken: dict[str, int] = {}
    for row in rows:
        for name, value in row.items():
            if not math.isfinite(value):
                broken.setdefault(name, int(row["epoch"]))
    if not broken:
        return None
    named = ", ".join(f"{name} from epoch {epoch}" for name, epoch in list(broken.items())[:4])
    return Finding(
        name="metrics_not_finite",
        severity="alarm",
        step=min(broken.values()),
        evidence=f"NaN or Inf in {len(broken)} metrics: {named}.",
        remedy="Go back to the last checkpoint before it, and look at the learning rate and the inputs of that epoch.",
    )


def flat_loss(course: LossCourse) -> Finding | None:
    """Less than 1 % of the way from baseline to ceiling in the last 10 epochs; where either is unknown, less than 1 %
    of its first value per 10 epochs of the whole run. None for fewer than 10 epochs, and for a loss that rises.

    Info where more than half of the way is done: it may have converged.
    """
    epochs, losses = course.epochs, course.losses
    if len(epochs) < 2 or epochs[-1] - epochs[0] < FLAT_EPOCHS or not all(map(math.isfinite, losses)):
        return None
    fall = losses[0] - losses[-1]
    whole = f"{course.name} went from {losses[0]:.2f} to {losses[-1]:.2f} in epochs {epochs[0]} to {epochs[-1]}"
    severity: Severity = "warning"
    if course.baseline is not None and course.best is not None:
        way = course.baseline - course.best
        earlier = max(index for index, epoch in enumerate(epochs) if epoch <= epochs[-1] - FLAT_EPOCHS)
        moved = (losses[earlier] - losses[-1]) / way * FLAT_EPOCHS / (epochs[-1] - epochs[earlier])
        done = (course.baseline - losses[-1]) / way
        severity = "info" if done >= _FAR else "warning"
        evidence = (
            f"{whole}; {done:.0%} of the way from baseline to ceiling is done, {moved:.2%} in the last 10 epochs."
        )
    else:
        moved = fall / abs(losses[0]) * FLAT_EPOCHS / (epochs[-1] - epochs[0]) if losses[0] else 0.0
        evidence = f"{whole} ({-fall / abs(losses[0] or 1):+.1%}), {moved:.2%} per 10 epochs; no baseline was recorded."
    if not -FLAT_SHARE < moved < FLAT_SHARE:
        return None
    return Finding(
        name="flat_loss",
        severity=severity,
        step=epochs[-1],
        evidence=evidence,
        remedy="Compare with the baseline: near it nothing is learned. Look at the learning rate that was applied, at "
        "frozen parameters and at the scale of inputs and targets.",
    )


def divergence(course: LossCourse) -> Finding | None:
    """The median of the last three losses is more than 10 % above the first."""
    if len(course.losses) < 4 or not all(map(math.isfinite, course.losses)):
        return None
    last, first = float(np.median(course.losses[-3:])), course.losses[0]
    if not last - first > (_DIVERGED - 1) * abs(first):
        return None
    return Finding(
        name="divergence",
        severity="alarm",
        step=course.epochs[-1],
        evidence=f"{course.name} began at {first:.4g} and its last three have a median of {last:.4g}.",
        remedy="Lower the learning rate or warm up longer, and start from a checkpoint before the rise.",
    )


def over_fit(train: LossCourse, val: LossCourse, patience: int) -> Finding | None:
    """Since its best, half the patience ago or more, the validation loss rises while the training loss falls.

    Both trends must be beyond chance (slope, p .025 a side); both losses at the same epochs. Raises ValueError.
    """
    if list(train.epochs) != list(val.epochs):
        raise ValueError(f"{train.name} and {val.name} must be of the same epochs")
    if not all(map(math.isfinite, [*train.losses, *val.losses])) or not val.losses:
        return None
    best = int(np.argmin(val.losses))
    since = val.epochs[-1] - val.epochs[best]
    if since < max(patience / 2, 1) or len(val.losses) - best < 4:
        return None
    epochs = np.array(val.epochs[best:], float)
    rises, falls = (
        stats.linregress(epochs, np.array(course.losses[best:]), alternative=side).pvalue < _TREND_P
        for course, side in ((val, "greater"), (train, "less"))
    )
    if not (rises and falls):
        return None
    return Finding(
        name="over_fit",
        severity="warning",
        step=val.epochs[-1],
        evidence=f"{val.name} was best at epoch {val.epochs[best]} ({val.losses[best]:.4g}) and rises since, for "
        f"{since} epochs, to {val.losses[-1]:.4g}, while {train.name} falls to {train.losses[-1]:.4g}.",
        remedy="Use the best checkpoint. Stop earlier, or add data, dropout or weight decay.",
    )


def best_final_gap(best: float, final: float, epoch: int, *, best_saved: bool | None) -> Finding | None:
    """The final validation loss is more than 5 % above the best; graver where the best weights are in no file.

    best_saved: None where nobody looked.
    """
    if not (math.isfinite(best) and math.isfinite(final)) or final - best <= _GAP * abs(best):
        return None
    where = {
        True: "the best weights are saved",
        False: "the best weights are in no file",
        None: "nobody looked for them",
    }
    share = f" ({(final - best) / abs(best):+.0%})" if best else ""
    return Finding(
        name="best_final_gap",
        severity="alarm" if best_saved is False else "warning",
        step=epoch,
        evidence=f"Validation ended at {final:.2f} and was best at {best:.2f}{share}; {where[best_saved]}.",
        remedy="Use the best checkpoint, not the final one. Save the best when it improves, in a file of its own.",
    )


def partial_validation(num_trs: int, num_trs_total: int, epoch: int) -> Finding | None:
    """Validation figures come from a part of the validation TRs, such as those of one rank."""
    if num_trs >= num_trs_total:
        return None
    return Finding(
        name="partial_validation",
        severity="warning",
        step=epoch,
        evidence=f"Validation figures come from {num_trs} of {num_trs_total} TRs.",
        remedy="Reduce sums over all ranks, and drop the duplicates with which a sampler pads.",
    )


def dominance(shares: Mapping[str, float], what: str, epoch: int) -> Finding | None:
    """One modality has more than 80 % of `what`: the loss, or the gradient of the shared trunk. shares: any scale."""
    total = sum(shares.values())
    if not 0 < total < math.inf or len(shares) < 2:
        return None
    name, largest = max(shares.items(), key=lambda item: item[1])
    if largest / total <= _DOMINANT:
        return None
    return Finding(
        name="dominance",
        severity="warning",
        step=epoch,
        evidence=f"{name} makes {largest / total:.1%} of {what}.",
        remedy="The others hardly train. Balance by FVU (each loss over its own baseline), then by weights.",
    )
