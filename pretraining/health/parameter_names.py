"""A model's state and an optimizer's -> which moments belong to which tensor; told by order and shape, or not at all.

An optimizer's file holds no names. Ours groups parameters by decay and by branch, each group in the model's order.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, product
from typing import Any

import torch

from oct_foundation.checkpoints.export import TEACHER
from oct_foundation.diagnostics.weights import Moments, moments_by_name

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# Of the film's model: what its loss is measured in, no weights.
_FILM_BUFFERS = ("mean_", "unigram", "scales")
_MOST_WAYS = 1000  # to share networks out
Tensors = Mapping[str, torch.Tensor]
Shape = tuple[int, ...]


def moments_of(tensors: Tensors, optimizer: Mapping[str, Any]) -> tuple[dict[str, Moments], bool]:
    """Moments by parameter, and whether their names are known; else they are numbered, good for NaN and Inf alone.

    Raises KeyError, TypeError, ValueError, AttributeError for what is no state of an Adam.
    """
    groups = optimizer["param_groups"]
    shapes = {index: tuple(state["exp_avg"].shape) for index, state in optimizer["state"].items() if "exp_avg" in state}
    trained = {name: tensor for name, tensor in tensors.items() if _may_be_trained(name, tensor)}
    for candidates in (trained, _without_tied(trained)):
        names = _names(candidates, groups, shapes)
        if names is not None:
            return moments_by_name(optimizer, names), True
    return moments_by_name(optimizer), False


def _names(trained: Tensors, groups: Sequence[Mapping[str, Any]], shapes: Mapping[int, Shape]) -> list[str] | None:
    """In the order of the groups; None where they fit in no way, or in two."""
    named: dict[int, str] = {}
    for decay in (True, False, None):
        own = [group for group in groups if group.get("decay") is decay]
        rest = [name for name in trained if decay in (None, _decays(trained[name]))] if own else []
        if (found := _shared_out(rest, trained, own, shapes)) is None:
            return None
        named |= found
    indices = [index for group in groups for index in group["params"]]
    if len(named) != len(indices) or sorted(named.values()) != sorted(trained):
        return None
    return [named[index] for index in indices]


def _shared_out(
    names: Sequence[str], trained: Tensors, groups: Sequence[Mapping[str, Any]], shapes: Mapping[int, Shape]
) -> dict[int, str] | None:
    """Names by index. A branch has the names that it stands in; the others have whole networks."""
    named: dict[int, str] = {}
    others = []
    for group in groups:
        own = [name for name in names if group.get("branch") and f"{group['branch']}_" in name]
        if own:
            names = [name for name in names if name not in own]
            if (found := _fitted(own, group["params"], trained, shapes)) is None:
                return None
            named |= found
        else:
            others.append(group["params"])
    fits = [found for order in _orders(names, others) if (found := _fitted(*order, trained, shapes)) is not None]
    return named | fits[0] if len(fits) == 1 else None


def _orders(names: Sequence[str], groups: Sequence[Sequence[int]]) -> Iterator[tuple[list[str], list[int]]]:
    """Every way to give whole networks (first parts of the names) to groups of the right number, group by group."""
    networks = list(dict.fromkeys(name.split(".")[0] for name in names))
    if len(groups) ** len(networks) > _MOST_WAYS:
        return
    for owners in product(range(len(groups)), repeat=len(networks)):
        owner = dict(zip(networks, owners, strict=True))
        parts = [[name for name in names if owner[name.split(".")[0]] == place] for place in range(len(groups))]
        if [len(part) for part in parts] == [len(group) for group in groups]:
            yield list(chain.from_iterable(parts)), list(chain.from_iterable(groups))


def _fitted(
    names: Sequence[str], indices: Sequence[int], trained: Tensors, shapes: Mapping[int, Shape]
) -> dict[int, str] | None:
    """One name for each index, by order, where all shapes fit; an index without moments has any."""
    if len(names) != len(indices):
        return None
    pairs = dict(zip(indices, names, strict=True))
    fits = all(
        tuple(trained[name].shape) == shapes.get(index, tuple(trained[name].shape)) for index, name in pairs.items()
    )
    return pairs if fits else None


def _decays(tensor: torch.Tensor) -> bool:
    """As oct_foundation/optim/groups.py has it: two axes longer than 1, or more."""
    return sum(side > 1 for side in tensor.shape) >= 2


def _may_be_trained(name: str, tensor: torch.Tensor) -> bool:
    return (
        tensor.is_floating_point()
        and not name.endswith(_STATISTICS)
        and not name.startswith(TEACHER)
        and not ("." not in name and name.startswith(_FILM_BUFFERS))
    )


def _without_tied(tensors: Tensors) -> Tensors:
    """Of tensors that are one under two names the first."""
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        twins = (other for other in kept.values() if other.shape == tensor.shape and tensor.ndim >= 2)
        if not any(torch.equal(other, tensor) for other in twins):
            kept[name] = tensor
    return kept
