"""Recomputation of a block on XLA: torch_xla's own, whose barrier keeps the compiler from merging the two forwards."""

from typing import Any

import torch
from torch import nn


def checkpoint_on_xla(block: nn.Module, tokens: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """block(tokens, *arguments), computed again in the backward; `tokens` must require a gradient.

    torch_xla looks for the block's weights, to put them behind the barrier too, at the owner of a bound method.
    """
    from torch_xla.utils.checkpoint import checkpoint

    assert tokens.requires_grad, "the reentrant form would leave the block's weights without gradients"
    found = checkpoint(block.forward, tokens, *arguments, preserve_rng_state=False)
    assert isinstance(found, torch.Tensor)
    return found
