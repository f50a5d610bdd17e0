"""Measures the gradient, clips it, and says on the device whether it may be applied.

The norm is taken where it means something: after the reduction over ranks, before the clip, before zero_grad.
(The reports measured after zero_grad and logged 0 for weeks.)
"""

from collections.abc import Sequence

import torch

from oct_foundation.shares import is_split, shares, sum_over_shares


class GradientGuard:
    """Clips to `max_norm` (None: measures only) and keeps, as 0-d float32 tensors on `device`:

    `norm` before the clip; `finite`, 1.0 where every gradient was finite, else 0.0; `skipped` and `skipped_in_a_row`,
    how many updates were not applied. They exist before the first step, so that its XLA program is everyone's.
    measured, norms: the parameters that had a gradient in the last update, and the norm of each, float32 [P].
    """

    def __init__(self, max_norm: float | None, device: torch.device | str = "cpu") -> None:
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"clip norm must be above 0 or null (measure only); found {max_norm}")
        self.max_norm = max_norm
        self.norm = torch.zeros((), device=device)
        self.finite = torch.ones((), device=device)
        self.skipped = torch.zeros((), device=device)
        self.skipped_in_a_row = torch.zeros((), device=device)
        self.measured: list[torch.nn.Parameter] = []
        self.norms = torch.zeros(0, device=device)

    def metrics(self) -> dict[str, torch.Tensor]:
        """What the run logs, by name; values of this moment, not views of the counters."""
        return {
            "grad_norm": self.norm,
            "skipped_updates": self.skipped.clone(),
            "skipped_in_a_row": self.skipped_in_a_row.clone(),
        }

    @torch.no_grad()
    def measure_and_clip(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Global L2 norm over all gradients (fp32), then scales them in place by min(1, max_norm / norm).

        A non-finite norm scales nothing: 0 x NaN is NaN, so the update itself must be skipped. Of gradients in shares
        the norm is the whole one, the same on all ranks.
        """
        self.measured = [parameter for parameter in parameters if parameter.grad is not None]
        whole = [parameter.grad for parameter in self.measured if parameter.grad is not None]
        assert whole, "no parameter has a gradient: backward has not run, or zero_grad came first"
        gradients = shares(whole)
        on_xla = gradients[0].device.type == "xla"  # no foreach kernels there
        norms = [torch.linalg.vector_norm(g) for g in gradients] if on_xla else torch._foreach_norm(gradients, 2)
        self.norms = torch.stack(list(norms)).float()
        if is_split(whole[0]):
            self.norms = sum_over_shares(self.norms.square(), whole[0]).sqrt()
        self.norm = torch.linalg.vector_norm(self.norms)
        self.finite = torch.isfinite(self.norm).to(torch.float32)
        self.skipped.add_(1 - self.finite)
        self.skipped_in_a_row.add_(1).mul_(1 - self.finite)
        if self.max_norm is None:
            return
        factor = torch.where(self.finite > 0, torch.clamp(self.max_norm / (self.norm + 1e-6), max=1.0), 1.0)
        if on_xla:
            for gradient in gradients:
                gradient.mul_(factor)
        else:
            torch._foreach_mul_(gradients, factor)
