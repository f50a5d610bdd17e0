"""`octfm finetune CKPT --data DATA --labels FILE.csv --label NAME --out DIR`: trains, scores, saves.

With --folds each patient is held out once; the network that is saved then learned from all volumes.
"""

import argparse
import csv
import io
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from oct_foundation.checkpoints.export import write_whole
from oct_foundation.diagnostics.folds import Split
from oct_foundation.diagnostics.labels import LabelKind
from oct_foundation.runtime.native import NativeRuntime
from oct_foundation.runtime.select import choose_kind
from pretraining.command_line import add_device, progress_bar, with_exit_code
from pretraining.embedding import open_volumes
from pretraining.encoder_file import SavedEncoder, load_encoder, random_encoder, weights_sha256
from pretraining.finetune.judging import HeldOut, scores_of
from pretraining.finetune.labelled import Labelled, held_out_splits, read_labelled
from pretraining.finetune.saved_model import save_model
from pretraining.finetune.settings import FineTuneSettings
from pretraining.finetune.training import Trained, fine_tune, num_steps, parameters_of, predict

log = logging.getLogger("octfm")
_DEFAULTS = FineTuneSettings()
_KINDS: dict[str, LabelKind] = {"classification": "classes", "regression": "values"}


def main(argv: Sequence[str] | None = None) -> int:
    """Fine-tunes; 2 for a wrong call, 74 for a failing disk or bucket."""
    arguments = _parser().parse_args(argv)
    return with_exit_code(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="octfm finetune", description="Train an encoder with a head on a label; score it on unseen patients."
    )
    parser.add_argument(
        "encoder", metavar="CKPT", help="run folder, checkpoint, export or Hugging Face folder, gs://..."
    )
    parser.add_argument("--data", required=True, help="prepared set, folder of scans, manifest, list, gs://...")
    parser.add_argument("--labels", required=True, metavar="FILE.csv", help="columns id, the label and, best, patient")
    parser.add_argument("--label", required=True, metavar="NAME", help="the column to learn")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where model, metrics and predictions go"
    )
    parser.add_argument(
        "--kind", choices=tuple(_KINDS), help="default: more than 10 different numbers are a regression"
    )
    parser.add_argument("--step", type=int, help="this step of a run (default: its newest intact checkpoint)")
    parser.add_argument("--init", choices=("pretrained", "random"), default="pretrained", help="random: the control")
    parser.add_argument(
        "--head", choices=("linear", "attentive"), default=_DEFAULTS.head, help="mean, or learned queries"
    )
    parser.add_argument("--freeze", action="store_true", help="train the head alone")
    parser.add_argument("--mirror", action="store_true", help="mirror volumes at random; not for labels of a side")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="where scans are prepared (default: ~/.cache/octfm/...)"
    )
    numbers: tuple[tuple[str, type, str, str], ...] = (
        ("--epochs", int, "epochs", "passes over the training volumes"),
        ("--lr", float, "lr", "learning rate of the head, after warm-up"),
        ("--layer-decay", float, "layer_decay", "learning rate of each layer over that of the layer above"),
        ("--weight-decay", float, "weight_decay", "of AdamW"),
        ("--val-fraction", float, "val_fraction", "share of the patients that is held out, where the labels name them"),
        ("--seed", int, "seed", "of the head, the order and the split"),
    )
    for option, kind, name, text in numbers:
        default = getattr(_DEFAULTS, name)
        parser.add_argument(option, type=kind, default=default, help=f"{text} (default: {default:g})")
    parser.add_argument(
        "--folds", type=int, default=0, dest="num_folds", metavar="K", help="hold out each patient once"
    )
    add_device(parser, batch_size=_DEFAULTS.batch_size)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    names = asdict(_DEFAULTS)
    settings = FineTuneSettings(**{name: value for name, value in vars(arguments).items() if name in names})
    choose_kind(arguments.device)
    runtime = NativeRuntime(arguments.device)
    saved = load_encoder(arguments.encoder, step=arguments.step)
    if settings.init == "random":
        saved = replace(saved, encoder=random_encoder(saved.config, settings.seed))
    volumes = open_volumes(arguments.data, saved.config.image_size, work=arguments.work, run_config=saved.run_config)
    kind = _KINDS.get(arguments.kind)
    data, bad = read_labelled(volumes, arguments.labels, arguments.label, kind)
    for error in bad:
        print(f"octfm: left out: {error}", file=sys.stderr)
    splits = held_out_splits(data, settings)
    if note := volumes.prepared.info["split_note"]:
        log.warning("%s", note)
    runs = [*(split.train for split in splits), *([np.arange(len(data))] if settings.num_folds else [])]
    with progress_bar("fine-tuning") as show:
        on_step = _counter(show, sum(num_steps(settings, len(train)) for train in runs))
        held_out, trained = _held_out(saved, data, splits, settings, runtime, on_step)
        if settings.num_folds:
            trained = fine_tune(saved, data, runs[-1], settings, runtime, on_step)
    metrics = _record(saved, data, settings, trained, splits) | scores_of(
        data.label, data.groups, held_out, settings.seed
    )
    save_model(trained, saved, settings, arguments.out)
    write_whole(arguments.out / "predictions.csv", _predictions(data, held_out).encode())
    write_whole(arguments.out / "metrics.json", json.dumps(metrics, indent=1).encode() + b"\n")
    print("\n".join([*_summary(metrics), f"{arguments.out}"]))
    return 0


