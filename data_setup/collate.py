"""Samples -> one batch of plain, contiguous tensors, whatever the transforms left behind.

A MetaTensor or any other object inside a batch breaks the transfer to XLA; ids and paths have no place on a device.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


def plain_tensor(value: Any) -> torch.Tensor | None:
    """`value` as a contiguous torch.Tensor without subclass or metadata; None for what is neither tensor nor array."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if not isinstance(value, torch.Tensor):
        return None
    return value.as_subclass(torch.Tensor).detach().contiguous()


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Stacks each tensor entry: {name: [...]} x B -> {name: [B, ...]}; all other entries stay behind.

    Serves {context_view, target_view, mask, ...} and {image} alike. Raises ValueError, naming the entry, where samples
    differ in their entries or shapes, or hold no tensor.
    """
    plain = [
        {name: tensor for name, value in s.items() if (tensor := plain_tensor(value)) is not None} for s in samples
    ]
    if not plain or not plain[0]:
        raise ValueError("a batch needs at least one sample with at least one tensor")
    for other in plain[1:]:
        if other.keys() != plain[0].keys():
            raise ValueError(f"samples of one batch differ in their entries: {sorted(plain[0])} and {sorted(other)}")
    batch = {}
    for name in plain[0]:
        shapes = {tuple(sample[name].shape) for sample in plain}
        if len(shapes) > 1:
            raise ValueError(f"samples of one batch differ in the shape of {name}: {sorted(shapes)}")
        batch[name] = torch.stack([sample[name] for sample in plain])
    return batch
