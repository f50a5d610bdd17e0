"""The XLA runtime of a run, but that programs are recorded where they would run.

A subclass, not a runtime of its own: whatever is not overridden here must be the run's own code, or what is recorded
is not the run's program.
"""

from typing import Literal

from torch import nn

from oct_foundation.preflight.capture import Recorder, pretend_replicas
from oct_foundation.runtime.xla import MAX_UNROLLED_MICRO_STEPS, XlaRuntime

ProgramKind = Literal["train", "accumulate", "validate"]


class TracingRuntime(XlaRuntime):
    """Rank 0 of `num_chips`; `recorder` holds its programs. No process group: nothing is exchanged in a trace."""

    def __init__(self, num_chips: int) -> None:
        self.device = pretend_replicas(num_chips)
        self.rank, self.world_size = 0, num_chips
        self.recorder = Recorder()
        self.phase: ProgramKind = "train"

    def replicate(self, model: nn.Module) -> nn.Module:
        """Equal weights cost a program once, at the start; no step sees it."""
        self.recorder.settle()
        return model

    def end_micro_step(self, num_micro_steps: int) -> None:
        """Cuts where a run cuts."""
        if num_micro_steps > MAX_UNROLLED_MICRO_STEPS:
            self.recorder.record("accumulate")

    def end_step(self) -> None:
        """Takes down what a run would run here."""
        self.recorder.record(self.phase)


def expected_train_graphs(num_micro_steps: int) -> int:
    """One; where there are too many micro-steps to unroll, the first, those that add to its gradients, and the last."""
    return 1 if num_micro_steps <= MAX_UNROLLED_MICRO_STEPS else 3
