"""V-JEPA3D: two aligned views of an OCT volume, fixed-count token masks, an EMA teacher (arXiv 2404.08471)."""

import logging
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from data_setup.datasets import PreparedVolumes, VolumeDataset
from data_setup.epoch_order import Balanced, EpochOrder, Shuffled
from data_setup.index import PreparedSet
from data_setup.loaders import TrainBatches, validation_batches
from data_setup.masking import MaskGenerator
from data_setup.sampler import ShardedBatchSampler
from data_setup.transforms import TrainingTransform, ValidationTransform
from oct_foundation.batch import JEPABatch
from oct_foundation.models.vjepa2_weights import start_from_vjepa2
from oct_foundation.models.vjepa3d import VJEPA3D
from oct_foundation.runtime.base import Scalar
from pretraining.config import ConfigError, RunConfig

log = logging.getLogger(__name__)


class VJEPATask:
    """Builds the model, the loss and the loaders of a V-JEPA3D run over a prepared set of volumes."""

    def __init__(self, config: RunConfig, prepared: PreparedSet) -> None:
        self.config = config
        masks = MaskGenerator(config.grid, config.mask)
        train, val = (PreparedVolumes(prepared, split, config.data.select) for split in ("train", "val"))
        train.keep_first(config.data.max_samples)
        self._order = _epoch_order(train.domains(), config)
        self._train = VolumeDataset(train, TrainingTransform(config.data.views, masks, seed=config.seed), self._order)
        self._val = VolumeDataset(val, ValidationTransform(masks, seed=config.seed))
        self._batches: TrainBatches | None = None
        self.num_train_samples = len(self._train)

    def build_model(self) -> nn.Module:
        """Student and teacher, equal on all ranks by the seed."""
        torch.manual_seed(self.config.seed)
        return VJEPA3D(self.config.model)

    def initialize(self, model: nn.Module) -> None:
        """V-JEPA 2's weights where `init_from` names them; raises ConfigError where they do not fit."""
        if (source := self.config.init_from) is None:
            return
        assert isinstance(model, VJEPA3D)
        try:
            at_random = start_from_vjepa2(model, source)
        except (OSError, ValueError) as error:
            raise ConfigError(f"init_from={source}: {error}") from None
        log.info("started from %s%s", source, ", but for the predictor" if at_random else "")

    def loss(self, model: nn.Module, batch: JEPABatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The latent prediction loss."""
        loss, _predictions, _targets = model(
            batch.context_view, batch.target_view, context_idx=batch.context_idx, target_idx=batch.target_idx
        )
        return loss, {}

    def after_update(self, model: nn.Module, scalars: Mapping[str, Scalar]) -> None:
        """Moves the teacher towards the student, inside the step."""
        assert isinstance(model, VJEPA3D)
        model.update_teacher(scalars["ema_momentum"])

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
        if self._batches is None:
            return {"replaced_samples": 0, "loader_restarts": 0}
        return {"replaced_samples": self._batches.num_replaced, "loader_restarts": self._batches.num_restarts}

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


def _epoch_order(domains: list[str], config: RunConfig) -> EpochOrder:
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
