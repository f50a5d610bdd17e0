"""What all tasks do alike with their training samples: an order that depends on the seed alone, through the loader."""

from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

from data_setup.epoch_order import EpochOrder
from data_setup.loaders import LoaderSettings, MakeBatch, MicroBatches, TrainBatches
from data_setup.sampler import ShardedBatchSampler
from data_setup.worker_watch import NamedDataset
from pretraining.config import RunConfig


class Sampler(MicroBatches, Protocol):
    """The order of a rank's samples over the whole run."""

    steps_per_epoch: int

    def order_hash(self) -> str:
        """Changes when the order does."""
        ...


class Samples(NamedDataset, Protocol):
    """A data set that can be told from another one."""

    def __len__(self) -> int:
        """How many."""
        ...

    def fingerprint(self) -> str:
        """Changes when the samples do."""
        ...


S = TypeVar("S", bound=Samples)


class SampledTask(ABC, Generic[S]):
    """The training side of a task; `samples` are what it trains on."""

    def __init__(self, samples: S, loader: LoaderSettings, make_batch: MakeBatch | None = None) -> None:
        self.samples = samples
        self.num_train_samples = len(samples)
        self._loader, self._make_batch = loader, make_batch
        self._batches: TrainBatches | None = None

    @abstractmethod
    def sampler(self, rank: int, world_size: int) -> Sampler:
        """The order of the training samples; raises ValueError when they do not fill one global batch."""

    def train_batches(self, *, rank: int, world_size: int, start_step: int, num_steps: int) -> TrainBatches:
        """Micro-batches of this rank, `grad_accum_steps` of them per update."""
        self._batches = TrainBatches(
            self.samples,
            self.sampler(rank, world_size),
            self._loader,
            start_step=start_step,
            num_steps=num_steps,
            make_batch=self._make_batch,
        )
        return self._batches

    def input_counts(self) -> dict[str, int]:
        """Samples of this rank that came from another file than planned, and restarts of its loader, so far."""
        return {
            "replaced_samples": self._batches.num_replaced if self._batches else 0,
            "loader_restarts": self._batches.num_restarts if self._batches else 0,
        }

    def steps_per_epoch(self, *, world_size: int) -> int:
        """From the sampler that the run uses."""
        return self.sampler(0, world_size).steps_per_epoch

    def data_fingerprint(self, *, world_size: int) -> str:
        """Hash of the order and of the samples."""
        return self.sampler(0, world_size).order_hash() + self.samples.fingerprint()


def epoch_sampler(config: RunConfig, order: EpochOrder, rank: int, world_size: int) -> ShardedBatchSampler:
    """Whole epochs in `order`; raises ValueError when they do not fill one global batch."""
    batch = config.batch
    return ShardedBatchSampler(
        order=order,
        rank=rank,
        world_size=world_size,
        micro_batch_size=batch.per_core_batch_size,
        grad_accum_steps=batch.accumulation(world_size),
        drop_last=config.train.drop_last,
    )
