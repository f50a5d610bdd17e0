"""Patch features -> what a label needs: one number, or a score per class. For fine-tuning an encoder.

The linear head averages the patches; the attentive one lets learned queries choose them, for findings that sit in a few
patches and vanish in the mean (V-JEPA, arXiv 2404.08471, table 3).
"""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from oct_foundation.models.blocks import INIT_STD, LAYER_NORM_EPS

HeadKind = Literal["linear", "attentive"]


class LinearHead(nn.Module):
    """Mean over the patches, layer norm, one linear layer."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.linear = _small_linear(width, num_outputs)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens float [B, N, E] -> float [B, num_outputs]."""
        return self.linear(self.norm(tokens.mean(dim=1)))


class AttentiveHead(nn.Module):
    """One learned query per head attends to all patches; what it finds goes through a linear layer."""

    def __init__(self, width: int, num_heads: int, num_outputs: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, num_heads, 1, width // num_heads))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.key_value = nn.Linear(width, 2 * width)
        self.linear = _small_linear(width, num_outputs)
        nn.init.trunc_normal_(self.query, std=INIT_STD)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens float [B, N, E] -> float [B, num_outputs]."""
        num_volumes, num_tokens, _ = tokens.shape
        num_heads = self.query.shape[1]
        found = self.key_value(self.norm(tokens)).view(num_volumes, num_tokens, 2, num_heads, -1)
        key, value = found.transpose(1, 3).unbind(2)  # [B, heads, N, E / heads]
        query = self.query.to(key.dtype).expand(num_volumes, -1, -1, -1)
        return self.linear(F.scaled_dot_product_attention(query, key, value).flatten(1))


class FineTuned(nn.Module):
    """An encoder and a head, trained together."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """uint8 or float [B, C, D, H, W] -> float [B, num_outputs]."""
        return self.head(self.encoder(volume))


def build_head(kind: HeadKind, *, width: int, num_heads: int, num_outputs: int) -> nn.Module:
    """A head for an encoder of `width` with `num_heads`; weights from torch's global generator."""
    match kind:
        case "linear":
            return LinearHead(width, num_outputs)
        case "attentive":
            return AttentiveHead(width, num_heads, num_outputs)


def _small_linear(width: int, num_outputs: int) -> nn.Linear:
    """Starts near zero: the first updates shall not shake the encoder for a head that knows nothing yet."""
    linear = nn.Linear(width, num_outputs)
    nn.init.trunc_normal_(linear.weight, std=INIT_STD)
    nn.init.zeros_(linear.bias)
    return linear
