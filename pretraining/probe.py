"""`octfm probe RUN|CKPT --data DATA`: does the frozen encoder know more of the eye than a random one, or raw voxels?

Volumes go through the encoder once; ridge, logistic regression, nearest neighbours and an attentive probe then read
labels off its features, scored on patients that they have not seen.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from oct_foundation.diagnostics.folds import check_enough
from oct_foundation.diagnostics.labels import LabelKind, read_label
from oct_foundation.diagnostics.probes import ProbeRow, ProbeSettings, probe
from pretraining.command_line import add_device, open_folder, positive, with_exit_code
from pretraining.label_table import PHANTOMS
from pretraining.patch_labels import NAMES, PREFIX, sample_patches
from pretraining.probe_output import WIDE, data_slug, print_table, write_json
from pretraining.seen_volumes import told

if TYPE_CHECKING:
    from pretraining.encoder_file import SavedEncoder
    from pretraining.patch_labels import SampledPatches
    from pretraining.probe_data import ProbeData
    from pretraining.probe_features import Contestants, ProbeFeatures

log = logging.getLogger("octfm")
_ALL_PROBES = "ridge,logistic,knn,attentive"
_LINEAR_PROBES = "ridge,logistic,knn"


def main(argv: Sequence[str] | None = None) -> int:
    """Probes; 2 for a wrong call, 74 for a failing disk or bucket."""
    arguments = _parser().parse_args(argv)
    return with_exit_code(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="octfm probe", description="What a frozen encoder knows: labels read off its features, beside controls."
    )
    parser.add_argument("source", metavar="RUN|CKPT", help="run folder, checkpoint, export folder, gs://bucket/prefix")
    parser.add_argument("--data", required=True, help=f"prepared set, folder of scans, or `{PHANTOMS}`: the benchmark")
    parser.add_argument("--split", choices=("train", "val", "test", "all"), help=_SPLIT_HELP)
    parser.add_argument("--dense", action="store_true", help=_DENSE_HELP)
    parser.add_argument("--num-volumes", type=positive, metavar="N", help="so many phantoms (default: 480)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where scans are prepared (default: ~/.cache/octfm)")
    parser.add_argument("--labels", metavar="FILE.csv", help="table (.csv, .tsv, .parquet); default: header labels")
    parser.add_argument("--id-column", help="its column of ids, files or patients (default: id, else file or path)")
    parser.add_argument("--patient-column", help="its column of patients (default: as the scans' headers say)")
    parser.add_argument("--label", nargs="+", default=[], metavar="NAME", help="these only (default: all that fit)")
    parser.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="labels to take as classes")
    parser.add_argument("--values", nargs="+", default=[], metavar="NAME", help="labels to take as numbers")
    parser.add_argument(
        "--probes",
        metavar="LIST",
        help="of ridge (numbers), logistic (classes), knn and attentive (both; minutes on large volumes); default: "
        "all, without attentive where its tokens would take more than half of the free memory",
    )
    parser.add_argument("--pooling", choices=("mean", "mean_std"), default="mean", help=_POOLING_HELP)
    parser.add_argument("--folds", type=positive, default=5, help="folds of patients (default: 5)")
    parser.add_argument(
        "--seeds", type=positive, default=1, help="draws of the folds, each with another random network (default: 1)"
    )
    parser.add_argument("--resamples", type=positive, default=1000, help="of the bootstrap (default: 1000)")
    parser.add_argument("--step", type=int, help="this step of a run (default: its newest intact checkpoint)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all scores here too")
    add_device(parser, batch_size=4)
    return parser


_POOLING_HELP = "what ridge, logistic and knn see of the patches: their mean, or mean and deviation (default: mean)"
_SPLIT_HELP = "these volumes only (default: all; of the very set that the encoder was pretrained on, val and test)"
_DENSE_HELP = f"with --data {PHANTOMS}: also read tissue and fluid off single patches (labels patch/layer, patch/fluid)"


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from oct_foundation.runtime.select import choose_kind
    from pretraining.encoder_file import load_encoder

    settings = _settings(arguments)
    choose_kind(arguments.device)
    saved = load_encoder(arguments.source, step=arguments.step)
    data, patches = _open(saved, arguments)
    settings, notes = _within_memory(
        settings, len(data.volumes) if data.labels else 0, saved, explicit=arguments.probes is not None
    )
    notes = [*data.notes, *(patches.notes if patches else []), *notes]
    for note in notes:
        log.warning("%s", note)
    if arguments.json is not None:
        open_folder(arguments.json.parent)
    if arguments.label:
        _check_labels(data, settings)
    features = _features(saved, data, patches, settings, arguments)
    rows = _answers(_questions(features, patches, settings), asked=bool(arguments.label))
    about = _about(saved, features.data, arguments)
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(f"{saved.source}, step {saved.step}, on {arguments.data}", highlight=False, markup=False)
    print_table(rows, console)
    if about["acquaintance"]:
        loud = "NOT UNSEEN. " if about["seen_in_pretraining"] else ""
        console.print(f"{loud}{about['acquaintance']}", highlight=False, markup=False, style="bold" if loud else None)
    targets = [arguments.json] if arguments.json else []
    if saved.run_folder is not None:
        slug = data_slug(arguments.data, split=data.split, labels=arguments.labels, dense=arguments.dense)
        targets.append(saved.run_folder / "probes" / f"{saved.step}-{slug}.json")
    for path in targets:
        write_json(path, rows, **about, notes=notes)
        print(path)
    return 0


def _settings(arguments: argparse.Namespace) -> ProbeSettings:
    if arguments.dense and arguments.data != PHANTOMS:
        raise ValueError(f"--dense needs --data {PHANTOMS}, whose every patch is known; found --data {arguments.data}")
    if both := sorted(set(arguments.classes) & set(arguments.values)):
        raise ValueError(f"{', '.join(both)}: named in --classes and in --values; name it in one")
    kinds: dict[str, LabelKind] = dict.fromkeys(map(str.lower, arguments.classes), "classes")
    kinds |= dict.fromkeys(map(str.lower, arguments.values), "values")
    named: tuple[Any, ...] = tuple(name.strip() for name in (arguments.probes or _ALL_PROBES).split(","))
    return ProbeSettings(
        probes=named,
        folds=arguments.folds,
        draws=arguments.seeds,
        resamples=arguments.resamples,
        kinds=kinds,
    )


def _open(saved: "SavedEncoder", arguments: argparse.Namespace) -> "tuple[ProbeData, SampledPatches | None]":
    """The data and, with --dense, the patches that are judged; --label may name labels of either."""
    from pretraining.probe_data import LabelChoice, phantom_benchmark, phantom_data, scan_data

    names = [name.lower() for name in arguments.label]
    of_patches = [name for name in names if arguments.dense and name in NAMES]
    choice = LabelChoice(
        table=arguments.labels,
        id_column=arguments.id_column,
        patient_column=arguments.patient_column,
        names=tuple(name for name in names if name not in of_patches),
    )
    if arguments.data == PHANTOMS:
        data = phantom_data(saved, choice, arguments.num_volumes)
    else:
        data = scan_data(saved, arguments.data, choice, split=arguments.split, work=arguments.work)
    if names == of_patches != []:
        data = replace(data, labels={})
    if unknown := sorted({*map(str.lower, arguments.classes), *map(str.lower, arguments.values)} - data.labels.keys()):
        raise ValueError(f"--classes or --values: there is no label {', '.join(unknown)}; there are: {_all(data)}")
    if not arguments.dense or (names and not of_patches):
        return data, None
    benchmark = phantom_benchmark(saved, arguments.num_volumes)
    return data, sample_patches(benchmark, folds=arguments.folds, names=of_patches or NAMES)


def _all(data: "ProbeData") -> str:
    return ", ".join(data.labels)


def _within_memory(
    settings: ProbeSettings, num_volumes: int, saved: "SavedEncoder", *, explicit: bool
) -> tuple[ProbeSettings, list[str]]:
    """Without the attentive probe, and a note, where its tokens would not fit; a ValueError where it was asked for."""
    from pretraining.free_memory import free_bytes

    free = free_bytes()
    # One copy of the tokens for each network, and 3 that the probe works on (measured: 2.8).
    copies = 1 + settings.draws + 3
    wanted = 4 * num_volumes * saved.config.grid.num_patches * saved.width * copies
    if "attentive" not in settings.probes or free is None or wanted <= free / 2:
        return settings, []
    found = (
        f"the attentive probe would take {wanted / 1e9:.1f} GB for the tokens of {num_volumes} volumes, more than half "
        f"of the {free / 1e9:.1f} GB of free memory"
    )
    rest = [name for name in settings.probes if name != "attentive"]
    if explicit:
        raise ValueError(f"--probes: {found}; use --probes {','.join(rest) or _LINEAR_PROBES}, or fewer volumes")
    return replace(settings, probes=tuple(rest)), [f"left out: {found}; fewer volumes need less"]


def _check_labels(data: "ProbeData", settings: ProbeSettings) -> None:
    """Raises ValueError where one cannot be judged, before the first volume is looked at: the others are not lost."""
    for name, column in data.labels.items():
        label = read_label(name, column, {**data.kinds, **settings.kinds}.get(name))
        check_enough(label, np.asarray(data.groups)[label.known], settings.folds)


def _features(
    saved: "SavedEncoder",
    data: "ProbeData",
    patches: "SampledPatches | None",
    settings: ProbeSettings,
    arguments: argparse.Namespace,
) -> "ProbeFeatures":
    from pretraining.probe_features import Looking, features_of

    looking = Looking(
        draws=settings.draws,
        tokens="attentive" in settings.probes and bool(data.labels),
        deviation=arguments.pooling == "mean_std",
        positions=None if patches is None else patches.positions,
        batch_size=arguments.batch_size,
        device=arguments.device,
    )
    return features_of(saved, data, looking)


class _Question(NamedTuple):
    """One label of some rows (volumes, or patches), and the features of these rows."""

    label: str
    column: Sequence[Any]
    features: "Contestants"
    groups: Sequence[str]
    settings: ProbeSettings

    def answer(self) -> list[ProbeRow]:
        """Raises ValueError where the label cannot be judged."""
        rows = probe(self.features, {self.label: self.column}, self.groups, self.settings)
        if not self.label.startswith(PREFIX):
            return rows
        return [replace(row, num_volumes=row.num_patients, num_missing=0) for row in rows]  # it had counted patches


def _questions(features: "ProbeFeatures", patches: "SampledPatches | None", settings: ProbeSettings) -> list[_Question]:
    """Every label, of volumes and then of patches; patches are read by the linear probe alone."""
    data = features.data
    of_volumes = replace(settings, kinds={**data.kinds, **settings.kinds})
    found = [_Question(name, column, features.volumes, data.groups, of_volumes) for name, column in data.labels.items()]
    if patches is not None:
        linear = replace(settings, probes=("logistic",))
        found += [
            _Question(name, column, features.patches, patches.groups, linear) for name, column in patches.labels.items()
        ]
    return found


def _answers(questions: Sequence[_Question], *, asked: bool) -> list[ProbeRow]:
    """What cannot be judged is told of and left out; an error where it was asked for by name, or nothing is left."""
    rows: list[ProbeRow] = []
    reasons = []
    for number, question in enumerate(questions, start=1):
        start = time.monotonic()
        try:
            rows += question.answer()
        except ValueError as error:
            if asked:
                raise
            reasons.append(str(error))
            log.warning("left out: %s", error)
            continue
        log.info("label %d of %d: %s, %.0f s", number, len(questions), question.label, time.monotonic() - start)
    if not rows:
        raise ValueError("no label can be judged: " + "; ".join(reasons or ["there is none; give --labels"]))
    return rows


def _about(saved: "SavedEncoder", data: "ProbeData", arguments: argparse.Namespace) -> dict[str, Any]:
    """What was probed, on what, and whether the encoder knows these volumes."""
    total = len(data.volumes)
    generated = arguments.data == PHANTOMS and not data.num_seen  # nobody trains on them without meaning to
    return {
        "source": saved.source,
        "step": saved.step,
        "data": arguments.data,
        "split": data.split,
        "volumes": total,
        "seen_in_pretraining": data.num_seen,
        "acquaintance": "" if generated else told(data.num_seen, total),
    }


if __name__ == "__main__":
    sys.exit(main())