def _counter(show: Callable[[int, int], None], total: int) -> Callable[[], None]:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        show(done, total)

    return count


def _held_out(
    saved: SavedEncoder,
    data: Labelled,
    splits: list[Split],
    settings: FineTuneSettings,
    runtime: NativeRuntime,
    on_step: Callable[[], None],
) -> tuple[HeldOut, Trained]:
    """A network per split, each asked about what it has not seen; and the last of them."""
    predicted, by_mean = list[np.ndarray](), list[np.ndarray]()
    for number, split in enumerate(splits, start=1):
        trained = fine_tune(saved, data, split.train, settings, runtime, on_step)
        log.info(
            "split %d of %d: loss %.4f in the first epoch, %.4f in the last",
            number,
            len(splits),
            trained.losses[0],
            trained.losses[-1],
        )
        predicted.append(predict(trained, data, split.test, runtime, settings.batch_size))
        by_mean.append(trained.outputs.mean_predictions(data.label, split.train, len(split.test)))
    fold = np.repeat(np.arange(len(splits)), [len(split.test) for split in splits])
    numbers = np.concatenate([split.test for split in splits])
    return HeldOut(
        numbers=numbers, fold=fold, predicted=np.concatenate(predicted), by_mean=np.concatenate(by_mean)
    ), trained


def _record(
    saved: SavedEncoder, data: Labelled, settings: FineTuneSettings, trained: Trained, splits: list[Split]
) -> dict[str, Any]:
    """What metrics.json says besides the scores."""
    return {
        "label": trained.outputs.to_dict(),
        "encoder": {"source": saved.source, "step": saved.step, "sha256": weights_sha256(saved.encoder)},
        "settings": asdict(settings),
        "trained_parameters": parameters_of(trained.model),
        "volumes": len(data),
        "held_out": sum(len(split.test) for split in splits),
        "patients": len(np.unique(data.groups)) if data.patients is not None else None,
        "losses": trained.losses,
    }


def _predictions(data: Labelled, held_out: HeldOut) -> str:
    """CSV: id, fold, the truth and what was predicted of each held-out volume."""
    label, text = data.label, io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    is_class = label.kind == "classes"
    writer.writerow(["id", "fold", "truth", *([f"p({name})" for name in label.classes] if is_class else ["predicted"])])
    for number, fold, found in zip(held_out.numbers, held_out.fold, held_out.predicted, strict=True):
        truth = label.classes[label.targets[number]] if is_class else float(label.targets[number])
        writer.writerow([data.rows[number].id, fold, truth, *np.atleast_1d(found).tolist()])
    return text.getvalue()


def _summary(metrics: dict[str, Any]) -> list[str]:
    """A line per metric."""
    lines = [f"{metrics['held_out']} held-out volumes of {metrics['patients'] or 'unnamed'} patients"]
    for name, found in metrics["metrics"].items():
        value, low, high = (_text(found[key]) for key in ("value", "low", "high"))
        beside = _text(metrics["mean_predictor"][name]["value"])
        lines.append(f"{name} {value} ({low} to {high}); without looking: {beside}")
    return lines


def _text(value: float | None) -> str:
    """Three digits, or a dash where there is nothing to score."""
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(main())
