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


# Which tokens of a sequence somebody reads: all, the last so many, or those at int64 [B, m].
Asked = int | torch.Tensor | None


def gather_tokens(tokens: torch.Tensor, idx: torch.Tensor) -> torch.Tensor:
    """tokens: [B, N, ...]; idx: int64 [B, n]. Returns [B, n, ...].

    By whole rows: torch.gather takes element by element, each with an index of its own. At [64, 384, 384] that counted
    15.6 GB of a TPU's step for visible patches and targets instead of 0.1; on a CPU it takes 20 to 160 times as long.
    """
    num_volumes, num_tokens = tokens.shape[:2]
    first_rows = torch.arange(0, num_volumes * num_tokens, num_tokens, device=idx.device)
    rows = tokens.flatten(0, 1).index_select(0, (idx + first_rows[:, None]).flatten())
    return rows.view(*idx.shape, *tokens.shape[2:])


def select_asked(tokens: torch.Tensor, asked: Asked) -> torch.Tensor:
    """tokens: [B, n, ...]. Returns [B, m, ...], a view where `asked` is no index."""
    if asked is None:
        return tokens
    return tokens[:, tokens.shape[1] - asked :] if isinstance(asked, int) else gather_tokens(tokens, asked)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for q, k and v (fewer tensors: cheaper steps and XLA traces)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} does not divide into {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor, rotation: Rotation | None, asked: Asked = None) -> torch.Tensor:
        """tokens: float [B, n, E]; rotation: of these tokens, None with added positions.

        asked: the m tokens that ask; all n of them answer. Returns float [B, n or m, E].
        """
        num_volumes, num_tokens, width = tokens.shape
        # As a matrix: XLA then adds the bias within the product, and not in a pass of its own over all heads.
        qkv = self.qkv(tokens.flatten(0, 1)).view(num_volumes, num_tokens, 3, self.num_heads, -1)
        query_key, value = qkv.split((2, 1), dim=2)  # split, not slices: its backward is one concatenation
        if rotation is not None:
            query_key = rotate(query_key, rotation)
        query, key = query_key.unbind(2)
        query = select_asked(query, asked)
        # XLA's autocast list lacks scaled_dot_product_attention: fp32 inputs would stay fp32 there.
        dtype = compute_dtype(tokens)
        query, key, value = (part.to(dtype).transpose(1, 2) for part in (query, key, value.squeeze(2)))
        # XLA would write the whole score matrix to memory; CUDA and CPU have fused kernels of their own.
        attend = flash_attention if runs_on_tpu(query.device) else F.scaled_dot_product_attention
        mixed = attend(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(num_volumes, -1, width))
