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
from typing import TYPE_CHECKING

import numpy as np

from oct_foundation.diagnostics.labels import LabelKind
from oct_foundation.diagnostics.out_of_fold import Contestant
from oct_foundation.diagnostics.probes import ProbeRow, ProbeSettings, probe
from oct_foundation.diagnostics.voxel_controls import voxel_controls
from pretraining.command_line import add_device, positive, progress_bar, with_exit_code
from pretraining.probe_output import ENCODER, WIDE, print_table, write_json

if TYPE_CHECKING:
    from torch import nn

    from pretraining.encoder_file import SavedEncoder
    from pretraining.probe_data import ProbeData

log = logging.getLogger("octfm")


def main(argv: Sequence[str] | None = None) -> int:
    """Probes; 2 for a wrong call, 74 for a failing disk or bucket."""
    arguments = _parser().parse_args(argv)
    return with_exit_code(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="octfm probe", description="What a frozen encoder knows: labels read off its features, beside controls."
    )
    parser.add_argument("source", metavar="RUN|CKPT", help="run folder, checkpoint, export folder, gs://bucket/prefix")
    parser.add_argument("--data", required=True, help="prepared set, folder of scans, or `phantoms`: the benchmark")
    parser.add_argument("--split", choices=("train", "val", "test"), help="these volumes only (default: all)")
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
        default="ridge,logistic,knn,attentive",
        metavar="LIST",
        help="of ridge (numbers), logistic (classes), knn and attentive (both; minutes on large volumes)",
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


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from oct_foundation.runtime.select import choose_kind
    from pretraining.encoder_file import load_encoder

    settings = _settings(arguments)
    choose_kind(arguments.device)
    saved = load_encoder(arguments.source, step=arguments.step)
    data = _open(saved, arguments)
    for note in data.notes:
        log.warning("%s", note)
    features, data = _contestants(saved, data, settings, arguments)
    rows = _probe_labels(features, data, settings)
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(f"{saved.source}, step {saved.step}, on {arguments.data}", highlight=False, markup=False)
    print_table(rows, console)
    about = {"source": saved.source, "step": saved.step, "data": arguments.data}
    targets = [arguments.json] if arguments.json else []
    if saved.run_folder is not None:
        targets.append(saved.run_folder / "probes" / f"{saved.step}.json")
    for path in targets:
        write_json(path, rows, **about)
        print(path)
    return 0


def _settings(arguments: argparse.Namespace) -> ProbeSettings:
    if both := sorted(set(arguments.classes) & set(arguments.values)):
        raise ValueError(f"{', '.join(both)}: named in --classes and in --values; name it in one")
    kinds: dict[str, LabelKind] = dict.fromkeys(map(str.lower, arguments.classes), "classes")
    kinds |= dict.fromkeys(map(str.lower, arguments.values), "values")
    return ProbeSettings(
        probes=tuple(name.strip() for name in arguments.probes.split(",")),
        folds=arguments.folds,
        draws=arguments.seeds,
        resamples=arguments.resamples,
        kinds=kinds,
    )


def _open(saved: "SavedEncoder", arguments: argparse.Namespace) -> "ProbeData":
    from pretraining.probe_data import PHANTOMS, LabelChoice, phantom_data, scan_data

    choice = LabelChoice(
        table=arguments.labels,
        id_column=arguments.id_column,
        patient_column=arguments.patient_column,
        names=tuple(arguments.label),
    )
    if arguments.data == PHANTOMS:
        data = phantom_data(saved, choice, arguments.num_volumes)
    else:
        data = scan_data(saved, arguments.data, choice, split=arguments.split, work=arguments.work)
    if unknown := sorted({*map(str.lower, arguments.classes), *map(str.lower, arguments.values)} - data.labels.keys()):
        raise ValueError(f"--classes or --values: there is no label {', '.join(unknown)}; there are: {_all(data)}")
    return data


def _all(data: "ProbeData") -> str:
    return ", ".join(data.labels)


def _contestants(
    saved: "SavedEncoder", data: "ProbeData", settings: ProbeSettings, arguments: argparse.Namespace
) -> tuple[dict[str, Contestant | list[Contestant]], "ProbeData"]:
    """The encoder and its controls, and the data without the volumes that could not be read."""
    from pretraining.embedding import embed
    from pretraining.encoder_file import random_encoder

    tokens = "attentive" in settings.probes
    pool = arguments.pooling == "mean_std"

    def see(network: "nn.Module", name: str) -> tuple[Contestant, list[str]]:
        with progress_bar(f"volumes through {name}") as show:
            found = embed(
                network,
                data.volumes,
                tokens=tokens or pool,
                batch_size=arguments.batch_size,
                device=arguments.device,
                progress=show,
            )
        for error in found.bad:
            log.warning("left out: %s", error)
        pooled = found.pooled
        if pool:
            assert found.tokens is not None
            pooled = np.hstack([pooled, found.tokens.std(axis=1)])
        return Contestant(pooled=pooled, tokens=found.tokens if tokens else None), found.ids

    encoder, ids = see(saved.encoder, "the encoder")
    data = data.only(ids)
    networks = [random_encoder(saved.config, seed) for seed in range(settings.draws)]
    random = [see(network, "a random one")[0] for network in networks]
    log.info("voxels of %d volumes for the controls", len(ids))
    voxels = voxel_controls(data.volumes, range(len(ids)), saved.config.grid, saved.width)
    return {ENCODER: encoder, "random_init": random, **voxels}, data


def _probe_labels(
    features: dict[str, Contestant | list[Contestant]], data: "ProbeData", settings: ProbeSettings
) -> list[ProbeRow]:
    """Every label; one that nobody asked for and that cannot be judged is told of and left out."""
    settings = replace(settings, kinds={**data.kinds, **settings.kinds})
    rows: list[ProbeRow] = []
    reasons = []
    for number, (name, column) in enumerate(data.labels.items(), start=1):
        start = time.monotonic()
        try:
            rows += probe(features, {name: column}, data.groups, settings)
        except ValueError as error:
            if data.asked:
                raise
            reasons.append(str(error))
            log.warning("left out: %s", error)
            continue
        log.info("label %d of %d: %s, %.0f s", number, len(data.labels), name, time.monotonic() - start)
    if not rows:
        raise ValueError("no label can be judged: " + "; ".join(reasons or ["there is none; give --labels"]))
    return rows


if __name__ == "__main__":
    sys.exit(main())
