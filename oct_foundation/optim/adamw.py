"""AdamW (arXiv 1711.05101) for a step that is one XLA graph and may have to be skipped on the device.

Two things that torch's own class does not do: its state exists before the first step (else steps 1 and 2 are two
graphs), and `step` leaves parameters and moments untouched where `guard.finite` is 0, without a look from the host.
CPU and CUDA run torch's fused kernel; XLA, which has none, traces the same formulas.
"""

from collections.abc import Callable, Iterable
from typing import Any, NotRequired, TypedDict

import torch

from oct_foundation.optim.clipping import GradientGuard
from oct_foundation.shares import share, shares

Scalar = float | torch.Tensor


class ParameterGroup(TypedDict):
    """Parameters that share whether weight decay applies to them, and what their learning rate is multiplied with.

    branch: a part of the model that whole steps may leave without a gradient; its updates are counted apart.
    """

    params: list[torch.nn.Parameter]
    decay: bool
    scale: NotRequired[float]
    branch: NotRequired[str | None]


class AdamW(torch.optim.Optimizer):
    """Decoupled weight decay Adam over `groups`; `guard` measures and clips just before each update.

    The guard runs as a step pre-hook, so that `xm.optimizer_step`, which reduces and then steps, measures the
    reduced gradient. `set_scalars` gives learning rate and weight decay before each step.
    """

    def __init__(
        self,
        groups: Iterable[ParameterGroup],
        *,
        guard: GradientGuard,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.betas, self.eps, self.guard = betas, eps, guard
        super().__init__([dict(group) for group in groups], {})
        self._learning_rate: Scalar = 0.0
        self._weight_decay: Scalar = 0.0
        self._create_state()
        self.register_step_pre_hook(lambda optimizer, args, kwargs: guard.measure_and_clip(self.parameters()))

    def parameters(self) -> list[torch.nn.Parameter]:
        """All parameters, in the order of the groups."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def set_scalars(self, learning_rate: Scalar, weight_decay: Scalar) -> None:
        """The values for the next step: numbers, or 0-d tensors on XLA, where a number would be part of the graph."""
        self._learning_rate, self._weight_decay = learning_rate, weight_decay

    def _create_state(self) -> None:
        """One step counter per device and branch for all parameters: 0-d tensors are not free on a TPU."""
        counters: dict[tuple[torch.device, str | None], torch.Tensor] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                key = (parameter.device, group.get("branch"))
                count = counters.setdefault(key, torch.zeros((), device=parameter.device))
                zeros = (torch.zeros_like(parameter) for _ in range(2))
                self.state[parameter] = dict(zip(("step", "exp_avg", "exp_avg_sq"), (count, *zeros), strict=True))

    def load_state_dict(
        self, state_dict: dict[str, Any], copy: Callable[[torch.Tensor, torch.Tensor], object] = torch.Tensor.copy_
    ) -> None:
        """Copies a saved state into the existing tensors; raises ValueError when it is of other parameters.

        copy(target, value): how; another one where `target` is a share of `value`.
        """
        saved = state_dict["state"]
        own = self.parameters()
        if len(saved) != len(own):
            raise ValueError(f"the saved optimizer has {len(saved)} parameters, this model {len(own)}")
        with torch.no_grad():
            for index, parameter in enumerate(own):
                for name, tensor in self.state[parameter].items():
                    if tensor.shape != saved[index][name].shape:
                        raise ValueError(
                            f"saved optimizer state {index}.{name} has shape {list(saved[index][name].shape)}, "
                            f"the model's parameter {list(tensor.shape)}: this checkpoint is of another model"
                        )
                    copy(tensor, saved[index][name])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient, unless `guard.finite` is 0."""
        counters: dict[int, torch.Tensor] = {}
        for group in self.param_groups:
            active = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not active:
                continue
            counters |= {id(count): count for count in (self.state[parameter]["step"] for parameter in active)}
            rate, weight_decay = self._scalars_of(group)
            if active[0].device.type == "xla":
                self._update_traced(active, rate, weight_decay)
            else:
                self._update_fused(active, float(rate), float(weight_decay))
        for count in counters.values():  # after all groups: they read the number of this update off them
            count.add_(self.guard.finite.to(count.device))

    def _scalars_of(self, group: dict[str, Any]) -> tuple[Scalar, Scalar]:
        """Learning rate and weight decay of a group at this step."""
        rate = self._learning_rate * group["scale"] if "scale" in group else self._learning_rate
        return rate, self._weight_decay if group["decay"] else 0.0

    def _update_fused(self, parameters: list[torch.nn.Parameter], rate: float, weight_decay: float) -> None:
        """Torch's fused kernel, the one that `torch.optim.AdamW(fused=True)` calls; it skips where found_inf is 1.

        It wants the number of this update, 1 for the first, while the state holds finished updates. It sees shares
        only, of which a small parameter leaves some ranks none.
        """
        parameters = [parameter for parameter in parameters if share(parameter).numel() > 0]
        if not parameters:
            return
        states = [self.state[parameter] for parameter in parameters]
        number = states[0]["step"] + 1
        torch._fused_adamw_(
            shares(parameters),
            shares(_gradient(parameter) for parameter in parameters),
            shares(state["exp_avg"] for state in states),
            shares(state["exp_avg_sq"] for state in states),
            [],
            [number] * len(states),
            lr=rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=weight_decay,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
            found_inf=1.0 - self.guard.finite,
        )

    def _update_traced(self, parameters: list[torch.nn.Parameter], rate: Scalar, weight_decay: Scalar) -> None:
        """The same formulas, tensor by tensor: XLA fuses each into one pass over memory."""
        beta1, beta2 = self.betas
        finite = self.guard.finite > 0
        number = self.state[parameters[0]]["step"] + 1
        correction1 = 1 - torch.pow(torch.full_like(number, beta1), number)
        correction2 = 1 - torch.pow(torch.full_like(number, beta2), number)
        for parameter in parameters:
            state, gradient = self.state[parameter], _gradient(parameter)
            exp_avg = state["exp_avg"] * beta1 + gradient * (1 - beta1)
            exp_avg_sq = state["exp_avg_sq"] * beta2 + gradient * gradient * (1 - beta2)
            denominator = (exp_avg_sq / correction2).sqrt() + self.eps
            decayed = parameter * (1 - rate * weight_decay)
            updated = decayed - rate * (exp_avg / correction1) / denominator
            for old, new in ((state["exp_avg"], exp_avg), (state["exp_avg_sq"], exp_avg_sq), (parameter, updated)):
                old.copy_(torch.where(finite, new, old))

    @torch.no_grad()
    def last_update(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """What the last step has added to `parameter`, out of the moments; zeros where it was skipped or is not ours.

        For readings, outside the step: no copy of the weights is kept for it. Meant for parameters that had a gradient
        in that step. Of a parameter in shares it is what this device's share has got.
        """
        group = next((group for group in self.param_groups if any(p is parameter for p in group["params"])), None)
        if group is None:
            return torch.zeros_like(share(parameter))
        state, (rate, decay) = self.state[parameter], self._scalars_of(group)
        exp_avg, exp_avg_sq = share(state["exp_avg"]), share(state["exp_avg_sq"])
        number = torch.clamp(state["step"], min=1)
        correction1, correction2 = (1 - torch.pow(torch.full_like(number, beta), number) for beta in self.betas)
        step = rate * (exp_avg / correction1) / ((exp_avg_sq / correction2).sqrt() + self.eps)
        shrink = rate * decay
        before = (share(parameter) + step) / (1 - shrink)
        happened = self.guard.finite * (state["step"] > 0)
        return -(step + shrink * before) * happened


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Of a parameter that has one."""
    assert parameter.grad is not None
    return parameter.grad
