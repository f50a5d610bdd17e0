"""What would a step cost on which slice?  python -m benchmarks.preflight --json FILE [--topologies ...] [--shapes ...]

A matrix of slices, shapes and per-core batches through `octfm preflight`: nothing runs on a TPU, every figure is the
compiler's or follows from it. A cell takes one to five minutes on two cores; those in the file are not made again.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import machine_facts, print_report, versions
from oct_foundation.preflight.topologies import TOPOLOGIES, topology
from pretraining.preflight.run import Request, estimate

CONFIG = Path(__file__).parents[1] / "configs" / "pretrain_vjepa_multi_domain.yaml"
SHAPES = ("16,128,128", "32,192,192", "64,384,384")
COLUMNS = ("hbm_total_bytes", "bytes_accessed", "roofline_seconds", "mfu_bound", "volumes_per_second_bound")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A slice, a shape [D,H,W] as text, volumes on each chip; one micro-step per update."""

    topology: str
    shape: str
    batch: int
    preset: str

    @property
    def name(self) -> str:
        """As it stands in the report."""
        return f"{self.preset} [{self.shape}] x {self.batch} on {self.topology}"

    def overrides(self) -> tuple[str, ...]:
        """Of the configuration."""
        chips = topology(self.topology).num_chips
        return (
            f"model.preset={self.preset}",
            f"model.image_size=[{self.shape}]",
            f"batch.per_core_batch_size={self.batch}",
            f"batch.global_batch_size={self.batch * chips}",
        )

    def measure(self) -> dict[str, Any]:
        """What preflight says of the training step."""
        request = Request(
            config=CONFIG,
            overrides=self.overrides(),
            topology=topology(self.topology),
            timeout_s=1800,
            progress=lambda line: print(f"  {line}", flush=True),
        )
        found = estimate(request, validate=False).to_dict()
        return {name: value for name, value in found.items() if name != "programs"}


def measured(cells: Sequence[Cell], path: Path) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Each cell with its figures; writes the file after each, and takes from it what is there.

    The file also says on which machine, with which versions, and by which commands its cells were made.
    """
    before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    known: dict[str, Any] = before.get("cells", {})
    commands = list(dict.fromkeys([*before.get("commands", []), _command()]))
    for cell in cells:
        if cell.name not in known:
            known[cell.name] = cell.measure()
            path.parent.mkdir(parents=True, exist_ok=True)
            facts = {"commands": commands, "machine": machine_facts(), "versions": versions()}
            path.write_text(json.dumps({**facts, "cells": known}, indent=1) + "\n")
        yield cell, known[cell.name]


def _command() -> str:
    """How this process was started, without the folders of this machine."""
    return shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])


def add_sizes(parser: argparse.ArgumentParser, *, topologies: Sequence[str], shapes: Sequence[str]) -> None:
    """What both scripts over preflight can be asked for."""
    parser.add_argument("--topologies", nargs="+", default=topologies, choices=tuple(TOPOLOGIES))
    parser.add_argument("--shapes", nargs="+", default=shapes, metavar="D,H,W")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2], help="volumes on each chip")
    parser.add_argument("--preset", default="vit_small")
    parser.add_argument("--json", type=Path, required=True, help="figures so far; goes on where it ended")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row per cell, then the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser, topologies=("v4-32", "v5e-16", "v6e-8"), shapes=SHAPES)
    arguments = parser.parse_args(argv)
    cells = [
        Cell(topology=name, shape=shape, batch=batch, preset=arguments.preset)
        for name in arguments.topologies
        for shape in arguments.shapes
        for batch in arguments.batches
    ]
    figures: dict[str, object] = {}
    for cell, found in measured(cells, arguments.json):
        row = {"verdict": found["verdict"], "limit": found["limit"], **{name: found[name] for name in COLUMNS}}
        figures[cell.name] = row
        print(f"{cell.name:44} {row}", flush=True)
    print_report("preflight", figures, {})


if __name__ == "__main__":
    main()
