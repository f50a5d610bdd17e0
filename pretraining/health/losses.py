"""The record of a run -> its losses, reading by reading, with the baseline beside each; never across runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from oct_foundation.film import AUDIO, FILM_MODALITIES
from pretraining.health.foreign import ForeignFile
from pretraining.health.sections import Table, number
from pretraining.health.training_log import LoggedRun
from pretraining.report.gather import RunRecord

_MOST_ROWS = 60


@dataclass(frozen=True, kw_only=True)
class Column:
    """A metric and its heading."""

    label: str
    metric: str


def table_of(run: RunRecord, task: str) -> Table:
    """One row for each reading; the training loss is the mean of its rows since the reading before, LR the last."""
    columns = _columns(run, task)
    by_step = {step: values | _baselines(run, values) for step, values in merged(run).items()}
    steps = [step for step in sorted(by_step) if any(name.startswith(("diag/", "val/")) for name in by_step[step])]
    steps = steps or sorted(by_step)
    header = ["step", "epoch", "train loss", *(column.label for column in columns), "LR"]
    rows, before = [], -1
    for step in steps:
        at = by_step[step]
        since = [row for row in run.rows if before < row["step"] <= step]
        losses = [row["train/loss"] for row in since if "train/loss" in row]
        rates = [row["train/learning_rate"] for row in since if "train/learning_rate" in row]
        cells = [number(at[column.metric]) if column.metric in at else "–" for column in columns]
        epoch = epoch_of(run, step)
        rows.append(
            (
                f"{step:,}",
                "–" if epoch is None else f"{epoch:.4g}",
                number(fmean(losses)) if losses else "–",
                *cells,
                f"{rates[-1]:.2e}" if rates else "–",
            )
        )
        before = step
    return Table(header=tuple(header), rows=tuple(_thinned(rows)))


def baseline_lines(run: RunRecord, task: str) -> tuple[str, ...]:
    """What the columns are measured against."""
    last = run.readings[-1].values if run.readings else {}
    if task == "autoencoder":
        normalised = run.setting("loss", "mode") == "normalized"
        said = [
            "Losses are normalised: predicting the mean of the training TRs scores about 1.0 (video, text, fmri), the "
            "frequencies of the training codes about 1.0 (audio)."
            if normalised
            else "Losses are MSE / std and have a unit: predicting the mean scores the std, not 1."
        ]
        naive = [
            f"{name.removeprefix('fvu/').removesuffix('/fmri')} {number(value)}"
            for name, value in last.items()
            if name.startswith("fvu/") and name.endswith("/fmri") and name != "fvu/fmri"
        ]
        if naive:
            said.append(f"FVU of naive predictors of fmri on the same TRs: {', '.join(naive)}.")
        return tuple(said)
    if task == "multimodal":
        return ("Beside each accuracy stands that of always giving the commonest training answer.",)
    return (
        "A low V-JEPA loss may be a dead encoder's: beside it stands the loss of showing the average scan; the ratio "
        "must fall well below 1.",
    )


def log_table(run: LoggedRun) -> Table:
    """A foreign log's; it recorded no baseline."""
    rows = [
        (
            f"{line.epoch}" + (f"/{line.total}" if line.total else ""),
            number(line.train_loss, 6),
            number(line.val_loss, 6),
            "not recorded",
            "–" if line.correlation is None else f"{line.correlation:.4f}",
            "–" if line.learning_rate is None else f"{line.learning_rate:.2e}",
        )
        for line in run.epochs
    ]
    header = ("epoch", "train loss", "val loss", "baseline", "fMRI r", "LR")
    return Table(header=header, rows=tuple(_thinned(rows)))


def history_table(file: ForeignFile) -> Table | None:
    """What a checkpoint remembers of its epochs; None for nothing."""
    length = max(len(file.train), len(file.val))
    rows = [
        (
            f"{place + 1}",
            number(file.train[place], 6) if place < len(file.train) else "–",
            number(file.val[place], 6) if place < len(file.val) else "–",
            "not recorded",
        )
        for place in range(length)
    ]
    header = ("epoch", "train loss", "val loss", "baseline")
    return Table(header=header, rows=tuple(_thinned(rows)), caption=f"History in {file.path.name}") if rows else None


