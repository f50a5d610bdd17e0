"""How a run went -> findings: NaN, flat, diverged, over-fit, dominance, skipped updates, a rate that nobody planned."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from statistics import fmean
from typing import get_args

from oct_foundation.diagnostics import loss_course
from oct_foundation.diagnostics.loss_course import LossCourse
from oct_foundation.diagnostics.readings import Finding
from oct_foundation.film import FILM_MODALITIES
from oct_foundation.optim.schedules import ScheduleShape
from pretraining.health.losses import epoch_of, merged
from pretraining.health.training_log import LoggedRun
from pretraining.report.gather import RunRecord
from pretraining.sections import OptimSection

# Epochs without a better score after which a run is said to over-fit, twice over, where the run has no patience.
_PATIENCE = 20
_RATE_TOLERANCE = 0.01
_MANY_SKIPPED = 0.05
_SHAPES = get_args(ScheduleShape)
_RECENT = 10  # rows of the record: shares of single batches are noise


def of_run(run: RunRecord, task: str, total_steps: int | None) -> Iterator[Finding]:
    """Of one of our runs. The loss of a V-JEPA is no witness, in either direction: there its readings speak."""
    if broken := _not_finite(run):
        yield broken
    yield from _skipped(run)
    yield from _rate(run, total_steps)
    if task == "vjepa":
        return
    val_name = "diag/val_loss" if task == "autoencoder" else "val/loss"
    train = _course(run, "train/loss", "Training loss")
    val = _course(run, val_name, "Validation loss")
    yield from _of_courses(train, val, _patience(run))
    if task == "autoencoder":
        yield from _flat_modalities(run)
        yield from _dominance(run)


def of_log(run: LoggedRun, patience: int = _PATIENCE) -> Iterator[Finding]:
    """Of one run of a foreign log."""
    rows = [
        {"epoch": line.epoch}
        | {
            name: value
            for name, value in (
                ("train loss", line.train_loss),
                ("val loss", line.val_loss),
                ("fMRI r", line.correlation),
            )
            if value is not None
        }
        for line in run.epochs
    ]
    if broken := loss_course.not_finite(rows):
        yield broken
    epochs = [line.epoch for line in run.epochs]
    train = LossCourse(name="Training loss", epochs=epochs, losses=[line.train_loss for line in run.epochs])
    known = [(line.epoch, line.val_loss) for line in run.epochs if line.val_loss is not None]
    val = LossCourse(name="Validation loss", epochs=[at for at, _ in known], losses=[loss for _, loss in known])
    yield from _of_courses(train, val, patience)


def flat_as_joined(first: LoggedRun, last: LoggedRun) -> Finding | None:
    """Of two runs that a log counts as one: whether that reading of it is flat. Nothing else is computed across."""
    lines = (first.epochs[0], last.epochs[-1])
    course = LossCourse(
        name="Training loss (of two runs, read as the one that the log makes of them)",
        epochs=[line.epoch for line in lines],
        losses=[line.train_loss for line in lines],
    )
    return loss_course.flat_loss(course)


def _of_courses(train: LossCourse, val: LossCourse, patience: int) -> Iterator[Finding]:
    for course in (train, val):
        for rule in (loss_course.flat_loss, loss_course.divergence):
            if found := rule(course):
                yield found
    shared = [epoch for epoch in train.epochs if epoch in set(val.epochs)]
    if shared and (found := loss_course.over_fit(_at(train, shared), _at(val, shared), patience)):
        yield found


def _at(course: LossCourse, epochs: list[int]) -> LossCourse:
    losses = dict(zip(course.epochs, course.losses, strict=True))
    return LossCourse(name=course.name, epochs=epochs, losses=[losses[epoch] for epoch in epochs])


def _course(
    run: RunRecord, metric: str, name: str, baseline: float | None = None, best: float | None = None
) -> LossCourse:
    """By whole epochs: the mean of what was logged in each; empty where epochs are unknown."""
    by_epoch: dict[int, list[float]] = {}
    for step, value in run.series(metric):
        epoch = epoch_of(run, step)
        if epoch is not None and step > 0:
            by_epoch.setdefault(max(math.ceil(epoch - 1e-9), 1), []).append(value)
    epochs = sorted(by_epoch)
    if baseline is not None and best is not None and not best < baseline:
        best = None
    losses = [fmean(by_epoch[epoch]) for epoch in epochs]
    return LossCourse(name=name, epochs=epochs, losses=losses, baseline=baseline, best=best)


def _not_finite(run: RunRecord) -> Finding | None:
    """NaN or Inf among losses. Gradients may overflow where the update is skipped: that is counted by itself."""
    rows = []
    for step, values in merged(run).items():
        losses = {name: value for name, value in values.items() if _is_loss(name)}
        epoch = epoch_of(run, step)
        rows.append({"epoch": math.floor(epoch) + 1 if epoch is not None else step, **losses})
    return loss_course.not_finite(rows)


def _is_loss(name: str) -> bool:
    family, _, rest = name.partition("/")
    head = rest.split("/")[0]
    return family in ("train", "val", "diag") and (head in ("loss", "val_loss", "dummy_loss") or head.endswith("_loss"))


def _skipped(run: RunRecord) -> Iterator[Finding]:
    """Updates that were not made since their gradient was not finite."""
    counts = [(step, value) for step, value in run.series("train/skipped_updates") if math.isfinite(value)]
    if not any(value >= 1 for _, value in counts):
        return
    step, skipped = counts[-1][0], max(value for _, value in counts)
    share = skipped / max(step, 1)
    yield Finding(
        name="skipped_updates",
        severity="alarm" if share > _MANY_SKIPPED else "warning",
        step=int(step),
        evidence=f"{skipped:.0f} of {step:.0f} updates ({share:.1%}) were skipped: their gradient was NaN or Inf.",
        remedy="A few are harmless. Else lower the learning rate, warm up longer, look at the inputs of these steps.",
    )


def _rate(run: RunRecord, total_steps: int | None) -> Iterator[Finding]:
    """The rate that was applied against the one that the configuration plans; step s is logged with that of s - 1."""
    planned = run.config.get("optim")
    if not isinstance(planned, Mapping) or not total_steps or planned.get("schedule", "constant") not in _SHAPES:
        return
    try:
        schedule = OptimSection(**planned).schedules(total_steps).learning_rate
    except (TypeError, ValueError):
        return
    applied = [(int(step), rate) for step, rate in run.series("train/learning_rate") if step >= 1]
    wrong = [
        (step, rate, schedule(step - 1))
        for step, rate in applied
        if not math.isclose(rate, schedule(step - 1), rel_tol=_RATE_TOLERANCE, abs_tol=1e-6 * schedule.peak)
    ]
    if not wrong:
        return
    step, rate, meant = wrong[0]
    yield Finding(
        name="rate_not_as_planned",
        severity="warning",
        step=step,
        evidence=f"At {len(wrong)} of {len(applied)} logged steps the learning rate was not the planned one; first at "
        f"step {step}: {rate:.3g} instead of {meant:.3g}.",
        remedy="The configuration was changed on the way, or the schedule steps at the wrong time (per epoch instead "
        "of per update).",
    )


def _flat_modalities(run: RunRecord) -> Iterator[Finding]:
    """Each modality's own held-out loss, between what predict-the-mean scores and the noise ceiling."""
    values = run.readings[-1].values if run.readings else {}
    for name in FILM_MODALITIES:
        if run.setting("loss", "mode") != "normalized":
            return
        baseline, ceiling = values.get(f"fvu/training mean/{name}", 1.0), values.get(f"ceiling_fvu/{name}", 0.0)
        course = _course(run, f"diag/val_loss/{name}", f"Validation loss of {name}", baseline, ceiling)
        if found := loss_course.flat_loss(course):
            learned = values.get(f"verdict/{name}") == 1  # then it may rest at its best, which is known of fmri alone
            yield replace(found, severity="info") if learned else found


def _dominance(run: RunRecord) -> Iterator[Finding]:
    """Of the loss, the mean of the last rows; of the gradient at the bottleneck, the mean of the last readings."""
    for prefix, what in (("train/share/", "the loss"), ("diag/grad_share/", "the gradient at the bottleneck")):
        shares = {
            name: fmean(recent)
            for name in FILM_MODALITIES
            if (recent := [value for _, value in run.series(prefix + name)][-_RECENT:])
        }
        epoch = epoch_of(run, run.rows[-1]["step"]) if run.rows else None
        if found := loss_course.dominance(shares, what, math.floor(epoch) if epoch is not None else 0):
            yield found


def _patience(run: RunRecord) -> int:
    """Of the run, in epochs: its own counts readings."""
    found = run.setting("evaluation", "early_stopping_patience")
    steps = [reading.step for reading in run.readings]
    between = epoch_of(run, steps[-1] - steps[-2]) if len(steps) > 1 else None
    return math.ceil(found * between) if isinstance(found, int) and between else _PATIENCE
