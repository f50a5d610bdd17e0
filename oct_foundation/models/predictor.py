"""Features of the visible patches + positions of the hidden ones -> predicted features of the hidden ones."""

import torch
from torch import nn

from oct_foundation.models.attention import compute_dtype
from oct_foundation.models.blocks import INIT_STD, LAYER_NORM_EPS, build_blocks, initialize
from oct_foundation.models.positions import Grid, RopeLayout, RotaryPositions, SinCosPositions
from oct_foundation.models.remat import run_block


class Predictor(nn.Module):
    """A narrow transformer over context tokens and copies of one learned mask token, each at its true position."""

    def __init__(
        self,
        grid: Grid,
        *,
        encoder_width: int,
        width: int,
        depth: int,
        num_heads: int,
        rope_layout: RopeLayout | None,
    ) -> None:
        """rope_layout: None for sin-cos positions."""
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.sincos = SinCosPositions(grid, width) if rope_layout is None else None
        self.rotary = None if rope_layout is None else RotaryPositions(grid, width // num_heads, rope_layout)
        self.blocks = build_blocks(width, depth, num_heads)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.proj = nn.Linear(width, encoder_width)
        initialize(self, self.blocks)
        nn.init.trunc_normal_(self.mask_token, std=INIT_STD)

    def forward(self, context: torch.Tensor, context_idx: torch.Tensor, target_idx: torch.Tensor) -> torch.Tensor:
        """context: float [B, Nc, E] at int64 [B, Nc]; target_idx: int64 [B, Nt]. Returns float [B, Nt, E].

        Tokens are not put in grid order: attention does not mind, positions travel with the tokens.
        """
        visible = self.embed(context).float()  # an fp32 residual stream, as in the encoder
        hidden = self.mask_token.expand(*target_idx.shape, -1)
        tokens, idx = torch.cat([visible, hidden], dim=1), torch.cat([context_idx, target_idx], dim=1)
        if self.sincos is not None:
            tokens = tokens + self.sincos(idx)
        rotation = None if self.rotary is None else self.rotary(idx, compute_dtype(tokens))
        *inner, last = self.blocks
        for block in inner:
            tokens = run_block(block, tokens, rotation)
        # Nobody reads the context tokens after the last block: leaving them out saves 3 % of a step's operations.
        tokens = run_block(last, tokens, rotation, target_idx.shape[1])
        return self.proj(self.norm(tokens))
