"""Data sets -> batches of fixed shape, made here or in worker processes; a failing worker is an error, not an end."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch.utils.data import DataLoader

from data_setup.collate import collate
from data_setup.datasets import VolumeDataset
from data_setup.sampler import SampleKey, ShardedBatchSampler
from oct_foundation.batch import JEPABatch


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """num_workers 0: in the training process. prefetch_factor: batches that each worker holds ready."""

    num_workers: int = 0
    prefetch_factor: int = 2
    timeout_s: int = 300

    def __post_init__(self) -> None:
        for name, least in (("num_workers", 0), ("prefetch_factor", 1), ("timeout_s", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"data.loader.{name} must be at least {least}; found {getattr(self, name)}")


class _MicroBatches:
    """What DataLoader wants of a batch sampler: an iterable with a length."""

    def __init__(self, sampler: ShardedBatchSampler, start_step: int, num_steps: int) -> None:
        self._sampler, self._start_step, self._num_steps = sampler, start_step, num_steps

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return self._sampler.micro_batches(self._start_step, self._num_steps)

    def __len__(self) -> int:
        return self._num_steps * self._sampler.grad_accum_steps


def _start_worker(_worker: int) -> None:
    """A worker is one core's work: torch would start as many threads as there are cores in each."""
    torch.set_num_threads(1)


def jepa_batch(samples: list[dict[str, torch.Tensor]]) -> JEPABatch:
    """Collates samples and keeps what the step needs."""
    return JEPABatch.from_dict(collate(samples))


def train_batches(
    dataset: VolumeDataset, sampler: ShardedBatchSampler, settings: LoaderSettings, *, start_step: int, num_steps: int
) -> Iterable[JEPABatch]:
    """The micro-batches of `sampler`'s rank for the updates [start_step, start_step + num_steps)."""
    workers = settings.num_workers
    return DataLoader(
        dataset,
        batch_sampler=_MicroBatches(sampler, start_step, num_steps),
        collate_fn=jepa_batch,
        num_workers=workers,
        # A fork after an accelerator's client has started is unsafe; a fork server was clean when it began.
        multiprocessing_context="forkserver" if workers else None,
        prefetch_factor=settings.prefetch_factor if workers else None,
        timeout=settings.timeout_s if workers else 0,
        worker_init_fn=_start_worker,
    )


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
