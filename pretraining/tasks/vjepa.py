"""V-JEPA3D on prepared volumes: two aligned views of each, fixed-count token masks, the order of an epoch."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from data_setup.datasets import PreparedVolumes, VolumeDataset
from data_setup.epoch_order import Balanced, EpochOrder, Shuffled
from data_setup.index import PreparedSet
from data_setup.loaders import TrainBatches, input_counts, validation_batches
from data_setup.masking import MaskGenerator
from data_setup.sampler import ShardedBatchSampler
from oct_foundation.batch import JEPABatch
from oct_foundation.runtime.base import Runtime
from pretraining.config import ConfigError
from pretraining.run_folder import RunFolder
from pretraining.tasks.task import Objective, Watch
from pretraining.tasks.vjepa_objective import VJEPAObjective
from pretraining.vjepa_config import VJEPARunConfig


class VJEPATask:
    """The loaders of a V-JEPA3D run over a prepared set of volumes, around its objective.

    objective: another one than V-JEPA's on the same batches.
    """

    def __init__(self, config: VJEPARunConfig, prepared: PreparedSet, objective: Objective | None = None) -> None:
        from data_setup.transforms import TrainingTransform, ValidationTransform  # MONAI: seconds, for ranks alone

        self.config, self._prepared = config, prepared
        self.objective: Objective = objective or VJEPAObjective(config)
        masks = MaskGenerator(config.grid, config.mask)
        train, val = (PreparedVolumes(prepared, split, config.data.select) for split in ("train", "val"))
        train.keep_first(config.data.max_samples)
        self._order = _epoch_order(train.domains(), config)
        self._train = VolumeDataset(train, TrainingTransform(config.data.views, masks, seed=config.seed), self._order)
        self._val = VolumeDataset(val, ValidationTransform(masks, seed=config.seed))
        self._batches: TrainBatches | None = None
        self.num_train_samples = len(self._train)

    def sampler(self, rank: int, world_size: int) -> ShardedBatchSampler:
        """The order of the training samples; raises ValueError when they do not fill one global batch."""
        batch = self.config.batch
        return ShardedBatchSampler(
            order=self._order,
            rank=rank,
            world_size=world_size,
            micro_batch_size=batch.per_core_batch_size,
            grad_accum_steps=batch.accumulation(world_size),
            drop_last=self.config.train.drop_last,
        )

    def train_batches(self, *, rank: int, world_size: int, start_step: int, num_steps: int) -> Iterable[JEPABatch]:
        """Micro-batches of this rank, `grad_accum_steps` of them per update."""
        self._batches = TrainBatches(
            self._train,
            self.sampler(rank, world_size),
            self.config.data.loader,
            start_step=start_step,
            num_steps=num_steps,
        )
        return self._batches

    def input_counts(self) -> dict[str, int]:
        """Samples of this rank that came from another volume than planned, and restarts of its loader."""
        return input_counts(self._batches)

    def val_batches(self, *, rank: int, world_size: int) -> Iterable[JEPABatch]:
        """Fixed volumes with fixed masks, without augmentation."""
        return validation_batches(
            self._val,
            rank=rank,
            world_size=world_size,
            micro_batch_size=self.config.batch.per_core_batch_size,
        )

    def steps_per_epoch(self, *, world_size: int) -> int:
        """From the sampler that the run uses."""
        return self.sampler(0, world_size).steps_per_epoch

    def data_fingerprint(self, *, world_size: int) -> str:
        """Hash of the order and of the samples' ids."""
        return self.sampler(0, world_size).order_hash() + self._train.fingerprint()

    def facts(self) -> dict[str, Any]:
        """Volumes, and bad files by reason."""
        return {
            "volumes": {"train": self.num_train_samples, "accepted": len(self._prepared.accepted())},
            "bad_files": self._prepared.bad_by_reason(),
        }

    def watch(self, model: nn.Module, runtime: Runtime, *, total_steps: int, folder: RunFolder) -> Watch | None:
        """Readings of the validation volumes (docs/diagnostics.md)."""
        if not self.config.diagnostics.enabled:
            return None
        from pretraining.assemble_diagnostics import build_diagnostics

        return build_diagnostics(self.config, self._prepared, model, runtime, total_steps=total_steps, folder=folder)


def _epoch_order(domains: list[str], config: VJEPARunConfig) -> EpochOrder:
    """Every volume once per epoch, or the makers' shares that the configuration asks for."""
    data = config.data
    try:
        if data.domain_weights:
            return Balanced(domains, data.domain_weights, config.seed)
        if data.domain_balance == "vendor":
            return Balanced(domains, dict.fromkeys(domains, 1.0), config.seed)
        return Shuffled(len(domains), config.seed)
    except ValueError as error:
        raise ConfigError(str(error)) from None
