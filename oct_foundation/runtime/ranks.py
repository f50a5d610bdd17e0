"""Exchange between ranks on the host, over gloo: the same on every runtime, and never part of a device program.

A world of one needs no process group and opens no port.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

# One rank per host may prepare data while the others wait for it here; a host that never comes ends the wait.
TIMEOUT = timedelta(hours=2)


@contextmanager
def waiting_for_ranks(rank: int, world_size: int) -> Iterator[None]:
    """Says every minute that this rank waits, and where: the others may prepare data, or never come."""
    done, since = threading.Event(), time.monotonic()

    def say() -> None:
        while not done.wait(60):
            place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            minutes = (time.monotonic() - since) / 60
            print(f"rank {rank} has waited {minutes:.0f} min for all {world_size} ranks at {place}", file=sys.stderr)

    threading.Thread(target=say, name="waiting", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def is_loss_of_peer(error: BaseException) -> bool:
    """Whether `error` only says that another rank is gone: gloo knows no type for it, nccl and the store do."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


class Ranks:
    """`gather`, `mean`, `max` and `barrier` over the default or the given process group."""

    def __init__(self, rank: int, world_size: int, group: dist.ProcessGroup | None = None) -> None:
        self.rank, self.world_size, self._group = rank, world_size, group

    def gather(self, value: Any) -> list[Any]:
        """One picklable object of every rank, in the order of ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each value averaged over the ranks."""
        gathered = self.gather(dict(values))
        return {name: sum(other[name] for other in gathered) / self.world_size for name in values}

    def max(self, values: Mapping[str, float]) -> dict[str, float]:
        """The largest of each value over the ranks."""
        gathered = self.gather(dict(values))
        return {name: max(other[name] for other in gathered) for name in values}

    def barrier(self) -> None:
        """Waits for every rank."""
        if self.world_size > 1:
            dist.barrier(group=self._group)

    def close(self) -> None:
        """Destroys the process groups of this process, if there are any."""
        if dist.is_initialized():
            dist.destroy_process_group()
