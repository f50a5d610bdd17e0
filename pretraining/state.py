"""What a run is at a step boundary, and its form in a checkpoint: all that a bit-alike continuation needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from oct_foundation.checkpoints.random_state import capture_random_state, restore_random_state
from oct_foundation.optim.adamw import AdamW
from oct_foundation.runtime.base import Runtime

STATE_VERSION = 1


class ResumeError(ValueError):
    """A checkpoint that is intact but not of this run; the message says what differs and what to do."""


@dataclass(kw_only=True)
class TrainState:
    """`model` holds the weights, `replica` is what the step calls; `step` counts finished optimizer updates."""

    model: nn.Module
    replica: nn.Module
    optimizer: AdamW
    step: int = 0
    samples_seen: int = 0
    best_val_loss: float = float("inf")

    def capture(self, runtime: Runtime) -> dict[str, Any]:
        """Everything by reference; the checkpoint manager copies it to the host."""
        guard = self.optimizer.guard
        return {
            "version": STATE_VERSION,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "skipped": {"total": guard.skipped, "in_a_row": guard.skipped_in_a_row},
            "step": self.step,
            "samples_seen": self.samples_seen,
            "best_val_loss": self.best_val_loss,
            "random": {"host": capture_random_state()},
        }

    def restore(self, saved: Mapping[str, Any], runtime: Runtime) -> None:
        """Copies a captured state into the tensors that are there; raises ResumeError when it does not fit."""
        if saved.get("version") != STATE_VERSION:
            raise ResumeError(f"checkpoint state has version {saved.get('version')}; this octfm reads {STATE_VERSION}")
        try:
            _load(self.model.state_dict(), saved["model"], runtime)
            self.optimizer.load_state_dict(saved["optimizer"], copy=runtime.load)
        except ValueError as error:
            raise ResumeError(f"the checkpoint is of another model: {error}") from error
        guard = self.optimizer.guard
        with torch.no_grad():
            guard.skipped.copy_(saved["skipped"]["total"])
            guard.skipped_in_a_row.copy_(saved["skipped"]["in_a_row"])
        self.step, self.samples_seen = saved["step"], saved["samples_seen"]
        self.best_val_loss = saved["best_val_loss"]
        restore_random_state(saved["random"]["host"])


@torch.no_grad()
def _load(own: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor], runtime: Runtime) -> None:
    """Copies saved weights into the model's; raises ValueError where names or shapes are not the same."""
    if missing := sorted(own.keys() ^ saved.keys()):
        raise ValueError(f"{', '.join(missing[:4])} ({len(missing)} in all) is in one of the two only")
    for name, tensor in own.items():
        if tensor.shape != saved[name].shape:
            raise ValueError(f"{name} is {list(saved[name].shape)} there and {list(tensor.shape)} here")
    for name, tensor in own.items():
        runtime.load(tensor, saved[name])
