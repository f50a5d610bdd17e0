"""Data sets -> batches of fixed shape, made here or in worker processes.

A worker that dies is named with its sample and replaced, a bounded number of times; a volume that cannot be read any
more is replaced and counted. Neither ends an epoch early, and neither goes unseen.
"""

import logging
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.context import BaseContext
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from data_setup.collate import collate
from data_setup.datasets import VolumeDataset
from data_setup.sampler import SampleKey
from data_setup.worker_watch import NamedDataset, WatchedDataset, describe_deaths
from oct_foundation.batch import JEPABatch

log = logging.getLogger(__name__)

# A death is noticed when a wait for a batch ends: workers of a fork server are not this process's children, so no
# SIGCHLD tells of them.
_POLL_S = 2.0

_Made = tuple[Any, list[list[str]]]  # a batch, and per replaced sample the ids that could not be read
MakeBatch = Callable[[Sequence[Any]], _Made]


class MicroBatches(Protocol):
    """The order of a rank's samples."""

    grad_accum_steps: int

    def micro_batches(self, start_step: int, num_steps: int) -> Iterator[list[SampleKey]]:
        """Of the updates [start_step, start_step + num_steps)."""
        ...


class LoaderError(RuntimeError):
    """The input side cannot go on: too many dead workers, or too many volumes that cannot be read."""


