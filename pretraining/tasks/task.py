"""What the engine asks of a task; everything else (device, schedules, clipping, logging, saving) is the engine's.

The step needs an Objective only, which exists without any data; the loop needs the Task around it.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from oct_foundation.runtime.base import Scalar


class Objective(Protocol):
    """A model and its loss."""

    def build_model(self) -> nn.Module:
        """The model on the CPU, everything that is ever updated included, so that no rank can differ."""
        ...

    def initialize(self, model: nn.Module) -> None:
        """Weights to start from instead of random ones, for a run that begins."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Scalar loss and further 0-d device tensors to log, of one batch."""
        ...

    def after_update(self, model: nn.Module, scalars: Mapping[str, Scalar]) -> None:
        """What follows an optimizer update within the step, such as an EMA teacher."""
        ...

    def example_batch(self, num_samples: int) -> Any:
        """A batch on the CPU, with the shapes and dtypes that the loader gives, made without any data."""
        ...


class Task(Protocol):
    """An objective and its data."""

    num_train_samples: int

    @property
    def objective(self) -> Objective:
        """What is trained on the batches."""
        ...

    def train_batches(self, *, rank: int, world_size: int, start_step: int, num_steps: int) -> Iterable[Any]:
        """Micro-batches of this rank for the updates [start_step, start_step + num_steps)."""
        ...

    def input_counts(self) -> dict[str, int]:
        """What went wrong on the input side of this rank so far, by name: replaced samples, restarted loaders."""
        ...

    def val_batches(self, *, rank: int, world_size: int) -> Iterable[Any]:
        """The fixed validation batches of this rank, the same at every call, as many on every rank."""
        ...

    def steps_per_epoch(self, *, world_size: int) -> int:
        """Optimizer updates of one pass over the training samples."""
        ...

    def data_fingerprint(self, *, world_size: int) -> str:
        """Changes when the samples or their order change; compared at resume."""
        ...
