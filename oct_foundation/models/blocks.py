"""The pre-norm transformer block that encoder and predictor are made of, and how its weights start."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from oct_foundation.models.attention import Asked, Attention, select_asked
from oct_foundation.models.positions import Rotation

LAYER_NORM_EPS = 1e-6
INIT_STD = 0.02


class MLP(nn.Module):
    """Two layers, four times as wide inside, with exact (erf) GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Each token by itself: float [B, n, E] -> float [B, n, E]."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the residual stream keeps the dtype it came with (fp32).

    recomputed: whether its activations are thrown away and computed again in the backward (remat.py).
    """

    recomputed: bool = False

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attention = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = MLP(width)

    def forward(self, tokens: torch.Tensor, rotation: Rotation | None, asked: Asked = None) -> torch.Tensor:
        """tokens: float [B, n, E]; rotation: of these tokens, or None. Returns float [B, n, E].

        asked: compute those m tokens only, float [B, m, E], which still see all n.
        """
        mixed = self.attention(self.norm1(tokens), rotation, asked)
        tokens = select_asked(tokens, asked) + mixed
        return tokens + self.mlp(self.norm2(tokens))


def build_blocks(width: int, depth: int, num_heads: int) -> nn.ModuleList:
    """`depth` equal blocks, in order."""
    return nn.ModuleList(Block(width, num_heads) for _ in range(depth))


@torch.no_grad()
def initialize(network: nn.Module, blocks: nn.ModuleList) -> None:
    """Truncated normal weights (std 0.02) and zero biases from torch's generator; deep blocks start quieter.

    The output layers of block l (from 1) are divided by sqrt(2 l), so that the residual sum keeps its scale with
    depth, as in V-JEPA (arXiv 2404.08471).
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            nn.init.trunc_normal_(module.weight, std=INIT_STD)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    for number, block in enumerate(blocks, start=1):
        assert isinstance(block, Block)
        for layer in (block.attention.proj, block.mlp.fc2):
            layer.weight.div_(math.sqrt(2.0 * number))