class _WorkersDied(Exception):
    """Which, how, over which sample."""


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """num_workers 0: in the training process. prefetch_factor: batches that each worker holds ready. max_restarts of
    all workers after one died; max_replaced_fraction of the samples may come from another volume than planned.
    """

    num_workers: int = 0
    prefetch_factor: int = 2
    timeout_s: int = 300
    max_restarts: int = 3
    max_replaced_fraction: float = 0.01

    def __post_init__(self) -> None:
        for name, least in (("num_workers", 0), ("prefetch_factor", 1), ("timeout_s", 1), ("max_restarts", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"data.loader.{name} must be at least {least}; found {getattr(self, name)}")
        if not 0 <= self.max_replaced_fraction <= 1:
            raise ValueError(f"data.loader.max_replaced_fraction must be 0 to 1; found {self.max_replaced_fraction}")


class TrainBatches:
    """The micro-batches of a rank for the updates [start_step, start_step + num_steps), to be iterated once.

    make_batch: of the samples of a micro-batch, a batch, and for each replaced sample the ids that could not be read;
    None: a JEPABatch. num_replaced and num_restarts count while it goes. Raises LoaderError.
    """

    _FREE_REPLACEMENTS = 10  # a short run with one bad volume must not end for its share

    def __init__(
        self,
        dataset: NamedDataset,
        sampler: MicroBatches,
        settings: LoaderSettings,
        *,
        start_step: int,
        num_steps: int,
        make_batch: MakeBatch | None = None,
    ) -> None:
        self._sampler, self._settings = sampler, settings
        self._make_batch = make_batch or _jepa_batch
        self._dataset = WatchedDataset(dataset, settings.num_workers)
        self._start_step, self._num_steps = start_step, num_steps
        self._done = 0  # micro-batches handed out
        self.num_samples, self.num_replaced, self.num_restarts = 0, 0, 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            batches = iter(self._loader())
            try:
                while (made := self._next(batches)) is not None:
                    batch, replaced = made
                    self._count(batch, replaced)
                    yield batch
                return
            except _WorkersDied as died:
                self._restart_after(died)

    def _next(self, batches: Iterator[_Made]) -> _Made | None:
        """The next batch, None at the end; raises _WorkersDied, or LoaderError after `timeout_s` without a batch."""
        since = time.monotonic()
        while True:
            try:
                return next(batches, None)
            except RuntimeError as error:
                processes = getattr(batches, "_workers", [])
                if deaths := describe_deaths(processes, self._dataset):
                    raise _WorkersDied(deaths) from error
                if "timed out" not in str(error):
                    raise
                if time.monotonic() - since > self._settings.timeout_s:
                    at = ", ".join(self._dataset.place(number) for number in range(len(processes)))
                    raise LoaderError(
                        f"no batch for data.loader.timeout_s={self._settings.timeout_s} s; the workers are at {at}: "
                        f"does the disk still answer?"
                    ) from error

    def _loader(self) -> "DataLoader[Any]":
        """A loader of what has not been handed out yet."""
        workers = self._settings.num_workers
        return DataLoader(
            self._dataset,
            batch_sampler=_Remaining(self._sampler, self._start_step, self._num_steps, self._done),
            collate_fn=self._make_batch,
            num_workers=workers,
            multiprocessing_context=_fork_server(self._make_batch) if workers else None,
            prefetch_factor=self._settings.prefetch_factor if workers else None,
            timeout=_POLL_S if workers else 0,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # from the global one each restart would draw once more
        )

    def _count(self, batch: Any, replaced: list[list[str]]) -> None:
        self._done += 1
        self.num_samples += batch.num_samples
        self.num_replaced += len(replaced)
        for volume_id in chain.from_iterable(replaced):
            log.warning("sample %s cannot be read; the next one of the epoch took its place", volume_id)
        allowed = max(self._FREE_REPLACEMENTS, self._settings.max_replaced_fraction * self.num_samples)
        if self.num_replaced > allowed:
            raise LoaderError(
                f"{self.num_replaced} of {self.num_samples} samples came from another volume than planned, because "
                f"theirs cannot be read; data.loader.max_replaced_fraction={self._settings.max_replaced_fraction} "
                f"allows fewer. Is the disk failing, or was the prepared set changed? Prepare it again"
            )

    def _restart_after(self, died: "_WorkersDied") -> None:
        self.num_restarts += 1
        found = f"loader worker died: {died}"
        if self.num_restarts > self._settings.max_restarts:
            raise LoaderError(
                f"{found}; that is more often than data.loader.max_restarts="
                f"{self._settings.max_restarts} allows. SIGKILL mostly means that the memory ran out: lower "
                f"data.loader.num_workers or prefetch_factor"
            ) from died
        log.warning("%s; workers are started again, no sample is lost", found)


class _Remaining:
    """What DataLoader wants of a batch sampler, an iterable with a length, from a micro-batch on."""

    def __init__(self, sampler: MicroBatches, start_step: int, num_steps: int, done: int) -> None:
        self._sampler, self._start_step, self._num_steps, self._done = sampler, start_step, num_steps, done

    def __iter__(self) -> Iterator[list[SampleKey]]:
        steps_done, rest = divmod(self._done, self._sampler.grad_accum_steps)
        start, left = self._start_step + steps_done, self._num_steps - steps_done
        return islice(self._sampler.micro_batches(start, left), rest, None)

    def __len__(self) -> int:
        return self._num_steps * self._sampler.grad_accum_steps - self._done


def _fork_server(make_batch: MakeBatch) -> BaseContext:
    """Where workers come from. A fork after an accelerator's client has started is unsafe; this server was clean when
    it began. For views of volumes it imports MONAI once: 9 s of a core, which each worker would spend on its own.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *(["data_setup.transforms"] if make_batch is _jepa_batch else [])])
    return context


def _start_worker(_worker: int) -> None:
    """One core's work per worker: torch would start a thread per core in each. Ctrl-C reaches the whole group, and the
    trainer decides; its ranks wait for TERM with a mask that workers inherit, but a worker shall die of TERM.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _jepa_batch(samples: Sequence[dict[str, Any]]) -> _Made:
    """The batch, and for each sample that is not the planned one the ids of the volumes that could not be read."""
    return jepa_batch(list(samples)), [sample["replaced"] for sample in samples if sample["replaced"]]


def jepa_batch(samples: list[dict[str, Any]]) -> JEPABatch:
    """Collates samples and keeps what the step needs."""
    return JEPABatch.from_dict(collate(samples))


def validation_batches(
    dataset: VolumeDataset, *, rank: int, world_size: int, micro_batch_size: int
) -> Iterator[JEPABatch]:
    """The fixed validation batches of a rank, made in this process; as many, and as large, on every rank.

    Whole global batches only; where the volumes fill none, one batch is filled by repeating them. Nothing for an
    empty data set.
    """
    if len(dataset) == 0:
        return
    per_round = micro_batch_size * world_size
    num_batches = max(1, len(dataset) // per_round)
    numbers = (index % len(dataset) for index in range(num_batches * per_round))
    for position in range(num_batches * world_size):
        indices = list(islice(numbers, micro_batch_size))
        if position % world_size == rank:
            yield jepa_batch([dataset[SampleKey(0, index)] for index in indices])
