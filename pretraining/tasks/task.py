"""What the engine asks of a task; everything else (device, schedules, clipping, logging, saving) is the engine's.

The step needs an Objective only, which exists without any data; the loop needs the Task around it, and a Watch where
the run is looked at through held-out data. Methods with a body are for tasks that have nothing to say there.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from oct_foundation.diagnostics.verdicts import Judgement
from oct_foundation.models.remat import Remat
from oct_foundation.optim.adamw import AdamW
from oct_foundation.runtime.base import Runtime, Scalar
from pretraining.run_folder import RunFolder
from pretraining.state import TrainState

# A loss of some samples only is logged as two metrics, which are averaged apart: what is shown is their quotient.
SUM, COUNT = "sum/", "count/"


def quotients(values: dict[str, float]) -> dict[str, float]:
    """`sum/x` over `count/x` as `x`, left out where nothing was counted; everything else as it is."""
    found = {name: value for name, value in values.items() if not name.startswith((SUM, COUNT))}
    for name, count in values.items():
        if name.startswith(COUNT) and count > 0:
            found[name.removeprefix(COUNT)] = values[SUM + name.removeprefix(COUNT)] / count
    return found


class Objective(Protocol):
    """A model and its loss."""

    finds_unused: bool = False  # whether DDP has to look for parameters that a step does not reach
    builds_from_shapes: bool = False  # whether build_model works on torch's meta device, without memory
    num_programs: int = 1  # of a step, where XLA compiles: one for each kind of batch

    def build_model(self) -> nn.Module:
        """The model on the CPU, everything that is ever updated included, so that no rank can differ."""
        ...

    def initialize(self, model: nn.Module) -> None:
        """Weights to start from instead of random ones, for a run that begins."""
        return

    def branches(self, model: nn.Module) -> Mapping[str, Sequence[nn.Parameter]]:
        """Parts that whole updates may leave without a gradient, by name; disjoint."""
        return {}

    def placed(self, model: nn.Module, runtime: Runtime) -> None:
        """The model is on its device, whole or in shares, and no step has been made."""
        return

    def loss(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Scalar loss and further 0-d device tensors to log, of one batch; the same names on all ranks."""
        ...

    def before_update(self, model: nn.Module, runtime: Runtime) -> None:
        """Between the last backward and the optimizer; every rank comes here at every update."""
        return

    def after_update(self, model: nn.Module, scalars: Mapping[str, Scalar]) -> None:
        """What follows an optimizer update within the step, such as an EMA teacher."""
        return

    def of_update(self, model: nn.Module, optimizer: AdamW, runtime: Runtime) -> dict[str, float]:
        """What else is to be logged of the last update, the same on all ranks; asked where logging is due."""
        return {}

    def kinds(self) -> Sequence[str]:
        """Kinds of batches, each of which XLA makes a program of; as far as they are known without data."""
        return ("",)

    def example_batch(self, num_samples: int, kind: str = "") -> Any:
        """A batch on the CPU, with the shapes and dtypes that the loader gives, made without any data."""
        ...

    def remat_flops(self, remat: Remat, kind: str = "") -> float:
        """Operations that `train.remat` adds to that: the forward of each recomputed block once more."""
        ...

    def sample_flops(self, kind: str = "") -> float:
        """Operations of a training step for one sample of such a batch: multiply-add = 2, no credit for remat."""
        ...


class Watch(Protocol):
    """Looks at a run through held-out data; every rank calls `read` at the same steps."""

    @property
    def readings(self) -> Sequence[Any]:
        """Those of this run so far, earlier attempts included."""
        ...

    def take_up(self, start_step: int, first: Mapping[str, float] | None) -> None:
        """The readings up to `start_step` that the record holds; `first`, the values at step 0, where it lacks them."""
        ...

    def due(self, step: int) -> bool:
        """Whether to read after `step` updates."""
        ...

    def note_gradient(self, norm: float) -> None:
        """A gradient norm that was logged, before the clip."""
        ...

    def read(
        self, state: TrainState, runtime: Runtime, scalars: Mapping[str, float], batch: Any = None
    ) -> tuple[dict[str, float], Judgement] | None:
        """Values, and what all readings say, the same on all ranks; None where held-out data cannot be read."""
        ...

    def judge(self) -> Judgement:
        """What all readings so far say."""
        ...

    def tables(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """What the last reading has to show besides numbers, by name; on rank 0."""
        ...

    def must_stop(self, judgement: Judgement) -> bool:
        """Whether the run shall end, saved, because of this."""
        ...

    def enough(self) -> str:
        """Why the run has come to its end before its last step, by the readings that all ranks share; "" to go on."""
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

    def facts(self) -> dict[str, Any]:
        """Of the data, for summary.json."""
        ...

    def watch(self, model: nn.Module, runtime: Runtime, *, total_steps: int, folder: RunFolder) -> Watch | None:
        """What looks at the run; None, with one log line, where nothing is held out."""
        ...
