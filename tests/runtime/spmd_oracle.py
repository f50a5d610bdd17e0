"""Runs in a process of its own (XLA's devices are fixed at start): prints what was found as JSON.

Four steps of a sharded run on 4 virtual devices against plain CPU on the same batches; then its checkpoint goes on on
plain CPU, and that one's on the 4 devices.
"""

import json
import os

os.environ.update(PJRT_DEVICE="CPU", CPU_NUM_DEVICES="4")

import torch
import torch_xla
import torch_xla.distributed.spmd as xs

from oct_foundation.models.vjepa3d import VJEPA3DConfig
from oct_foundation.models.xla_manual_sharding import ManualSharding
from oct_foundation.runtime.base import Runtime
from oct_foundation.runtime.native import NativeRuntime
from oct_foundation.runtime.spmd import SpmdRuntime, by_samples
from pretraining.assemble import build_state
from pretraining.step import train_step
from pretraining.tasks.vjepa_objective import VJEPAObjective
from pretraining.vjepa_config import VJEPARunConfig

CONFIG = VJEPARunConfig(model=VJEPA3DConfig(preset="vit_tiny", image_size=(8, 64, 64), patch_size=(4, 16, 16)))
OBJECTIVE = VJEPAObjective(CONFIG)
BATCH, STEPS = 8, 4


class Side:
    """State and runtime of one of the two contestants."""

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self.state = build_state(CONFIG, OBJECTIVE, runtime)

    def step(self, number: int) -> dict[str, float]:
        batch = OBJECTIVE.example_batch(BATCH)
        generator = torch.Generator().manual_seed(number)
        for view in (batch.context_view, batch.target_view):
            view.random_(0, 256, generator=generator)
        state, runtime = self.state, self.runtime
        scalars = {"learning_rate": 1e-4 * number, "weight_decay": 0.05, "ema_momentum": 0.9 + 0.01 * number}
        metrics = train_step(
            OBJECTIVE, state.model, state.replica, state.optimizer, runtime, list(runtime.batches([batch])),
            runtime.scalars(scalars), "fp32",
        )  # fmt: skip
        return runtime.fetch(metrics)

    def captured(self):
        return self.runtime.whole(self.state.capture(self.runtime))

    def resume(self, saved) -> None:
        self.state.restore(saved, self.runtime)
        self.runtime.end_step()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and moments, on the device."""
        moments = {
            f"{name} {number}": tensor
            for number, state in enumerate(self.state.optimizer.state.values())
            for name, tensor in state.items()
        }
        return {**self.state.model.state_dict(), **moments}


def largest(found, expected) -> float:
    """The largest difference between two trees of tensors."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        return max((largest(found[key], expected[key]) for key in expected), default=0.0)
    if isinstance(expected, torch.Tensor) and expected.is_floating_point():
        return (found - expected).abs().max().item()
    return 0.0


def distance(found, expected) -> float:
    """Of two checkpoints, weights and moments."""
    return max(largest(found[part], expected[part]) for part in ("model", "optimizer"))


def not_split(side: Side) -> list[str]:
    """Weights and moments of several numbers that lie whole on each device."""
    spec = torch_xla._XLAC._get_xla_sharding_spec
    return [name for name, tensor in side.tensors().items() if tensor.ndim and "devices=" not in spec(tensor)]


def split_by_hand(num_heads: int) -> dict[str, object]:
    """Largest difference of something like a kernel on each device's heads from the same on all, and its heads."""
    query = torch.randn(num_heads, 3, 5, generator=torch.Generator().manual_seed(0))
    placed = query.to(torch_xla.device()) * 1.0  # not data, whose place is fixed
    sharding = ManualSharding.of(num_heads)
    (part,) = sharding.split(placed)
    mixed, stacked = part.softmax(2), torch.stack([part, part + 1])
    found, second = sharding.join(mixed), sharding.join(stacked, dim=1)[1]
    torch_xla.sync()
    differences = largest(
        {"mixed": found.cpu(), "second": second.cpu()}, {"mixed": query.softmax(2), "second": query + 1}
    )
    return {"heads": part.shape[0], "difference": differences}


def dropped(runtime: SpmdRuntime, step: int) -> list[list[float]]:
    """The mask of a step, a row per sample, two samples on each device."""
    runtime.seed_step(0, step)
    samples = torch.ones(BATCH, 64, device=runtime.device) * 1.0
    xs.mark_sharding(samples, runtime.mesh, by_samples(2))
    mask = torch.nn.functional.dropout(samples)
    runtime.end_step()
    return mask.cpu().tolist()


def main() -> None:
    sharded, plain = Side(SpmdRuntime()), Side(NativeRuntime("cpu"))
    report = {"cores": sharded.runtime.cores, "world_size": sharded.runtime.world_size, "loss": 0.0, "norm": 0.0}
    compiled = sharded.runtime.graphs_compiled()
    for number in range(1, STEPS + 1):
        found, expected = sharded.step(number), plain.step(number)
        report["loss"] = max(report["loss"], abs(found["loss"] / expected["loss"] - 1))
        report["norm"] = max(report["norm"], abs(found["grad_norm"] / expected["grad_norm"] - 1))
    report["train_graphs"] = sharded.runtime.graphs_compiled() - compiled
    report["not_split"] = not_split(sharded)
    saved = sharded.captured()
    report["weights"] = largest(saved["model"], plain.captured()["model"])
    report["devices_in_checkpoint"] = sorted({str(t.device) for t in saved["model"].values()})
    plain.resume(saved)
    report["resumed_unsharded"] = distance(plain.captured(), saved)
    plain.step(5)
    back = plain.captured()
    sharded.resume(back)
    report["resumed_sharded"] = distance(sharded.captured(), back)
    report["not_split_after_resume"] = not_split(sharded)
    compiled = sharded.runtime.graphs_compiled()
    found, expected = sharded.step(6), plain.step(6)
    report["train_graphs_after_resume"] = sharded.runtime.graphs_compiled() - compiled
    report["norm_after_resume"] = abs(found["grad_norm"] / expected["grad_norm"] - 1)
    report["weights_after_resume"] = largest(sharded.captured()["model"], plain.captured()["model"])
    report["split_by_hand"] = [split_by_hand(num_heads) for num_heads in (8, 6)]
    report["dropped"] = [dropped(sharded.runtime, step) for step in (5, 6, 5)]  # the last one as after a resume
    print(json.dumps(report))


if __name__ == "__main__":
    main()
