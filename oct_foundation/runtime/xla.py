"""XLA through torch-xla: one process per TPU chip under `xmp.spawn`, or one process of XLA on a CPU.

Nothing runs until `end_step` cuts the recorded program; a host read before it would make a second program.
Why each line is as it is: docs/decisions/001-one-engine.md.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch_xla
import torch_xla.core.xla_model as xm
import torch_xla.debug.metrics as met
import torch_xla.runtime as xr
from torch import nn
from torch_xla.distributed import xla_backend  # noqa: F401 - registers the init method xla://

from oct_foundation.runtime.base import B, Precision, Scalar, step_seed
from oct_foundation.runtime.ranks import TIMEOUT, Ranks

# Up to here all micro-steps are unrolled into one program; beyond, compile time and memory grow with no gain.
MAX_UNROLLED_MICRO_STEPS = 4


class XlaRuntime:
    """One rank on one XLA device. Only to be built inside a spawned worker: the parent must not touch the device."""

    kind: Literal["xla"] = "xla"

    def __init__(self) -> None:
        self.device = torch_xla.device()
        self._join(xr.global_ordinal(), xr.world_size(), cores=1)

    def _join(self, rank: int, world_size: int, *, cores: int) -> None:
        """Finds the other ranks, for what is exchanged on the host."""
        self.rank, self.world_size, self.cores = rank, world_size, cores
        if self.world_size > 1:
            dist.init_process_group("gloo", init_method="xla://", timeout=TIMEOUT)
        self._ranks = Ranks(self.rank, self.world_size)
        self.mean_over_ranks, self.max_over_ranks = self._ranks.mean, self._ranks.max
        self.gather, self.barrier, self.close = self._ranks.gather, self._ranks.barrier, self._ranks.close

    def place(self, model: nn.Module) -> nn.Module:
        """All of it."""
        return model.to(self.device)

    def replicate(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, find_unused: bool = False) -> nn.Module:
        """Rank 0's weights everywhere, student and teacher; gradients are reduced in `optimizer_step`."""
        if self.world_size > 1:
            xm.broadcast_master_param(model)
        torch_xla.sync()  # weights, moments and counters become parameters of the step's program, not part of it
        return model

    def whole(self, state: Any) -> Any:
        """It is."""
        return state

    def load(self, target: torch.Tensor, value: torch.Tensor) -> None:
        """A copy."""
        target.copy_(value)

    def batches(self, batches: Iterable[B]) -> Iterator[B]:
        """One batch ahead; our own generator, because MpDeviceLoader ends the epoch when its thread raises."""
        ahead: B | None = None
        for batch in batches:
            following = self._send(batch)
            if ahead is not None:
                yield ahead
            ahead = following
        if ahead is not None:
            yield ahead

    def _send(self, batch: B) -> B:
        """The batch on its way to the device."""
        return batch.to(self.device)

    def scalars(self, values: Mapping[str, float]) -> dict[str, Scalar]:
        """0-d device tensors: a Python number of 0 or 1 would be compiled into the program."""
        sent = torch.tensor(list(values.values()), dtype=torch.float32).to(self.device)
        return dict(zip(values, sent.unbind(), strict=True))

    def autocast(self, precision: Precision) -> AbstractContextManager[None]:
        """bfloat16 matrix work; scaled_dot_product_attention is not in XLA's list, the model casts by itself."""
        return torch.autocast("xla", dtype=torch.bfloat16, enabled=precision == "bf16")

    def accumulation(self, model: nn.Module) -> AbstractContextManager[None]:
        """Gradients stay local by themselves until `optimizer_step` reduces them."""
        return nullcontext()

    def end_micro_step(self, num_micro_steps: int) -> None:
        """Cuts the program when there are too many micro-steps to unroll."""
        if num_micro_steps > MAX_UNROLLED_MICRO_STEPS:
            torch_xla.sync()

    def optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Reduce -> (pre-hook: measure, clip) -> step. Not after a reduction of our own: it would reduce twice."""
        xm.optimizer_step(optimizer, barrier=False)

    def end_step(self) -> None:
        """Runs the recorded program; metrics computed before this line cost nothing extra."""
        torch_xla.sync()

    def fetch(self, metrics: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Reads results of a finished step; no program is compiled for it."""
        return {name: float(value.detach().cpu()) for name, value in metrics.items()}

    def seed_step(self, seed: int, step: int) -> None:
        """XLA's generator is one number, an input of the step's program."""
        xm.set_rng_state(step_seed(seed, step, self.rank), self.device)

    def graphs_compiled(self) -> int:
        """How often this process has compiled."""
        data = met.metric_data("CompileTime")
        return int(data[0]) if data else 0

    def memory_bytes(self) -> int | None:
        """Peak memory of the chip; XLA on a CPU does not tell."""
        if xr.device_type() == "CPU":
            return None
        info = xm.get_memory_info(self.device)
        return int(info["peak_bytes_used"]) if "peak_bytes_used" in info else None

    def describe(self) -> str:
        """Hardware and number of ranks."""
        return f"XLA on {xr.device_type()} ({self.world_size} x {os.environ.get('PJRT_DEVICE', '?')})"
