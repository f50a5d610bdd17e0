"""V-JEPA runs on phantoms, healthy or broken on purpose: what verdicts.py judges.

The engine is the package's own (task, step, readings); a broken recipe changes the one thing that its name says.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.short_run import start, train
from data_setup.index import PreparedSet
from data_setup.phantom_benchmark import RANGES
from oct_foundation.batch import JEPABatch
from oct_foundation.diagnostics.findings import Reading
from oct_foundation.losses.latent import latent_loss, normalize_targets
from oct_foundation.models.encoder import gather_tokens
from oct_foundation.models.vjepa3d import VJEPA3D
from oct_foundation.runtime.base import Scalar
from oct_foundation.runtime.native import NativeRuntime
from pretraining.assemble_diagnostics import build_diagnostics
from pretraining.config import load_as
from pretraining.run_folder import RunFolder
from pretraining.state import TrainState
from pretraining.tasks.vjepa import VJEPATask
from pretraining.tasks.vjepa_objective import VJEPAObjective
from pretraining.vjepa_config import VJEPARunConfig

Breakage = Literal[
    "no_stop_gradient",
    "position_only_targets",
    "constant_data",
    "frozen_encoder",
    "leaking_masks",
    "shuffled_context",
    "dead_predictor",
    "bf16_teacher",
]
# Short runs need eyes that are easier to learn: less tilt, less shift in depth, and sides that differ more.
MILD = replace(RANGES, tilt=(0.03, 0.05), depth_mm=(0.9, 1.3), nasal=0.8)
SMOKE = Path(__file__).parents[1] / "configs" / "smoke_test.yaml"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run: settings that differ from BASE, and what is broken, None for nothing."""

    name: str
    settings: tuple[str, ...] = ()
    breakage: Breakage | None = None
    seed: int = 1


def base_settings(steps: int, every_steps: int) -> list[str]:
    """Batch 16, one learning rate for all, no augmentation of intensities; what a recipe changes is named there."""
    return [
        "model.preset=vit_tiny", "model.image_size=[16,64,64]", "model.loss=smooth_l1", "data.source=prepared",
        "data.max_samples=null", "batch.global_batch_size=16", "batch.per_core_batch_size=16", "optim.base_lr=1e-3",
        "optim.warmup_steps=50", "optim.ema_momentum=0.996", "optim.final_ema_momentum=1.0", "train.epochs=100000",
        f"train.max_steps={steps}", "train.precision=fp32", "data.views.affine_prob=0", "data.views.intensity_prob=0",
        "data.views.noise_prob=0", "data.views.blur_prob=0", f"diagnostics.every_steps={every_steps}",
    ]  # fmt: skip


class BrokenObjective(VJEPAObjective):
    """V-JEPA with one thing broken."""

    def __init__(self, config: VJEPARunConfig, breakage: Breakage | None) -> None:
        super().__init__(config)
        self._breakage = breakage
        self._first: JEPABatch | None = None

    def build_model(self) -> nn.Module:
        """Frozen or dead parts take no gradient from the start."""
        model = super().build_model()
        assert isinstance(model, VJEPA3D)
        if self._breakage == "frozen_encoder":
            model.context_encoder.requires_grad_(False)
        if self._breakage == "dead_predictor":
            model.predictor.requires_grad_(False)
            for weight in model.predictor.parameters():
                nn.init.zeros_(weight)
        return model

    def loss(self, model: nn.Module, batch: JEPABatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """As the recipe has it."""
        network = model
        assert isinstance(network, VJEPA3D)
        match self._breakage:
            case "constant_data":
                self._first = self._first or batch
                one = self._first
                batch = replace(
                    batch,
                    context_view=one.context_view[:1].expand_as(batch.context_view),
                    target_view=one.target_view[:1].expand_as(batch.target_view),
                )
            case "no_stop_gradient" | "position_only_targets" | "shuffled_context" | "leaking_masks":
                return self._own_loss(network, batch), {}
        return super().loss(model, batch)

    def _own_loss(self, model: VJEPA3D, batch: JEPABatch) -> torch.Tensor:
        context_idx = batch.context_idx
        if self._breakage == "leaking_masks":  # VJEPA3D.forward refuses it
            context_idx = torch.cat([context_idx, batch.target_idx], dim=1)
        features = model.context_encoder(batch.context_view, context_idx)
        if self._breakage == "shuffled_context":
            context_idx = context_idx.roll(1, dims=1)  # every patch is told to be elsewhere
        predictions = model.predictor(features, context_idx, batch.target_idx)
        if self._breakage == "no_stop_gradient":
            targets = normalize_targets(gather_tokens(model.context_encoder(batch.target_view), batch.target_idx))
        elif self._breakage == "position_only_targets":
            generator = torch.Generator().manual_seed(0)
            table = torch.randn(model.grid.num_patches, model.embed_dim, generator=generator)
            targets = normalize_targets(table[batch.target_idx])
        else:
            with torch.no_grad():
                targets = normalize_targets(gather_tokens(model.target_encoder(batch.target_view), batch.target_idx))
        return latent_loss(predictions, targets, model.config.loss)

    def after_update(self, model: nn.Module, scalars: Mapping[str, Scalar]) -> None:
        """A teacher kept in bfloat16 swallows its small steps."""
        super().after_update(model, scalars)
        if self._breakage == "bf16_teacher":
            assert isinstance(model, VJEPA3D)
            with torch.no_grad():
                for weight in model.target_encoder.parameters():
                    weight.copy_(weight.to(torch.bfloat16))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run left: readings, its last loss, the teacher at the start and at the end."""

    readings: list[Reading]
    loss: float
    first: nn.Module
    last: nn.Module


def run_recipe(recipe: Recipe, prepared: PreparedSet, folder: Path, *, steps: int, every_steps: int) -> Outcome:
    """Trains in this process on `prepared` and reads as a run does; `folder` takes its pictures."""
    settings = [*base_settings(steps, every_steps), f"data.root={prepared.folder}", *recipe.settings]
    config = load_as(VJEPARunConfig, SMOKE, [*settings, f"seed={recipe.seed}"])
    task = VJEPATask(config, prepared, BrokenObjective(config, recipe.breakage))
    state = start(task, config)
    assert isinstance(state.model, VJEPA3D)
    runtime, place = NativeRuntime("cpu"), RunFolder(folder / recipe.name)
    diagnostics = build_diagnostics(config, prepared, state.model, runtime, total_steps=steps, folder=place)
    assert diagnostics is not None
    first, losses = copy.deepcopy(state.model.target_encoder), [float("nan")]

    def look(state: TrainState, batch: Any, metrics: Mapping[str, torch.Tensor], scalars: Mapping[str, float]) -> None:
        losses.append(metrics["loss"].item())
        diagnostics.note_gradient(metrics["grad_norm"].item())
        if diagnostics.due(state.step):
            diagnostics.read(state, runtime, scalars, batch)

    diagnostics.read(state, runtime, config.optim.schedules(steps).at(0))
    train(task, config, state, steps, look)
    last = state.model.target_encoder.eval()
    return Outcome(readings=diagnostics.readings, loss=losses[-1], first=first.eval(), last=last)
