"""What V-JEPA3D trains, without its data: the networks, the latent loss, the EMA teacher (arXiv 2404.08471)."""

import logging
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from data_setup.loaders import jepa_batch
from data_setup.masking import MaskGenerator
from oct_foundation.batch import JEPABatch
from oct_foundation.models.flops import block_flops, step_flops
from oct_foundation.models.remat import Remat, num_recomputed
from oct_foundation.models.vjepa2_weights import start_from_vjepa2
from oct_foundation.models.vjepa3d import PRESETS, VJEPA3D
from oct_foundation.runtime.base import Scalar
from pretraining.config import ConfigError
from pretraining.tasks.task import Objective
from pretraining.vjepa_config import VJEPARunConfig

log = logging.getLogger(__name__)


class VJEPAObjective(Objective):
    """Model, loss and teacher of a configuration; the same for every data set."""

    def __init__(self, config: VJEPARunConfig) -> None:
        self.config = config

    def build_model(self) -> nn.Module:
        """Student and teacher, equal on all ranks by the seed; blocks recomputed and compiled as `train` says."""
        torch.manual_seed(self.config.seed)
        model = VJEPA3D(self.config.model)
        model.recompute(self.config.train.remat)
        if self.config.train.compile:
            model.compile_blocks()
        return model

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

    def example_batch(self, num_samples: int, kind: str = "") -> JEPABatch:
        """Black volumes under masks of the configuration's, collated as the loader does it."""
        masks, rng = MaskGenerator(self.config.grid, self.config.mask), np.random.default_rng(0)
        view = np.zeros((1, *self.config.model.image_size), np.uint8)
        samples = []
        for _ in range(num_samples):
            mask = masks.draw(rng)
            views = {"context_view": view, "target_view": view}
            samples.append({**views, "context_idx": mask.context_idx, "target_idx": mask.target_idx})
        return jepa_batch(samples)

    def sample_flops(self, kind: str = "") -> float:
        """Of one volume."""
        masks = MaskGenerator(self.config.grid, self.config.mask)
        return step_flops(self.config.model, num_context=masks.num_context, num_target=masks.num_target)

    def remat_flops(self, remat: Remat, kind: str = "") -> float:
        """Of one volume. The teacher keeps nothing for a backward, so it recomputes nothing."""
        masks, sizes = MaskGenerator(self.config.grid, self.config.mask), PRESETS[self.config.model.preset]
        encoder = block_flops(masks.num_context, sizes.width, num_recomputed(sizes.depth, remat))
        num_tokens = masks.num_context + masks.num_target
        return encoder + block_flops(num_tokens, sizes.predictor_width, num_recomputed(sizes.predictor_depth, remat))
