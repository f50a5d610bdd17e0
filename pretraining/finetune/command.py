"""`octfm finetune CKPT --data DATA [--labels FILE.csv] --label NAME --out DIR`: trains, scores, saves.

With --folds each patient is held out once; the network that is saved then learned from all volumes.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from oct_foundation.diagnostics.labels import LabelKind
from oct_foundation.runtime.native import NativeRuntime
from oct_foundation.runtime.select import choose_kind
from pretraining.command_line import add_device, open_folder, positive, progress_bar, with_exit_code
from pretraining.encoder_file import FINETUNED_TYPE, SavedEncoder, load_encoder, random_encoder
from pretraining.finetune.labelled import Labelled, held_out_splits, labelled_volumes
from pretraining.finetune.results import HeldOut, metrics_of, summary, write_results
from pretraining.finetune.saved_model import save_model
from pretraining.finetune.settings import FineTuneSettings
from pretraining.finetune.training import fine_tune, num_steps, predict
from pretraining.label_table import PHANTOMS
from pretraining.probe_data import LabelChoice, phantom_data, scan_data

log = logging.getLogger("octfm")
_DEFAULTS = FineTuneSettings()
_KIND_HELP = "default: more than 10 different numbers, or fractions that hardly repeat, are a regression"
_KINDS: dict[str, LabelKind] = {"classification": "classes", "regression": "values"}


def main(argv: Sequence[str] | None = None) -> int:
    """Fine-tunes; 2 for a wrong call, 74 for a failing disk or bucket."""
    arguments = _parser().parse_args(argv)
    return with_exit_code(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="octfm finetune", description="Train an encoder with a head on a label; score it on unseen patients."
    )
    add = parser.add_argument
    add("encoder", metavar="CKPT", help="run folder, checkpoint, export or Hugging Face folder, gs://...")
    add("--data", required=True, help=f"prepared set, folder of scans, list, gs://..., or {PHANTOMS}: the benchmark")
    add("--labels", metavar="FILE.csv", help="table (.csv, .tsv, .parquet); default: header labels")
    add("--label", required=True, metavar="NAME", help="the label to learn")
    add("--kind", choices=tuple(_KINDS), help=_KIND_HELP)
    add("--id-column", metavar="NAME", help="column of ids, files or patients (default: id, else file or path)")
    add("--patient-column", metavar="NAME", help="column of patients (default: as the scans' headers say)")
    add("--out", type=Path, required=True, metavar="DIR", help="where model, metrics and predictions go")
    add("--step", type=int, help="this step of a run (default: its newest intact checkpoint)")
    add("--init", choices=("pretrained", "random"), default=_DEFAULTS.init, help="random: the control")
    add(
        "--head",
        choices=("linear", "attentive"),
        default=_DEFAULTS.head,
        help="mean of the patches, or learned queries",
    )
    add("--freeze", action="store_true", help="train the head alone")
    add("--mirror", action="store_true", help="show volumes mirrored at random; not for labels that know a side")
    add(
        "--folds", type=int, default=0, dest="num_folds", metavar="K", help="hold out each patient once, in K trainings"
    )
    for option, kind, text in (
        ("--epochs", int, "passes over the training volumes"),
        ("--lr", float, "learning rate of the head, after warm-up"),
        ("--layer-decay", float, "learning rate of each layer over that of the layer above"),
        ("--weight-decay", float, "of AdamW"),
        ("--val-fraction", float, "share of the patients that is held out, without --folds"),
        ("--seed", int, "of the head, the order and the split"),
    ):
        default = getattr(_DEFAULTS, option.removeprefix("--").replace("-", "_"))
        add(option, type=kind, default=default, help=f"{text} (default: {default:g})")
    add("--num-volumes", type=positive, metavar="N", help=f"so many phantoms, with --data {PHANTOMS} (default: 480)")
    add("--work", type=Path, metavar="DIR", help="where scans are prepared (default: ~/.cache/octfm/...)")
    add_device(parser, batch_size=_DEFAULTS.batch_size)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    settings = FineTuneSettings(
        **{
            field.name: getattr(arguments, field.name)
            for field in fields(FineTuneSettings)
            if hasattr(arguments, field.name)
        }
    )
    choose_kind(arguments.device)
    runtime = NativeRuntime(arguments.device)
    saved = load_encoder(arguments.encoder, step=arguments.step)
    if settings.init == "random":
        saved = replace(saved, encoder=random_encoder(saved.config, settings.seed))
    data = _labelled(saved, arguments)
    splits = held_out_splits(data, settings)
    written = ("model.safetensors", "metrics.json", "predictions.csv")
    open_folder(arguments.out, replacing=written, model_types=(FINETUNED_TYPE,))
    sizes = [*(len(split.train) for split in splits), *([len(data)] if settings.num_folds else [])]
    with progress_bar("fine-tuning") as show:
        on_step = _counter(show, sum(num_steps(settings, size) for size in sizes))
        held_out: list[HeldOut] = []
        for fold, split in enumerate(splits):
            trained = fine_tune(saved, data, split.train, settings, runtime, on_step)
            predicted = predict(trained, data, split.test, runtime, settings.batch_size)
            held_out.append(HeldOut.of(trained.outputs, data.label, split, fold, predicted))
        if settings.num_folds:
            trained = fine_tune(saved, data, np.arange(len(data)), settings, runtime, on_step)
    answers = HeldOut.joined(held_out)
    metrics = metrics_of(saved, data, settings, trained, answers)
    print("\n".join(summary(metrics)))  # first: a full disk shall not take them along
    save_model(trained, saved, settings, arguments.out)
    write_results(metrics, data, answers, arguments.out)
    print(arguments.out)
    return 0


def _labelled(saved: SavedEncoder, arguments: argparse.Namespace) -> Labelled:
    """The volumes that have the label, after a line for each that cannot be used."""
    choice = LabelChoice(
        table=arguments.labels,
        id_column=arguments.id_column,
        patient_column=arguments.patient_column,
        names=(arguments.label,),
    )
    if arguments.data == PHANTOMS:
        found = phantom_data(saved, choice, arguments.num_volumes)
    else:
        found = scan_data(saved, arguments.data, choice, split="all", work=arguments.work)
    for note in found.notes:
        log.warning("%s", note)
    data, bad = labelled_volumes(found, arguments.label, _KINDS.get(arguments.kind))
    for error in bad:
        print(f"octfm: left out: {error}", file=sys.stderr)
    return data


def _counter(show: Callable[[int, int], None], total: int) -> Callable[[], None]:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        show(done, total)

    return count


if __name__ == "__main__":
    sys.exit(main())
