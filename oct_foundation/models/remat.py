"""Blocks whose activations are thrown away after the forward and computed again in the backward: memory for time.

A block enters with the call it would get, its output leaves; gradients are the same. On XLA the compiler would find the
second forward equal to the first and keep the activations after all, so there torch_xla's form is used, with a barrier.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from oct_foundation.models.blocks import Block
from oct_foundation.models.xla_remat import checkpoint_on_xla

Remat = Literal["none", "alternate", "all"]
REMATS: tuple[Remat, ...] = ("none", "alternate", "all")


def recompute(networks: Iterable[nn.Module], remat: Remat) -> None:
    """Marks the blocks of `networks` that are computed again: none, every second from the first, or all.

    Raises ValueError for another word.
    """
    if remat not in REMATS:
        raise ValueError(f"remat is {remat!r}; allowed: {', '.join(REMATS)}")
    for network in networks:
        blocks = network.blocks
        assert isinstance(blocks, nn.ModuleList)
        for number, block in enumerate(blocks):
            assert isinstance(block, Block)
            block.recomputed = remat == "all" or (remat == "alternate" and number % 2 == 0)


def num_recomputed(depth: int, remat: Remat) -> int:
    """How many of `depth` blocks `recompute` marks."""
    return {"none": 0, "alternate": (depth + 1) // 2, "all": depth}[remat]


def run_block(block: nn.Module, tokens: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """block(tokens, *arguments), again in the backward where the block is marked and gradients are asked for."""
    if not (block.recomputed and torch.is_grad_enabled()):
        return block(tokens, *arguments)
    if tokens.device.type == "xla":
        return checkpoint_on_xla(block, tokens, *arguments)
    # No block draws random numbers: nothing of their state to keep.
    found = checkpoint(block, tokens, *arguments, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(found, torch.Tensor)
    return found
