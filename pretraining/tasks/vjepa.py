"""V-JEPA3D on prepared volumes: two aligned views of each, fixed-count token masks, the order of an epoch."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from data_setup.datasets import PreparedVolumes, VolumeDataset
from data_setup.epoch_order import Balanced, EpochOrder, Shuffled
from data_setup.index import PreparedSet
from data_setup.loaders import validation_batches
from data_setup.masking import MaskGenerator
from data_setup.sampler import ShardedBatchSampler
from oct_foundation.batch import JEPABatch
from oct_foundation.runtime.base import Runtime
from pretraining.config import ConfigError
from pretraining.run_folder import RunFolder
from pretraining.tasks.sampled import SampledTask, epoch_sampler
from pretraining.tasks.task import Objective, Watch
from pretraining.tasks.vjepa_objective import VJEPAObjective
from pretraining.vjepa_config import VJEPARunConfig


class VJEPATask(SampledTask[VolumeDataset]):
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
        transform = TrainingTransform(config.data.views, masks, seed=config.seed)
        super().__init__(VolumeDataset(train, transform, self._order), config.data.loader)
        self._val = VolumeDataset(val, ValidationTransform(masks, seed=config.seed))

    def sampler(self, rank: int, world_size: int) -> ShardedBatchSampler:
        """Every volume once per epoch, or the makers' shares that the configuration asks for."""
        return epoch_sampler(self.config, self._order, rank, world_size)

    def val_batches(self, *, rank: int, world_size: int) -> Iterable[JEPABatch]:
        """Fixed volumes with fixed masks, without augmentation."""
        return validation_batches(
            self._val,
            rank=rank,
            world_size=world_size,
            micro_batch_size=self.config.batch.per_core_batch_size,
        )

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