def merged(run: RunRecord) -> dict[int, dict[str, float]]:
    """All metrics of a step, whatever row they stood in."""
    found: dict[int, dict[str, float]] = {}
    for row in run.rows:
        found.setdefault(int(row["step"]), {}).update({name: value for name, value in row.items() if name != "step"})
    return found


def epoch_of(run: RunRecord, step: float) -> float | None:
    """Passes through the data after `step` updates; None where nobody knows how long one is."""
    length = steps_per_epoch(run)
    return step / length if length else None


def steps_per_epoch(run: RunRecord) -> float | None:
    """From what checkpoints know, else from the record."""
    facts = run.checkpoints[-1].get("facts") if run.checkpoints else None
    if isinstance(facts, Mapping):
        samples, batch = facts.get("samples_per_epoch"), facts.get("global_batch")
        if isinstance(samples, int) and isinstance(batch, int) and batch and samples:
            return samples / batch
    for step, epoch in reversed(run.series("train/epoch")):
        if step > 0 and epoch > 0 and math.isfinite(epoch):
            return step / epoch
    return None


def _baselines(run: RunRecord, values: Mapping[str, float]) -> dict[str, float]:
    """`baseline/<modality>`: what the training mean (audio: the training frequencies) scores in the unit of that loss,
    by the ratio of two figures of the same TRs; `baseline/all`: their weighted sum.
    """
    found: dict[str, float] = {}
    for name in FILM_MODALITIES:
        naive, own = (f"diag/fvu/training mean/{name}", f"diag/fvu/{name}")
        if name == AUDIO:
            naive, own = "diag/unigram/audio", "diag/cross_entropy/audio"
        if name == "fmri" and run.setting("loss", "fmri_loss") != "mse":
            continue  # a correlation has no such ratio
        loss = values.get(f"diag/val_loss/{name}")
        if loss is not None and naive in values and values.get(own):
            found[f"baseline/{name}"] = loss * values[naive] / values[own]
    weights = [run.setting("loss", f"{name}_weight") for name in FILM_MODALITIES]
    if len(found) == len(weights) and all(isinstance(weight, int | float) for weight in weights):
        found["baseline/all"] = sum(weight * base for weight, base in zip(weights, found.values(), strict=True))
    return found


def _columns(run: RunRecord, task: str) -> list[Column]:
    names = {name for row in run.rows for name in row}
    names |= {name for values in merged(run).values() for name in _baselines(run, values)}
    if task == "autoencoder":
        wanted = [("val loss", "diag/val_loss"), ("mean scores", "baseline/all")]
        for name in FILM_MODALITIES:
            wanted += [(name, f"diag/val_loss/{name}"), ("mean scores", f"baseline/{name}")]
        wanted += [("fMRI r over time", "diag/r_time/fmri"), ("over voxels", "diag/r_voxels/fmri")]
    elif task == "multimodal":
        wanted = [("val loss", "val/loss")]
        for kind in sorted(name.removeprefix("diag/gain/") for name in names if name.startswith("diag/gain/")):
            wanted += [(f"{kind} right", f"diag/accuracy/{kind}"), (f"{kind} commonest", f"diag/majority/{kind}")]
    else:
        wanted = [("val loss", "val/loss"), ("held-out loss", "diag/loss"), ("average scan", "diag/loss_pos")]
        wanted += [("ratio", "diag/pos_ratio"), ("spread of scans", "diag/pooled_std")]
    return [Column(label=label, metric=metric) for label, metric in wanted if metric in names]


def _thinned(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The first rows and the last ones of a long table, with a row that says how many are between."""
    if len(rows) <= _MOST_ROWS:
        return list(rows)
    half = _MOST_ROWS // 2
    gap = (f"… {len(rows) - 2 * half} more", *([""] * (len(rows[0]) - 1)))
    return [*rows[:half], gap, *rows[-half:]]
