"""Layers of the brain/stimulus autoencoder: linear, norm, ReLU, dropout; codes of sound as numbers, vectors and logits.

A layer may be computed again in the backward, on any device, with the same result: what it draws (dropout) and what it
counts (running statistics) stand outside of the part that runs twice.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from oct_foundation.losses.normalized import at_least_float32
from oct_foundation.models.brain_config import Norm
from oct_foundation.models.remat import run_block


class BatchNorm(nn.BatchNorm1d):
    """Its numbers and its state dict, but a batch enters the running statistics inside `counting` only.

    nn.BatchNorm1d counts every forward, so a recomputed batch twice: 2726 batches in the report's checkpoint for 1363.
    """

    counts = False

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Features apart, float [B, n] -> [B, n]; raises ValueError for one sample in training: it has no variance."""
        if not self.training:
            return super().forward(values)
        normalized = F.batch_norm(values, None, None, self.weight, self.bias, training=True, eps=self.eps)
        if self.counts:
            self._count(values)
        return normalized

    @torch.no_grad()
    def _count(self, values: torch.Tensor) -> None:
        """A batch that is not finite counts nothing: the optimizer skips it, too, and evaluation has to go on."""
        assert self.momentum is not None, "not the mean over all batches"
        variance, mean = torch.var_mean(values, dim=0)
        finite = torch.isfinite(variance).all()
        for name, found in (("running_mean", mean), ("running_var", variance)):
            running = self.get_buffer(name)
            running.copy_(torch.where(finite, running.lerp(found, self.momentum), running))
        self.get_buffer("num_batches_tracked").add_(finite)


@contextmanager
def counting(norm: nn.Module) -> Iterator[None]:
    """Around the first forward of a batch; a recomputation comes later and finds it closed."""
    if not isinstance(norm, BatchNorm):
        yield
        return
    norm.counts = True
    try:
        yield
    finally:
        norm.counts = False


class Dense(nn.Module):
    """Linear, norm and, where `activation`, ReLU: the part of a layer that may run twice (`recomputed`).

    exact: the product is float32 under autocast, too, for inputs that bfloat16 cannot tell apart.
    """

    recomputed = False
    exact = False

    def __init__(self, in_features: int, out_features: int, norm: Norm, *, activation: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.norm = BatchNorm(out_features) if norm == "batch" else nn.LayerNorm(out_features)
        self.activation = activation

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Samples float [B, in_features] -> float32 [B, out_features]."""
        if self.exact:
            with torch.autocast(values.device.type, enabled=False):
                product = self.linear(values)
        else:
            product = self.linear(values)
        normalized = self.norm(at_least_float32(product))
        return F.relu(normalized) if self.activation else normalized


class Layer(nn.Module):
    """A Dense and its dropout, whose mask is drawn behind the part that runs twice: no generator has to be set back."""

    def __init__(self, dense: Dense, dropout: float = 0.0) -> None:
        super().__init__()
        self.dense, self.dropout = dense, dropout

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Samples float [B, in_features] -> float32 [B, out_features]."""
        # torch_xla's recomputation would leave weights without a gradient where the input needs none. That is the
        # first layer, which keeps 4,096 values of a TR beside the 432,000 of its input.
        again = values.requires_grad or values.device.type != "xla"
        with counting(self.dense.norm):
            found = run_block(self.dense, values) if again else self.dense(values)
        return F.dropout(found, self.dropout, self.training)


class ScaledCodes(nn.Module):
    """Codes as numbers: int64 [B, n], 0 to num_codes - 1 -> float32 [B, n]; mean 0, variance 1 if all are as frequent.

    As they are, they made a running variance of 274,432 behind the first layer, and bfloat16 tells 513 of 1,024 apart.
    """

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        self.middle = (num_codes - 1) / 2
        self.deviation = ((num_codes**2 - 1) / 12) ** 0.5

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Without parameters, so that the documented counts stay exact."""
        return (codes.float() - self.middle) / self.deviation


class CodeVectors(nn.Module):
    """A learned vector for each code of each book: int64 [B, books x n] -> float32 [B, books x n x width]."""

    def __init__(self, codebooks: int, num_codes: int, width: int) -> None:
        super().__init__()
        self.codebooks, self.num_codes = codebooks, num_codes
        self.vectors = nn.Embedding(codebooks * num_codes, width)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """The codes of the first book come first, then those of the next."""
        books = torch.arange(self.codebooks, device=codes.device).unsqueeze(1) * self.num_codes
        return self.vectors(codes.unflatten(1, (self.codebooks, -1)) + books).flatten(1)


class CodeLogits(nn.Module):
    """A vector for each place of a TR, which its book compares with its codes: float [B, n] -> [B, places, num_codes].

    A linear layer to all logits would hold 1.88 G weights at the documented sizes; this one holds 59 M.
    """

    def __init__(self, in_features: int, codebooks: int, codes_per_tr: int, num_codes: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Linear(in_features, codebooks * codes_per_tr * width)
        self.books = nn.ModuleList(nn.Linear(width, num_codes) for _ in range(codebooks))
        self.size = (codebooks, codes_per_tr, width)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Places in the order of the codes of a FilmBatch."""
        of_books = self.vectors(values).unflatten(1, self.size).unbind(1)
        return torch.cat([book(vectors) for book, vectors in zip(self.books, of_books, strict=True)], dim=1)


def layers(widths: Sequence[int], dropouts: Sequence[float], norm: Norm) -> list[nn.Module]:
    """One layer from each width to the next."""
    sizes = zip(pairwise(widths), dropouts, strict=True)
    return [Layer(Dense(inputs, outputs, norm), dropout) for (inputs, outputs), dropout in sizes]


def run(chain: nn.ModuleList, values: torch.Tensor) -> torch.Tensor:
    """Each module on what the one before it gave. A list, not a Sequential: its elements are what sharding gathers."""
    for module in chain:
        values = module(values)
    return values
