"""What the brain/stimulus autoencoder trains, without its data: network, losses in units of a constant's, balance."""

import torch
from torch import nn

from oct_foundation.film import FILM_MODALITIES, FilmBatch, TargetStatistics
from oct_foundation.losses.normalized import FilmLoss
from oct_foundation.models.brain_config import recomputed_flops, training_flops
from oct_foundation.models.film_model import FilmModel, neutral_statistics
from oct_foundation.models.remat import Remat
from oct_foundation.runtime.base import Runtime
from pretraining.autoencoder_config import AutoencoderRunConfig
from pretraining.config import ConfigError
from pretraining.tasks.task import Objective


class AutoencoderObjective(Objective):
    """statistics: of the training TRs; None for a step without data. Raises ConfigError where a target is constant over
    the training TRs, and for settings of transformers.
    """

    builds_from_shapes = True

    def __init__(self, config: AutoencoderRunConfig, statistics: TargetStatistics | None = None) -> None:
        if config.train.remat != "none" or config.train.compile:
            raise ConfigError(
                "train.remat and train.compile are for transformers; this network has model.gradient_checkpointing"
            )
        self.config, self.network = config, config.network
        self.finds_unused = len(config.loss.weights) < len(FILM_MODALITIES)
        self.statistics = statistics or neutral_statistics(self.network.shape)
        try:
            self.film_loss = FilmLoss(config.loss, self.statistics, self.network.audio_output)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def build_model(self) -> nn.Module:
        """Equal on all ranks by the seed."""
        torch.manual_seed(self.config.seed)
        return FilmModel(self.network, self.film_loss, self.statistics, self.config.loss.balance)

    def placed(self, model: nn.Module, runtime: Runtime) -> None:
        """Raises ConfigError where ranks would learn weights of their own."""
        if self.config.loss.balance == "gradnorm" and runtime.world_size * runtime.cores > 1:
            raise ConfigError(
                "loss.balance=gradnorm weighs by the gradients of one device, and every rank would find weights of its "
                "own; set loss.balance=uncertainty or fixed"
            )

    def loss(self, model: nn.Module, batch: FilmBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Mean over the TRs of the batch, and what of it is whose."""
        total, metrics = model(batch.video, batch.video_target, batch.audio, batch.text, batch.fmri)
        return total, metrics

    def example_batch(self, num_samples: int, kind: str = "") -> FilmBatch:
        """Black pictures, silence, no text, a brain at its mean."""
        shape = self.network.shape
        return FilmBatch(
            video=torch.zeros(num_samples, shape.video_dim),
            video_target=torch.zeros(num_samples, shape.frame_dim),
            audio=torch.zeros(num_samples, shape.audio_dim, dtype=torch.int64),
            text=torch.zeros(num_samples, shape.text_dim),
            fmri=torch.zeros(num_samples, shape.voxels),
        )

    def sample_flops(self, kind: str = "") -> float:
        """Of one TR."""
        return training_flops(self.network)

    def remat_flops(self, remat: Remat, kind: str = "") -> float:
        """Of the video encoder, where model.gradient_checkpointing computes it again."""
        return recomputed_flops(self.network)
