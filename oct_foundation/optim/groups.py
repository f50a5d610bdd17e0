"""Which parameters decay: matrices and kernels do; biases, norms and single tokens do not; and which form a branch."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from oct_foundation.optim.adamw import ParameterGroup


def parameter_groups(model: nn.Module) -> list[ParameterGroup]:
    """Splits the trainable parameters into a decayed and an undecayed group, in the order of the model.

    A parameter with fewer than two axes longer than 1 (bias, norm gain, mask token [1, 1, P]) is not decayed.
    Raises ValueError when nothing is trainable.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("the model has no trainable parameter")
    decayed = [p for p in trainable if sum(side > 1 for side in p.shape) >= 2]
    chosen = {id(p) for p in decayed}
    undecayed = [p for p in trainable if id(p) not in chosen]
    groups: list[ParameterGroup] = [{"params": decayed, "decay": True}, {"params": undecayed, "decay": False}]
    return [group for group in groups if group["params"]]


def split_by_branch(
    groups: Iterable[ParameterGroup], branches: Mapping[str, Sequence[nn.Parameter]]
) -> list[ParameterGroup]:
    """Groups of which none holds two branches, so that AdamW counts the updates of each apart.

    A step without a gradient for a branch then leaves its count alone, too. The order inside the groups stays.
    """
    owner = {id(parameter): name for name, parameters in branches.items() for parameter in parameters}
    split: list[ParameterGroup] = []
    for group in groups:
        for name in (None, *branches):
            params = [parameter for parameter in group["params"] if owner.get(id(parameter)) == name]
            if params:
                split.append({**group, "params": params, "branch": name})
    return split
