"""A run in this process, without checkpoints and trackers: task, state and step are the package's own."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from oct_foundation.runtime.native import NativeRuntime
from pretraining.assemble import build_state
from pretraining.state import TrainState
from pretraining.step import train_step
from pretraining.tasks.vjepa import VJEPATask
from pretraining.vjepa_config import VJEPARunConfig

OnStep = Callable[[TrainState, Any, Mapping[str, torch.Tensor], Mapping[str, float]], None]
"""(state after the step, its batch, its metrics, its scalars)"""


def start(task: VJEPATask, config: VJEPARunConfig) -> TrainState:
    """Model and optimizer on the CPU, before the first step."""
    return build_state(config, task.objective, NativeRuntime("cpu"))


def train(
    task: VJEPATask, config: VJEPARunConfig, state: TrainState, steps: int, on_step: OnStep | None = None
) -> None:
    """Updates `state` up to `steps`; calls `on_step` after each."""
    runtime, schedules = NativeRuntime("cpu"), config.optim.schedules(steps)
    batches: Iterable[Any] = task.train_batches(rank=0, world_size=1, start_step=0, num_steps=steps)
    for batch in batches:
        scalars = schedules.at(state.step)
        metrics = train_step(
            task.objective, state.model, state.replica, state.optimizer, runtime, [batch], scalars, "fp32"
        )
        state.step += 1
        if on_step is not None:
            on_step(state, batch, metrics, scalars)
