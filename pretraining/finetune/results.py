"""Predictions for held-out patients -> metrics.json, predictions.csv, and a few lines for the terminal.

Scores have 95 % intervals over patients and stand beside somebody who has not looked.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from oct_foundation.checkpoints.export import write_whole
from oct_foundation.diagnostics.folds import Split
from oct_foundation.diagnostics.intervals import interval, patient_weights
from oct_foundation.diagnostics.labels import Label
from oct_foundation.diagnostics.scores import auroc, balanced_accuracy, mae, r2
from pretraining.encoder_file import SavedEncoder, weights_sha256
from pretraining.finetune.labelled import Labelled
from pretraining.finetune.outputs import Outputs
from pretraining.finetune.settings import FineTuneSettings
from pretraining.finetune.training import Trained
from pretraining.seen_volumes import told

RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Every held-out volume once: numbers into the labelled volumes [M], the fold of each [M], both predictions."""

    numbers: np.ndarray
    fold: np.ndarray
    predicted: np.ndarray
    by_mean: np.ndarray

    @classmethod
    def of(cls, outputs: Outputs, label: Label, split: Split, fold: int, predicted: np.ndarray) -> Self:
        """Of one network: what it says of `split.test`, beside what its training volumes alone would say."""
        count = len(split.test)
        by_mean = outputs.mean_predictions(label, split.train, count)
        return cls(numbers=split.test, fold=np.full(count, fold), predicted=predicted, by_mean=by_mean)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Of all folds."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def metrics_of(
    saved: SavedEncoder, data: Labelled, settings: FineTuneSettings, trained: Trained, held_out: HeldOut
) -> dict[str, Any]:
    """What metrics.json says: scores (`metrics`, `mean_predictor`) as value, low, high, and where they come from."""
    trainable = sum(parameter.numel() for parameter in trained.model.parameters() if parameter.requires_grad)
    weights = patient_weights(data.patients[held_out.numbers], RESAMPLES, settings.seed)
    return {
        "label": asdict(trained.outputs),
        "metrics": _scores(data.label, held_out, held_out.predicted, weights),
        "mean_predictor": _scores(data.label, held_out, held_out.by_mean, weights),
        "volumes": len(data),
        "patients": len(set(data.patients.tolist())),
        "held_out_volumes": len(held_out.numbers),
        "held_out_patients": len(set(data.patients[held_out.numbers].tolist())),
        "held_out_seen_in_pretraining": _num_seen(data, settings, held_out),
        "losses": trained.losses,
        "trained_parameters": trainable,
        "encoder": {"source": saved.source, "step": saved.step, "sha256": weights_sha256(saved.encoder)},
        "settings": asdict(settings),
    }


def _num_seen(data: Labelled, settings: FineTuneSettings, held_out: HeldOut) -> int | None:
    """Held-out volumes that the encoder was pretrained on, without their labels; None where nobody knows."""
    if settings.init == "random":
        return 0
    return None if data.seen is None else int(data.seen[held_out.numbers].sum())


def _scores(
    label: Label, held_out: HeldOut, predicted: np.ndarray, weights: np.ndarray
) -> dict[str, dict[str, float | None]]:
    truth = label.targets[held_out.numbers]
    if label.kind == "values":
        found = {"r2": r2(truth, predicted, weights), "mae": mae(truth, predicted, weights)}
    else:
        found = {
            "auroc": auroc(truth, predicted, held_out.fold, weights),
            "balanced_accuracy": balanced_accuracy(truth, predicted.argmax(axis=1), weights),
        }
    return {
        metric: {name: None if np.isnan(value) else value for name, value in interval(scores)._asdict().items()}
        for metric, scores in found.items()
    }


def write_results(metrics: dict[str, Any], data: Labelled, held_out: HeldOut, folder: Path) -> None:
    """Writes predictions.csv, then metrics.json."""
    write_whole(folder / "predictions.csv", _predictions(data, held_out).encode())
    write_whole(folder / "metrics.json", json.dumps(metrics, indent=1).encode() + b"\n")


def _predictions(data: Labelled, held_out: HeldOut) -> str:
    """CSV: id, fold, truth and what was predicted of each held-out volume."""
    label, text = data.label, io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    is_class = label.kind == "classes"
    writer.writerow(["id", "fold", "truth", *([f"p({name})" for name in label.classes] if is_class else ["predicted"])])
    for number, fold, found in zip(held_out.numbers, held_out.fold, held_out.predicted, strict=True):
        truth = label.classes[label.targets[number]] if is_class else float(label.targets[number])
        writer.writerow([data.row(number).id, fold, truth, *np.atleast_1d(found).tolist()])
    return text.getvalue()


def summary(metrics: dict[str, Any]) -> list[str]:
    """How many were held out and from whom, and a line per metric."""
    lines = [
        f"{metrics['held_out_volumes']} of {metrics['volumes']} volumes held out, of "
        f"{metrics['held_out_patients']} of {metrics['patients']} patients: unseen by this fine-tuning",
    ]
    if metrics["settings"]["init"] == "pretrained":
        lines.append(told(metrics["held_out_seen_in_pretraining"], metrics["held_out_volumes"], which="held-out "))
    for name, found in metrics["metrics"].items():
        value, low, high = (_text(found[key]) for key in ("value", "low", "high"))
        beside = _text(metrics["mean_predictor"][name]["value"])
        lines.append(f"{name} {value} ({low} to {high}); without looking: {beside}")
    return lines


def _text(value: float | None) -> str:
    """Three digits, or a dash where there is nothing to score."""
    return "-" if value is None else f"{value:.3f}"
