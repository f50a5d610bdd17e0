"""The XLA runtimes of a run, but that programs are recorded where they would run.

Subclasses, not runtimes of their own: whatever is not overridden here must be the run's own code, or what is recorded
is not the run's program.
"""

from typing import Literal

import torch
from torch import nn

from oct_foundation.preflight.capture import Recorder, pretend_replicas
from oct_foundation.runtime.base import Sharding
from oct_foundation.runtime.spmd import SpmdRuntime
from oct_foundation.runtime.xla import MAX_UNROLLED_MICRO_STEPS, XlaRuntime

ProgramKind = Literal["train", "accumulate", "validate"]


class _Recording(XlaRuntime):
    """`recorder` holds the programs. No process group: nothing is exchanged in a trace."""

    recorder: Recorder
    phase: ProgramKind = "train"

    def place(self, model: nn.Module) -> nn.Module:
        """A model of shapes alone gets placeholders on the device: 3.5 billion weights need no memory here."""
        if any(parameter.is_meta for parameter in model.parameters()):
            # A sum: a bare `zeros` stays in the program beside the weight that replaces it, whole on each chip.
            model = model._apply(lambda tensor: torch.zeros_like(tensor, device=self.device) + 0)
        return super().place(model)

    def end_micro_step(self, num_micro_steps: int) -> None:
        """Cuts where a run cuts."""
        if num_micro_steps > MAX_UNROLLED_MICRO_STEPS:
            self.recorder.record("accumulate")

    def end_step(self) -> None:
        """Takes down what a run would run here."""
        self.recorder.record(self.phase)


class TracingRuntime(_Recording):
    """Rank 0 of `num_chips`."""

    def __init__(self, num_chips: int) -> None:
        self.device = pretend_replicas(num_chips)
        self.rank, self.world_size, self.cores = 0, num_chips, 1
        self.recorder = Recorder()

    def replicate(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, find_unused: bool = False) -> nn.Module:
        """Equal weights cost a program once, at the start; no step sees it."""
        self.recorder.settle()
        return model


class ShardedTracingRuntime(_Recording, SpmdRuntime):
    """One host with all `num_chips`: with more hosts the program is the same."""

    def __init__(self, num_chips: int) -> None:
        self._open()
        if self.num_shares != num_chips:
            raise RuntimeError(f"torch_xla sees {self.num_shares} devices instead of {num_chips}")
        self.rank, self.world_size, self.cores = 0, 1, num_chips
        self.recorder = Recorder()

    def replicate(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, find_unused: bool = False) -> nn.Module:
        """Moments are split as in a run; nothing has memory behind it."""
        self._split_moments(optimizer)
        with torch.no_grad():
            for tensor in self._state:
                tensor.zero_()  # no value plays a part: what is pending becomes a placeholder, too
        self._keep_state_split()
        self.recorder.settle()
        return model

    def end_step(self) -> None:
        """With the new state where the old one was."""
        self._keep_state_split()
        super().end_step()


def tracing_runtime(num_chips: int, sharding: Sharding) -> TracingRuntime | ShardedTracingRuntime:
    """The one that stands for the run's; a process can have one kind only."""
    return ShardedTracingRuntime(num_chips) if sharding == "full" else TracingRuntime(num_chips)


def expected_train_graphs(num_micro_steps: int) -> int:
    """One; where there are too many micro-steps to unroll, the first, those that add to its gradients, and the last."""
    return 1 if num_micro_steps <= MAX_UNROLLED_MICRO_STEPS else 3
