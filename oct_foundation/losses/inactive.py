"""Branches that a step has no data for: nothing hangs, and what was not trained does not move.

A batch of T1 volumes alone leaves the embeddings of rsfMRI and dMRI without a gradient: DDP raises at that, and the
constant 1e-7 dummy loss that quiets it makes AdamW walk an absent branch by 0.9 lr in every step, 4.5 times its
norm in 1,000. Here the dummy is zero and inside forward, and the zero gradients of it are taken away before the update.
"""

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

# skip: absent branches stay exactly where they are, weights, moments and step count. zero: a zero gradient, so
# momentum and decay move them. tiny: the 1e-7 of the first UMBRELLA, for comparison. find_unused: no dummy at all.
Policy = Literal["skip", "zero", "tiny", "find_unused"]
TINY = 1e-7
TRUNK = "trunk"  # what every modality passes through, and a batch of text alone does not

Branches = Mapping[str, Sequence[nn.Parameter]]
Activity = Mapping[str, float]


class Inactive:
    """Knows which branches the micro-batches of a step used, on this rank and on all; one object for a run.

    branches: modality -> its parameters, as objects (names are never matched), none in two lists; trunk: the
    parameters that all modalities share but text alone does not reach. Where parameters are sharded, take the lists
    after sharding. Each step: `see` before every forward, `drop` after the last backward and before clip and update.
    """

    def __init__(
        self, branches: Branches, policy: Policy = "skip", *, trunk: Sequence[nn.Parameter] = (), anchored: bool = True
    ) -> None:
        """anchored: False lets `skip` go without its zero dummy, which only DDP needs.

        One process needs none, nor do ranks that always hold the same modalities (XLA), nor a model that runs its
        absent branches on zeros (FSDP2). Raises ValueError for an unknown policy and for lists that overlap.
        """
        if policy not in get_args(Policy):
            raise ValueError(f"inactive policy is {policy!r}; allowed: {', '.join(get_args(Policy))}")
        if not branches:
            raise ValueError("there is no branch to watch; a model without branches needs no policy")
        check_disjoint({**branches, TRUNK: trunk} if trunk else branches)
        self.branches = {name: list(parameters) for name, parameters in branches.items()}
        self.trunk = list(trunk)
        self.policy = policy
        self._factor = TINY if policy == "tiny" else 0.0
        self._adds_dummy = policy in ("zero", "tiny") or (policy == "skip" and anchored)
        self._current: frozenset[str] | None = None
        self._seen: frozenset[str] = frozenset()
        self.dummy_loss: torch.Tensor | None = None  # what the last forward added, for the log

    def watch(self, model: nn.Module) -> RemovableHandle:
        """Adds the dummy to what `model` returns: a loss, a NamedTuple or a mapping with `loss`.

        `model` is the module that DDP wraps, not the wrapper: a dummy outside DDP's forward makes it raise "marked
        as ready twice" with find_unused_parameters. First of the hooks, so that FSDP's own see the final loss.
        """
        return model.register_forward_hook(self._anchor, prepend=True)

    def see(self, present: Iterable[str]) -> None:
        """What the coming forward holds; host knowledge, never read from a tensor."""
        current = frozenset(present)
        if unknown := current - set(self.branches):
            raise ValueError(
                f"the batch holds {', '.join(sorted(unknown))}, the model has branches for "
                f"{', '.join(self.branches)} only; enable the modality or leave its samples out"
            )
        self._current = current
        self._seen |= current

    def dummy(self, present: Iterable[str]) -> torch.Tensor:
        """0 (or 1e-7) times the sum of all parameters that a batch of `present` does not reach: float32 0-d.

        Its gradient is the factor itself, in every element; under `skip` there is none, and none is made to be taken
        away again. Inf or NaN in an absent branch comes out as NaN: wanted.
        """
        absent = self._parameters_without(frozenset(present))
        if not absent:
            anyone = next(parameter for parameters in self.branches.values() for parameter in parameters)
            return torch.zeros((), device=anyone.device)
        if self.policy == "skip":
            return _Touched.apply(*absent)
        return _sum(absent) * self._factor  # so the sums' backward is an expanded scalar, not a product per weight

    def drop(self, anyone: Callable[[Activity], Activity] | None = None) -> frozenset[str]:
        """Ends the step: under `skip` the gradients of what no rank has used become None, so no optimizer touches it.

        anyone: maximum over ranks of {modality: 0.0 or 1.0}, called by every rank; None where the ranks are known to
        hold the same modalities. Returns the modalities that were absent everywhere, under every policy: for labels.
        """
        activity: Activity = {name: float(name in self._seen) for name in self.branches}
        if anyone is not None:
            activity = anyone(activity)
        present = frozenset(name for name, active in activity.items() if active > 0)
        if self.policy == "skip":
            for parameter in self._parameters_without(present):
                parameter.grad = None
        self._current, self._seen = None, frozenset()
        return frozenset(self.branches) - present

    def _parameters_without(self, present: frozenset[str]) -> list[nn.Parameter]:
        """The parameters that a batch of `present` does not reach, in the order of the branches."""
        absent = [p for name, parameters in self.branches.items() if name not in present for p in parameters]
        return absent if present else absent + self.trunk

    def _anchor(self, model: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        """The forward hook; evaluation passes through."""
        if not (self._adds_dummy and torch.is_grad_enabled()):
            return output
        assert self._current is not None, "see(modalities) comes before each forward"
        # Of this forward alone, not of the union: DDP waits in every backward that it reduces.
        value = self.dummy(self._current)
        self.dummy_loss = value.detach()
        match output:
            case torch.Tensor():
                return output + value
            case MutableMapping():
                output["loss"] = output["loss"] + value
                return output
        return output._replace(loss=output.loss + value)


class _Touched(torch.autograd.Function):
    """0 times the sum of parameters, whose backward reaches them and brings nothing.

    DDP counts a parameter as ready when its hook runs, also without a gradient: it zeroes the parameter's place in its
    bucket. A gradient of zeros would cost 40 MB for 10 million absent weights, in every step, and more time than the
    rest of the dummy.
    """

    @staticmethod
    def forward(ctx: Any, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.num_parameters = len(parameters)
        return _sum(parameters) * 0.0

    @staticmethod
    def backward(ctx: Any, *gradient: torch.Tensor) -> tuple[None, ...]:
        return (None,) * int(ctx.num_parameters)


def _sum(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of all their elements: float32 0-d."""
    return torch.stack([parameter.sum(dtype=torch.float32) for parameter in parameters]).sum()


def check_disjoint(branches: Branches) -> None:
    """Raises ValueError when a branch is empty or a parameter stands in two lists, or twice in one."""
    owners: dict[int, str] = {}
    for name, parameters in branches.items():
        if not parameters:
            raise ValueError(f"branch {name} has no parameters; leave the modality out where the model has none for it")
        for parameter in parameters:
            other = owners.setdefault(id(parameter), name)
            if other != name:
                raise ValueError(
                    f"a parameter of shape {list(parameter.shape)} is in the branches {other} and {name}; "
                    "what two modalities use is shared and belongs to no branch"
                )
        if len({id(parameter) for parameter in parameters}) < len(parameters):
            raise ValueError(f"branch {name} lists a parameter twice")


def unowned(
    model: nn.Module, loss_of: Callable[[Any], torch.Tensor], batches: Mapping[str, Any], branches: Branches
) -> dict[str, list[str]]:
    """Names of parameters that one modality alone reaches though its branch does not list them, by modality.

    batches: one of each modality, and `text` or the like for rows without any; loss_of(batch) calls the model. A
    parameter is reached when its gradient has an element other than 0. Leaves no gradient behind. Raises ValueError
    when a batch reaches the branch of another modality.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    reached: dict[str, set[nn.Parameter]] = {}
    for modality, batch in batches.items():
        model.zero_grad(set_to_none=True)
        loss_of(batch).backward()
        reached[modality] = {p for p in names if p.grad is not None and bool(p.grad.count_nonzero())}
    model.zero_grad(set_to_none=True)
    for modality, parameters in branches.items():
        for other in (name for name in reached if name != modality):
            if wrong := [names[p] for p in parameters if p in reached[other]]:
                raise ValueError(f"branch {modality} lists {', '.join(wrong)}, which a batch of {other} reaches, too")
    found: dict[str, list[str]] = {}
    for modality in reached.keys() & branches.keys() if len(reached) > 1 else ():
        elsewhere = set[nn.Parameter]().union(*(reached[other] for other in reached.keys() - {modality}))
        only = reached[modality] - elsewhere - set(branches[modality])
        if only:
            found[modality] = [name for parameter, name in names.items() if parameter in only]
    return found


def predicted_drift(
    policy: Policy,
    *,
    learning_rate: float,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    weight_std: float = 0.02,
    num_steps: int = 1000,
) -> float:
    """How far `num_steps` of AdamW move a never-trained, always absent branch, in units of its weights' std.

    A constant gradient g moves every weight lr g / (g + eps) a step, the same way: Adam does not know scale. Decay
    takes lr x weight_decay of the weight. Clipping, which scales g, can only lessen it; a history of real gradients s
    delays it until sqrt(v) = s exp(-k / 2000) has fallen to g (beta2 0.999).
    """
    if policy in ("skip", "find_unused"):
        return 0.0
    kept = (1 - learning_rate * weight_decay) ** num_steps
    if policy == "zero":
        return 1 - kept
    per_step = learning_rate * TINY / (TINY + eps)
    # w_k = kept w_0 - per_step (1 + a + ... + a^(k-1)), a = 1 - lr x decay; mean square over w_0 of weight_std.
    walked = per_step * (num_steps if kept == 1 else (1 - kept) / (learning_rate * weight_decay))
    return float(((1 - kept) ** 2 + (walked / weight_std) ** 2) ** 0.5)


def drift_warning(policy: Policy, *, learning_rate: float, eps: float = 1e-8, weight_decay: float = 0.0) -> str:
    """The line that a run with `tiny` or `zero` prints at its start; empty for policies that move nothing."""
    drift = predicted_drift(policy, learning_rate=learning_rate, eps=eps, weight_decay=weight_decay)
    match policy:
        case "tiny":
            step = learning_rate * TINY / (TINY + eps)
            return (
                f"inactive policy tiny: a never-trained absent branch moves {step:.3g} a step in every weight, "
                f"{drift:.3g} times its norm (std 0.02) in 1,000 steps at lr {learning_rate:g}; skip moves it 0"
            )
        case "zero":
            return (
                f"inactive policy zero: decay takes {100 * drift:.2g} % of an absent branch in 1,000 steps at lr "
                f"{learning_rate:g}, and left-over momentum moves it for about 50 steps; skip moves it 0"
            )
    return ""
