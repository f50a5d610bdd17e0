"""The throughput peer and parity oracle: V-JEPA 2 pretraining built on the layers of `transformers`.

`VJEPA2Model.forward` is no training forward (its encoder sees every token and gathers the output), so encoder and
predictor are run by hand over the visible tokens, in the strongest form known: gather before the first layer,
no sorting, no loop over the batch.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F
from transformers import VJEPA2Config, VJEPA2Model

from oct_foundation.losses.latent import LatentLoss, latent_loss
from oct_foundation.models.vjepa2_weights import to_vjepa2_names, vjepa2_settings
from oct_foundation.models.vjepa3d import VJEPA3DConfig


def peer_config(config: VJEPA3DConfig) -> VJEPA2Config:
    """The same sizes for the peer; raises ValueError when H and W differ, which it would get wrong in silence."""
    found = VJEPA2Config(**vjepa2_settings(config))
    found._attn_implementation = "sdpa"
    return found


def encode(encoder: nn.Module, volume: torch.Tensor, idx: torch.Tensor | None = None) -> torch.Tensor:
    """volume: float [B, C, D, H, W]; idx: int64 [B, n] or None for all. Returns float [B, n, E]."""
    tokens = encoder.embeddings(volume.transpose(1, 2))  # the peer wants [B, D, C, H, W]
    if idx is not None:
        tokens = tokens.gather(1, idx.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    for layer in encoder.layer:
        tokens = layer(tokens, idx)[0]
    return encoder.layernorm(tokens)


def predict(
    predictor: nn.Module, context: torch.Tensor, context_idx: torch.Tensor, target_idx: torch.Tensor
) -> torch.Tensor:
    """context: float [B, Nc, E] at context_idx; target_idx: int64 [B, Nt]. Returns float [B, Nt, E]."""
    queries = predictor.embeddings.mask_tokens[0].expand(context.shape[0], target_idx.shape[1], -1)
    tokens = torch.cat([predictor.embeddings.predictor_embeddings(context), queries], dim=1)
    idx = torch.cat([context_idx, target_idx], dim=1)
    for layer in predictor.layer:
        tokens = layer(tokens, idx)[0]
    return predictor.proj(predictor.layernorm(tokens)[:, context.shape[1] :])


class VJEPA2Peer(nn.Module):
    """The same three networks, the same forward and the same loss as VJEPA3D, on the layers of `transformers`."""

    def __init__(self, config: VJEPA3DConfig) -> None:
        super().__init__()
        self.loss: LatentLoss = config.loss
        model = VJEPA2Model(peer_config(config))
        self.context_encoder, self.predictor = model.encoder, model.predictor
        nn.init.normal_(self.predictor.embeddings.mask_tokens, std=0.02)  # zeros by default: no position would differ
        self.target_encoder = copy.deepcopy(self.context_encoder).requires_grad_(False).eval()

    def forward(
        self,
        context_view: torch.Tensor,
        target_view: torch.Tensor,
        *,
        context_idx: torch.Tensor,
        target_idx: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss, predictions and targets, as VJEPA3D gives them; views float [B, C, D, H, W]."""
        with torch.no_grad():
            features = encode(self.target_encoder, target_view)
            features = features.gather(1, target_idx.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
            targets = F.layer_norm(features.float(), features.shape[-1:])
        context = encode(self.context_encoder, context_view, context_idx)
        predictions = predict(self.predictor, context, context_idx, target_idx)
        return latent_loss(predictions, targets, self.loss), predictions, targets

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """The fused form of the moving average, as ours."""
        teachers, students = list(self.target_encoder.parameters()), list(self.context_encoder.parameters())
        torch._foreach_lerp_(teachers, students, 1 - momentum)


def copy_weights(ours: nn.Module, peer: VJEPA2Peer) -> None:
    """Loads the weights of a VJEPA3D into the peer, all three networks; raises when a key is left over or missing."""
    with torch.no_grad():
        for name in ("context_encoder", "predictor", "target_encoder"):
            getattr(peer, name).load_state_dict(to_vjepa2_names(getattr(ours, name).state_dict()), strict=True)
