"""Self-attention over patch tokens through torch's fused kernels, or ours on TPUs: n^2 scores are never in memory."""

import torch
from torch import nn
from torch.nn import functional as F

from oct_foundation.models.positions import Rotation, rotate
from oct_foundation.models.xla_attention import flash_attention, runs_on_tpu


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype of matrix work on `tensor` here: autocast's where it is on, else the tensor's own."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


class Attention(nn.Module):
    """Multi-head self-attention with one projection for q, k and v (fewer tensors: cheaper steps and XLA traces)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} does not divide into {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor, rotation: Rotation | None, num_queries: int | None = None) -> torch.Tensor:
        """tokens: float [B, n, E]; rotation: of these tokens, None with added positions.

        num_queries: only the last so many tokens ask, all of them answer; None for all.
        Returns float [B, n or num_queries, E].
        """
        num_volumes, num_tokens, width = tokens.shape
        qkv = self.qkv(tokens).view(num_volumes, num_tokens, 3, self.num_heads, -1)
        query_key, value = qkv.split((2, 1), dim=2)  # split, not slices: its backward is one concatenation
        if rotation is not None:
            query_key = rotate(query_key, rotation)
        query, key = query_key.unbind(2)
        if num_queries is not None:
            query = query[:, num_tokens - num_queries :]
        # XLA's autocast list lacks scaled_dot_product_attention: fp32 inputs would stay fp32 there.
        dtype = compute_dtype(tokens)
        query, key, value = (part.to(dtype).transpose(1, 2) for part in (query, key, value.squeeze(2)))
        # XLA would write the whole score matrix to memory; CUDA and CPU have fused kernels of their own.
        attend = flash_attention if runs_on_tpu(query.device) else F.scaled_dot_product_attention
        mixed = attend(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(num_volumes, -1, width))
