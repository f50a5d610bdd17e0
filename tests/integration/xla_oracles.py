"""Runs in a process of its own (XLA's devices are fixed at start): prints the largest deviations as JSON.

Five steps of one XLA device against plain CPU, its teacher against the formula, and what a step's seed does to dropout.
"""

import copy
import json
import os

os.environ.update(PJRT_DEVICE="CPU", CPU_NUM_DEVICES="1")

import torch
import torch_xla

from oct_foundation.batch import JEPABatch
from oct_foundation.models.vjepa3d import VJEPA3D, VJEPA3DConfig
from oct_foundation.optim.adamw import AdamW
from oct_foundation.optim.clipping import GradientGuard
from oct_foundation.optim.groups import parameter_groups
from oct_foundation.runtime.native import NativeRuntime
from oct_foundation.runtime.xla import XlaRuntime
from pretraining.step import train_step
from pretraining.tasks.vjepa_objective import VJEPAObjective
from pretraining.vjepa_config import VJEPARunConfig

CONFIG = VJEPA3DConfig(preset="vit_tiny", image_size=(8, 64, 64), patch_size=(4, 16, 16))
NUM_TOKENS, NUM_TARGET, BATCH = 32, 19, 8


class Side:
    """Model, optimizer and runtime of one of the two contestants."""

    def __init__(self, model, runtime):
        self.model, self.runtime = copy.deepcopy(model).to(runtime.device), runtime
        guard = GradientGuard(1.0, runtime.device)
        self.optimizer = AdamW(parameter_groups(self.model), guard=guard)
        self.replica = runtime.replicate(self.model, self.optimizer)

    def step(self, batch, scalars):
        return train_step(
            VJEPAObjective(VJEPARunConfig(model=CONFIG)), self.model, self.replica, self.optimizer, self.runtime,
            [batch],
            self.runtime.scalars(scalars), "fp32",
        )  # fmt: skip

    def weights(self):
        return {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}


def random_batch(generator):
    order = torch.stack([torch.randperm(NUM_TOKENS, generator=generator) for _ in range(BATCH)])
    view = torch.randint(0, 256, (BATCH, 1, *CONFIG.image_size), generator=generator, dtype=torch.uint8)
    return JEPABatch(
        context_view=view, target_view=view.clone(),
        context_idx=order[:, NUM_TARGET:].contiguous(), target_idx=order[:, :NUM_TARGET].contiguous(),
    )  # fmt: skip


def largest(found, expected):
    return max((found[name] - expected[name]).abs().max().item() for name in expected)


torch.manual_seed(0)
model = VJEPA3D(CONFIG)
xla, cpu = Side(model, XlaRuntime()), Side(model, NativeRuntime("cpu"))
generator = torch.Generator().manual_seed(1)
report = {"ema": 0.0, "weights": 0.0, "loss": 0.0, "norm": 0.0, "finite": True}
for step in range(5):
    momentum = 0.9 + 0.02 * step
    scalars = {"learning_rate": 1e-3 * step, "weight_decay": 0.05, "ema_momentum": momentum}
    batch = random_batch(generator)
    before = xla.weights()
    found = xla.runtime.fetch(xla.step(batch.to(xla.runtime.device), scalars))
    expected = cpu.runtime.fetch(cpu.step(batch, scalars))
    after = xla.weights()
    teacher = {name: tensor for name, tensor in after.items() if name.startswith("target_encoder.")}
    formula = {
        name: momentum * before[name] + (1 - momentum) * after[name.replace("target_encoder.", "context_encoder.", 1)]
        for name in teacher
    }
    report["ema"] = max(report["ema"], largest(teacher, formula))
    report["weights"] = max(report["weights"], largest(after, cpu.weights()))
    report["loss"] = max(report["loss"], abs(found["loss"] / expected["loss"] - 1))
    report["norm"] = max(report["norm"], abs(found["grad_norm"] / expected["grad_norm"] - 1))
    report["finite"] &= all(torch.isfinite(tensor).all().item() for tensor in after.values())


def dropped(step):
    """The mask of a step, and whether a program was compiled for it."""
    compiled = xla.runtime.graphs_compiled()
    xla.runtime.seed_step(0, step)
    mask = torch.nn.functional.dropout(torch.ones(256, device=xla.runtime.device))
    xla.runtime.end_step()
    return mask.cpu().tolist(), xla.runtime.graphs_compiled() > compiled


masks = [dropped(step) for step in (5, 6, 5)]  # the last one as after a resume
report["dropout_repeats"] = masks[0][0] == masks[2][0] != masks[1][0]
report["dropout_compiles"] = [compiled for _, compiled in masks]
torch_xla.sync()
print(json.dumps(report))
