"""The best readings of a run against its last, and whether a file has the weights of the best."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from oct_foundation.diagnostics.loss_course import best_final_gap
from oct_foundation.diagnostics.readings import Finding
from pretraining.health.foreign import ForeignFile, holds_best
from pretraining.health.losses import epoch_of
from pretraining.health.sections import NOT_RECORDED, Table, number
from pretraining.health.training_log import LoggedRun
from pretraining.report.gather import RunRecord

# The score of an autoencoder is its mean skill: 1 less it is the mean FVU, which a gap can be relative to.
_SCORE = "diag/score"


@dataclass(frozen=True, kw_only=True)
class BestAndFinal:
    """By one metric. best_at: None where nobody knows; saved: whether a file has the best weights, None likewise."""

    metric: str
    best: float
    best_at: int | None
    final: float
    final_at: int
    saved: bool | None

    def table(self, unit: str) -> Table:
        """One row for each; unit: step or epoch."""
        where = {True: "yes", False: "no, in no file", None: NOT_RECORDED}[self.saved]
        gap = f"{(self.final - self.best) / abs(self.best):+.1%}" if self.best else "–"
        rows = (
            ("best", NOT_RECORDED if self.best_at is None else f"{self.best_at:,}", number(self.best, 6), "–", where),
            ("final", f"{self.final_at:,}", number(self.final, 6), gap, "–"),
        )
        return Table(header=("", unit, self.metric, "gap", "weights in a file"), rows=rows)


def of_run(run: RunRecord, task: str, saved_steps: Collection[int]) -> BestAndFinal | None:
    """By the metric that the run chooses checkpoints with, an autoencoder's by its score; None without any."""
    metric = run.setting("checkpoint", "best_metric") or (_SCORE if task == "autoencoder" else None)
    if not isinstance(metric, str):
        return None
    higher = run.setting("checkpoint", "best_mode") == "max" or metric == _SCORE
    series = [(int(step), value) for step, value in run.series(metric) if math.isfinite(value) and step > 0]
    if not series:
        return None
    best_at, best = (max if higher else min)(series, key=lambda item: item[1])
    return BestAndFinal(
        metric=metric,
        best=best,
        best_at=best_at,
        final=series[-1][1],
        final_at=series[-1][0],
        saved=best_at in saved_steps if saved_steps else None,
    )


def finding_of_run(found: BestAndFinal, run: RunRecord, *, finished: bool) -> Finding | None:
    """Graver where the best weights are in no file; of a score the gap is that of the mean FVU, 1 - score."""
    at = epoch_of(run, found.final_at)
    epoch = round(at) if at is not None else found.final_at
    saved = found.saved if finished or found.saved else None
    if found.metric == _SCORE:
        return best_final_gap(1 - found.best, 1 - found.final, epoch, best_saved=saved)
    if "loss" in found.metric:
        return best_final_gap(found.best, found.final, epoch, best_saved=saved)
    return None


def of_log(run: LoggedRun, files: Sequence[ForeignFile]) -> BestAndFinal | None:
    """Validation losses of a foreign log; a checkpoint that knows a better one than the log shows is believed."""
    known = {line.epoch: line.val_loss for line in run.epochs if line.val_loss is not None}
    finite = {epoch: loss for epoch, loss in known.items() if math.isfinite(loss)}
    if not finite:
        return None
    best, final_at = min(finite.values()), max(known)
    best_at: int | None = next(epoch for epoch, loss in finite.items() if loss == best)
    claims = [file.best_val_loss for file in files if file.best_val_loss is not None]
    labels = [file.val_loss for file in files if file.val_loss is not None]
    if claims + labels and min(claims + labels) < best - 5e-5 * abs(best):
        best, best_at = min(claims + labels), _epoch_of_best(files, min(claims + labels))
    return BestAndFinal(
        metric="validation loss",
        best=best,
        best_at=best_at,
        final=known[final_at],
        final_at=final_at,
        saved=holds_best(files, best, known),
    )


def finding_of_log(found: BestAndFinal) -> Finding | None:
    """Any gap above 5 %."""
    return best_final_gap(found.best, found.final, found.final_at, best_saved=found.saved)


def of_histories(files: Sequence[ForeignFile]) -> BestAndFinal | None:
    """Of checkpoints without a log: the longest history, and the best loss that any of them knows."""
    longest = max(files, key=lambda file: len(file.val), default=None)
    if longest is None:
        return None
    final = longest.val[-1] if longest.val else longest.val_loss
    claims = [file.best_val_loss for file in files if file.best_val_loss is not None]
    if final is None or not claims or not math.isfinite(final):
        return None
    best = min([*claims, *(loss for loss in longest.val if math.isfinite(loss))])
    return BestAndFinal(
        metric="validation loss",
        best=best,
        best_at=_epoch_of_best(files, best),
        final=final,
        final_at=longest.epoch or len(longest.val),
        saved=holds_best(files, best, dict(enumerate(longest.val, start=1))),
    )


def _epoch_of_best(files: Sequence[ForeignFile], best: float) -> int | None:
    """By the histories; None where none has it."""
    for file in files:
        for epoch, loss in enumerate(file.val, start=1):
            if math.isclose(loss, best, rel_tol=5e-5):
                return epoch
    return None
