"""What a training run asks of the machine it runs on; the loop and the step know nothing else of devices.

One process per device everywhere: a chip under `xmp.spawn`, a GPU under torchrun, a gloo process on CPU. The exception
is a sharded run on XLA, where one process drives all devices of its host.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import nn

RuntimeKind = Literal["xla", "cuda", "cpu"]
Precision = Literal["bf16", "fp32"]
# none: every device holds the whole model. full: weights, gradients and moments are split over the devices.
Sharding = Literal["none", "full"]
Scalar = float | torch.Tensor


def step_seed(seed: int, step: int, rank: int) -> int:
    """Below 2^63, another one for every step and rank of every seed."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


class DeviceBatch(Protocol):
    """A batch that can be moved to a device (oct_foundation/batch.py)."""

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The same batch on `device`."""
        ...

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """The same batch with `change` of every tensor."""
        ...


B = TypeVar("B", bound=DeviceBatch)


class Runtime(Protocol):
    """One rank's view of the device and of the other ranks. `cores`: devices that this rank feeds, mostly 1."""

    device: torch.device
    rank: int
    world_size: int
    cores: int

    @property
    def kind(self) -> RuntimeKind:
        """Which of the three."""
        ...

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, whole or, where the run is sharded, this device's share. Before any optimizer."""
        ...

    def replicate(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, find_unused: bool = False) -> nn.Module:
        """The model to call in training: equal weights on all ranks, gradients reduced as this runtime does it.

        The moments of `optimizer` go where the weights are. find_unused: look in every step for parameters that the
        loss does not reach, which costs time.
        """
        ...

    def whole(self, state: Any) -> Any:
        """A tree of dicts, lists and tensors with whole tensors in place of shares; every rank calls it.

        The same object where nothing is sharded; else on rank 0 host tensors, on other ranks None in place of them.
        """
        ...

    def load(self, target: torch.Tensor, value: torch.Tensor) -> None:
        """Copies the whole tensor `value` into `target`, or the share that `target` is of it."""
        ...

    def batches(self, batches: Iterable[B]) -> Iterator[B]:
        """The same batches on the device, the next one on its way while one is in use."""
        ...

    def scalars(self, values: Mapping[str, float]) -> dict[str, Scalar]:
        """Changing numbers in the form that does not make a new program of the step."""
        ...

    def autocast(self, precision: Precision) -> AbstractContextManager[None]:
        """Matrix work in bfloat16 (weights stay fp32) or all in fp32."""
        ...

    def accumulation(self, model: nn.Module) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-step that is not the last: gradients stay on the rank."""
        ...

    def end_micro_step(self, num_micro_steps: int) -> None:
        """After each micro-step but the last: XLA may cut the program here."""
        ...

    def optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Mean of the gradients over ranks where not yet done, then `optimizer.step()` with its hooks."""
        ...

    def end_step(self) -> None:
        """The step is complete: XLA runs it as one program, with nothing left pending."""
        ...

    def fetch(self, metrics: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """0-d device tensors -> floats: the only place where the host waits for the device."""
        ...

    def mean_over_ranks(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each value averaged over all ranks; every rank calls it with the same names."""
        ...

    def max_over_ranks(self, values: Mapping[str, float]) -> dict[str, float]:
        """The largest of each value over all ranks; every rank calls it with the same names."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """One small picklable object of every rank, in the order of ranks, on every rank."""
        ...

    def barrier(self) -> None:
        """Waits until every rank is here."""
        ...

    def seed_step(self, seed: int, step: int) -> None:
        """Starts the device's generator by (seed, step, rank): what a step drops out is another part on every rank, and
        the same after a resume.
        """
        ...

    def graphs_compiled(self) -> int | None:
        """Programs compiled so far in this process; None where nothing is compiled."""
        ...

    def memory_bytes(self) -> int | None:
        """Peak memory of the device, or of the process on a CPU; None where it cannot be told."""
        ...

    def describe(self) -> str:
        """The device in words, for the log and the summary."""
        ...

    def close(self) -> None:
        """Leaves the process groups."""
        ...
