"""What each loader worker is at, in memory that outlives it: a worker that dies cannot tell any more.

A killed worker is nearly always one that ran out of memory, and by default the trainer only learns that a pid is gone.
"""

import multiprocessing
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from torch.utils.data import Dataset, get_worker_info

from data_setup.sampler import SampleKey

_FIELDS = 3  # epoch, index, peak resident memory in kB


class NamedDataset(Protocol):
    """Samples by key; `name` says how an index is known in logs."""

    def __getitem__(self, key: SampleKey) -> Any: ...

    def name(self, index: int) -> str:
        """Of one sample."""
        ...


class WatchedDataset(Dataset[Any]):
    """A data set that writes down, per worker, which sample it is making."""

    def __init__(self, dataset: NamedDataset, num_workers: int) -> None:
        self._dataset = dataset
        context = multiprocessing.get_context("forkserver")
        self._board = context.RawArray("q", [-1] * (_FIELDS * max(num_workers, 1)))

    def __getitem__(self, key: SampleKey) -> Any:
        if (worker := get_worker_info()) is not None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            self._board[worker.id * _FIELDS : (worker.id + 1) * _FIELDS] = [key.epoch, key.index, peak]
        return self._dataset[key]

    def place(self, worker: int) -> str:
        """What a worker was making last: `volume 3fa2... in epoch 4`."""
        epoch, index, _ = self._board[worker * _FIELDS : (worker + 1) * _FIELDS]
        return f"volume {self._dataset.name(index)} in epoch {epoch}" if index >= 0 else "its start"

    def peak_bytes(self, worker: int) -> int:
        """The most memory that a worker had had when it began its last sample."""
        in_kb = 1 if sys.platform == "darwin" else 1024
        return max(self._board[worker * _FIELDS + 2], 0) * in_kb


def describe_deaths(processes: Sequence[Any], watched: WatchedDataset) -> str:
    """Which workers are gone, how, over which sample and with how much memory; "" where all live."""
    lines = []
    for number, process in enumerate(processes):
        code = process.exitcode
        if code is None or code == 0:
            continue
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        peak = watched.peak_bytes(number) / 2**20
        lines.append(f"pid {process.pid} by {how} at {watched.place(number)}, peak memory {peak:.0f} MiB")
    return "; ".join(lines)
