"""Layer-wise learning rates for fine-tuning: early layers, which are general, move less than late ones and the head.

As BEiT (arXiv 2106.08254) and MAE fine-tune: the rate of a layer is that of the layer behind it times `decay`.
"""

import re
from collections import defaultdict

from torch import nn

from oct_foundation.optim.adamw import ParameterGroup
from oct_foundation.optim.groups import parameter_groups

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def layer_scale(name: str, depth: int, decay: float) -> float:
    """decay^(depth + 1 - layer) for a parameter of an encoder with `depth` blocks and a head.

    Layer 0 is the patch embedding, block i (from 0) is layer i + 1; the last norm and the head are layer depth + 1,
    with scale 1. Raises ValueError for a block that the encoder has not.
    """
    if block := _BLOCK.search(name):
        layer = int(block[1]) + 1
        if layer > depth:
            raise ValueError(
                f"parameter {name} is of block {block[1]}; an encoder of {depth} blocks has 0 to {depth - 1}"
            )
    else:
        layer = 0 if "patch_embed." in name else depth + 1
    return decay ** (depth + 1 - layer)


def layer_groups(model: nn.Module, depth: int, decay: float) -> list[ParameterGroup]:
    """The groups of `parameter_groups`, each split by the scale of its parameters, small scales first."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: list[ParameterGroup] = []
    for group in parameter_groups(model):
        by_scale: defaultdict[float, list[nn.Parameter]] = defaultdict(list)
        for parameter in group["params"]:
            by_scale[layer_scale(names[id(parameter)], depth, decay)].append(parameter)
        found += [{"params": by_scale[s], "decay": group["decay"], "scale": s} for s in sorted(by_scale)]
    return found
