"""What V-JEPA is measured against on the same volumes: a masked autoencoder, and an encoder that is shown the labels.

Both are objectives for the package's own step. The autoencoder (arXiv 2111.06377) hides the same patches and predicts
their voxels, each patch normalised; it has no teacher to run, so at equal FLOPs it takes more steps.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data_setup.datasets import PreparedVolumes
from data_setup.index import PreparedSet
from oct_foundation.batch import JEPABatch
from oct_foundation.models.encoder import Encoder, gather_tokens
from oct_foundation.models.flops import block_flops
from oct_foundation.models.predictor import Predictor
from oct_foundation.models.vjepa3d import PRESETS, VJEPA3D
from oct_foundation.runtime.base import Scalar
from pretraining.tasks.vjepa_objective import VJEPAObjective
from pretraining.vjepa_config import VJEPARunConfig

PATCH_EPS = 1e-6  # of the variance of a patch, grey levels of 0 to 1


class MaskedAutoencoder(nn.Module):
    """A V-JEPA3D's encoder, and its predictor as a decoder into voxels."""

    def __init__(self, model: VJEPA3D) -> None:
        super().__init__()
        self.encoder: Encoder = model.context_encoder
        self.decoder: Predictor = model.predictor
        self.to_voxels = nn.Linear(model.embed_dim, int(np.prod(model.grid.patch_size)))

    def forward(self, batch: JEPABatch) -> torch.Tensor:
        """Mean squared error at hidden patches, voxels normalised by patch: float32 scalar."""
        features = self.encoder(batch.context_view, batch.context_idx)
        predicted = self.to_voxels(self.decoder(features, batch.context_idx, batch.target_idx))
        patches = gather_tokens(self.encoder.patch_embed.patches(batch.target_view), batch.target_idx).float() / 255
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return F.mse_loss(predicted, (patches - mean) / (variance + PATCH_EPS).sqrt())


class MaskedAutoencoderObjective(VJEPAObjective):
    """Another model on the batches of V-JEPA."""

    def build_model(self) -> nn.Module:
        """Equal to V-JEPA's student at the start."""
        model = super().build_model()
        assert isinstance(model, VJEPA3D)
        return MaskedAutoencoder(model)

    def loss(self, model: nn.Module, batch: JEPABatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Of one batch."""
        return model(batch), {}

    def after_update(self, model: nn.Module, scalars: Mapping[str, Scalar]) -> None:
        """There is no teacher."""


class Supervised(nn.Module):
    """An encoder with a linear layer on its mean token."""

    def __init__(self, encoder: Encoder, width: int, num_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, num_labels)

    def forward(self, volume: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """volume: uint8 [B, 1, D, H, W]; targets: float [B, labels], standardised. Mean squared error."""
        return F.mse_loss(self.head(self.encoder(volume).mean(dim=1)), targets)


class SupervisedObjective(VJEPAObjective):
    """Trained on the labels of its training volumes: what an encoder of this size could know, an upper bound.

    targets: float32 [train volumes, labels], standardised, in the order of the index.
    """

    def __init__(self, config: VJEPARunConfig, prepared: PreparedSet, targets: np.ndarray) -> None:
        super().__init__(config)
        volumes = PreparedVolumes(prepared, "train")
        self._targets = torch.from_numpy(targets)
        # A batch carries no ids: a volume is recognised by the sum of its grey levels, which mirroring leaves alone.
        self._number_of = {int(volumes[n].sum(dtype=np.int64)): n for n in range(len(volumes))}
        assert len(self._number_of) == len(volumes), "two volumes have the same sum"

    def build_model(self) -> nn.Module:
        """Equal to V-JEPA's student at the start."""
        model = super().build_model()
        assert isinstance(model, VJEPA3D)
        return Supervised(model.context_encoder, model.embed_dim, self._targets.shape[1])

    def loss(self, model: nn.Module, batch: JEPABatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Of one batch."""
        sums = batch.target_view.flatten(1).sum(dim=1, dtype=torch.int64).tolist()
        return model(batch.target_view, self._targets[[self._number_of[one] for one in sums]]), {}

    def after_update(self, model: nn.Module, scalars: Mapping[str, Scalar]) -> None:
        """There is no teacher."""


def flops_per_step(config: VJEPARunConfig, kind: str, num_context: int, num_target: int) -> float:
    """Of one volume, multiply-add = 2, with the patch embedding; a backward pass is twice its forward."""
    sizes, num_patches = PRESETS[config.model.preset], config.grid.num_patches
    voxels = float(np.prod(config.model.patch_size))

    def embed(n: int) -> float:
        return 2.0 * n * voxels * sizes.width

    context = block_flops(num_context, sizes.width, sizes.depth) + embed(num_context)
    head = block_flops(num_context + num_target, sizes.predictor_width, sizes.predictor_depth)
    whole = block_flops(num_patches, sizes.width, sizes.depth) + embed(num_patches)
    match kind:
        case "vjepa":
            return whole + 3 * (context + head)
        case "mae":
            return 3 * (context + head + 2.0 * num_target * sizes.width * voxels)
        case _:
            return 3 * whole
