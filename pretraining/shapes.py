"""`octfm shapes [CONFIG]`: every stage once, at the configuration's shapes, as a table one can read.

file -> volume -> views -> mask -> batch -> tokens -> context -> targets -> predictions -> loss -> gradients -> update.
Each row holds what was found beside what the configuration promises; the first row that breaks the promise ends it.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from data_setup.errors import BadFile
from data_setup.gcs import fetch
from data_setup.index import PreparedSet
from data_setup.masking import MaskGenerator
from data_setup.prepare import prepare
from data_setup.scan_reader import read_scans
from data_setup.sources import DirectorySource, is_gcs
from data_setup.volume import Volume
from oct_foundation.batch import JEPABatch
from oct_foundation.models.vjepa3d import VJEPA3D
from oct_foundation.runtime.base import Runtime
from oct_foundation.runtime.exits import ExitCode
from oct_foundation.runtime.select import choose_kind, launch
from pretraining.assemble import build_state
from pretraining.config import load_as
from pretraining.step import train_step
from pretraining.tasks.task import Objective
from pretraining.tasks.vjepa import VJEPATask
from pretraining.train import add_arguments
from pretraining.vjepa_config import VJEPARunConfig

DEFAULT_CONFIG = "configs/smoke_test.yaml"


class BrokenContract(ValueError):
    """A stage gave something else than the configuration promises; the table shows which."""


@dataclass
class ShapeTable:
    """Rows of the table, checked as they come."""

    device: str
    table: Table = field(init=False)
    broken: bool = False

    def __post_init__(self) -> None:
        self.table = Table("stage", "shape", "promised", "dtype", "device", "memory", "ok")

    def row(self, stage: str, value: torch.Tensor | np.ndarray, promised: Sequence[int | None]) -> None:
        """Adds a stage; None in `promised` stands for any size. Raises BrokenContract where the shapes differ."""
        shape = list(value.shape)
        fits = len(shape) == len(promised) and all(p in (None, s) for s, p in zip(shape, promised, strict=True))
        memory = value.nbytes if isinstance(value, np.ndarray) else value.numel() * value.element_size()
        device = value.device.type if isinstance(value, torch.Tensor) else "host"
        wanted = "[" + ", ".join("any" if side is None else str(side) for side in promised) + "]"
        dtype = str(value.dtype).removeprefix("torch.")
        self._add(stage, str(shape), wanted, dtype, device, _bytes(memory), fits)

    def check(self, stage: str, found: str, promised: str, ok: bool) -> None:
        """Adds a stage that is no tensor."""
        self._add(stage, found, promised, "", self.device, "", ok)

    def _add(self, stage: str, found: str, promised: str, dtype: str, device: str, memory: str, ok: bool) -> None:
        mark = "yes" if ok else "NO"
        cells = (escape(text) for text in (stage, found, promised, dtype, device, memory, mark))
        self.table.add_row(*cells, style=None if ok else "bold red")
        if not ok:
            self.broken = True
            raise BrokenContract(f"stage '{stage}': found {found}, the configuration promises {promised}")


def _bytes(number: int) -> str:
    size = float(number)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def first_scan(config: VJEPARunConfig, scratch: Path) -> tuple[Path, Volume]:
    """The first file of the source that can be read, on disk; raises ValueError with the last reason when none can."""
    reason = ""
    for file in config.data.open(scratch / "phantom-dicom").files():
        if file.location is None:
            continue
        path = Path(file.location)
        try:
            if is_gcs(file.location):
                path = scratch / path.name
                fetch(file.location, file.stated, path)
            return path, read_scans(path, config.data.formats, config.prepare.read_options)[0].volume
        except BadFile as bad:
            reason = str(bad)
    raise ValueError(f"no file of the source can be read; the last one: {reason}")


def one_volume(config: VJEPARunConfig, rows: ShapeTable, scratch: Path) -> PreparedSet:
    """A prepared set of one scan of the source, once to train and once to validate; fills the rows of the data."""
    if config.data.source == "prepared":
        prepared = PreparedSet.load(str(config.data.root))
    else:
        path, volume = first_scan(config, scratch)
        rows.check("file", f"{path.stat().st_size} bytes", "at least 1", path.stat().st_size > 0)
        rows.row("volume (source)", volume.voxels, [None, None, None])
        one = scratch / "one-volume"
        one.mkdir()
        for copy in ("train", "val"):  # one patient: the split falls back to volumes, one for each side
            (one / f"{copy}{''.join(path.suffixes)}").symlink_to(path.resolve())
        prepared = prepare(DirectorySource(one), scratch / "prepared", config.prepare, num_workers=1)
    rows.row("volume (prepared)", prepared.volume(prepared.accepted()[0]), list(config.model.image_size))
    return prepared


def walk(config: VJEPARunConfig, runtime: Runtime, rows: ShapeTable, scratch: Path) -> None:
    """Runs every stage and fills `rows`; raises BrokenContract at the first broken one."""
    grid, masks = config.grid, MaskGenerator(config.grid, config.mask)
    image, num_tokens = list(config.model.image_size), grid.num_patches
    few = replace(config.data.phantom, num_volumes=2, broken_fraction=0.0)
    config = replace(config, data=replace(config.data, phantom=few))
    prepared = one_volume(config, rows, scratch)

    # One sample, one micro-batch: what a device sees, without the rest of the data set.
    small = replace(
        config,
        data=replace(config.data, max_samples=1),
        batch=replace(config.batch, global_batch_size=config.batch.per_core_batch_size, grad_accum_steps=1),
        train=replace(config.train, drop_last=False),
    )
    task = VJEPATask(small, prepared)
    batch: JEPABatch = next(iter(task.train_batches(rank=0, world_size=1, start_step=0, num_steps=1)))
    num_samples = config.batch.per_core_batch_size
    for name in ("context_view", "target_view"):
        rows.row(f"batch.{name}", batch.tensors()[name], [num_samples, 1, *image])
    rows.row("batch.context_idx", batch.context_idx, [num_samples, masks.num_context])
    rows.row("batch.target_idx", batch.target_idx, [num_samples, masks.num_target])
    share = masks.num_target / num_tokens
    rows.check(
        "mask ratio", f"{share:.4f}", f"{config.mask.ratio} within one block", abs(share - config.mask.ratio) < 0.1
    )
    _model_rows(small, task.objective, runtime, rows, batch, masks)


def _model_rows(
    config: VJEPARunConfig,
    objective: Objective,
    runtime: Runtime,
    rows: ShapeTable,
    batch: JEPABatch,
    masks: MaskGenerator,
) -> None:
    """Tokens to update, on the device."""
    state = build_state(config, objective, runtime)
    model = state.model
    assert isinstance(model, VJEPA3D)
    seen: dict[str, Any] = {}
    stages: dict[str, nn.Module] = {
        "patch tokens": model.target_encoder.patch_embed,
        "context tokens": model.context_encoder,
        "target tokens": model.target_encoder,
        "predictions": model.predictor,
    }
    for name, module in stages.items():
        module.register_forward_hook(lambda _m, _args, output, name=name: seen.__setitem__(name, output))
    width, num_samples = model.embed_dim, batch.num_samples
    moved = next(iter(runtime.batches([batch])))
    with torch.no_grad(), runtime.autocast(config.train.precision):
        loss, predictions, targets = model(
            moved.context_view, moved.target_view, context_idx=moved.context_idx, target_idx=moved.target_idx
        )
    runtime.end_step()
    rows.row("patch tokens", seen["patch tokens"], [num_samples, config.grid.num_patches, width])
    rows.row("context tokens", seen["context tokens"], [num_samples, masks.num_context, width])
    rows.row("target tokens", seen["target tokens"], [num_samples, masks.num_target, width])
    rows.row("targets", targets, [num_samples, masks.num_target, width])
    rows.row("predictions", predictions, [num_samples, masks.num_target, width])
    rows.row("loss", loss, [])
    before = [parameter.detach().clone() for parameter in state.optimizer.parameters()]
    scalars = config.optim.schedules(1000).at(max(1, config.optim.warmup_steps))
    metrics = runtime.fetch(
        train_step(
            objective,
            model,
            state.replica,
            state.optimizer,
            runtime,
            [moved],
            runtime.scalars(scalars),
            config.train.precision,
        )
    )
    norm = metrics["grad_norm"]
    rows.check("gradients", f"norm {norm:.4g}", "finite, above 0", 0 < norm < float("inf"))
    moved_by = max(
        (new.detach() - old).abs().max().item() for new, old in zip(state.optimizer.parameters(), before, strict=True)
    )
    rows.check("update", f"largest change {moved_by:.3g}", "above 0", moved_by > 0)


def shapes_worker(runtime: Runtime, config: VJEPARunConfig) -> int:
    """Prints the table, whole or up to the offending row; exit code 1 in the second case."""
    rows, console = ShapeTable(runtime.device.type), Console(width=130)
    problem: ValueError | None = None
    with tempfile.TemporaryDirectory(prefix="octfm-shapes-") as scratch:
        try:
            walk(config, runtime, rows, Path(scratch))
        except ValueError as error:
            problem = error
    console.print(rows.table)
    if problem is not None:
        console.print(f"octfm: {problem}", style="bold red", markup=False, highlight=False)
        return ExitCode.FAILED
    return 0


def main(argv: Sequence[str] | None = None, prog: str = "octfm shapes") -> int:
    """`octfm shapes [CONFIG] [key=value ...] [--device ...]`; prog: how the caller was called, for the help."""
    parser = argparse.ArgumentParser(prog=prog, description="Run every stage once and print its shapes.")
    add_arguments(parser, config_default=Path(DEFAULT_CONFIG))
    arguments = parser.parse_intermixed_args(argv)
    try:
        config = load_as(VJEPARunConfig, arguments.config, arguments.overrides)
        kind = choose_kind(arguments.device or "cpu")
    except ValueError as error:
        print(f"octfm: {error}", file=sys.stderr)
        return ExitCode.CONFIG
    return launch(kind, shapes_worker, config)
