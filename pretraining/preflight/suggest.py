"""The largest per-core batch that fits a slice, found by compiling as few steps as possible.

What a step takes of HBM grows almost linearly with the batch: two points give a line, the line a guess, and only a
compiled guess counts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from oct_foundation.preflight.roofline import usable_hbm_bytes
from pretraining.preflight.estimate import Estimate
from pretraining.preflight.run import Request, estimate

# Each takes a minute or two at [64, 384, 384].
MAX_COMPILED = 6
MAX_BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The largest batch that was seen to fit, 0 where none did; tried: batch -> bytes, None where refused."""

    batch: int
    tried: dict[int, int | None]
    exact: bool
    text: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "per_core_batch_size": self.batch,
            "exact": self.exact,
            "hbm_total_bytes_by_batch": {str(batch): found for batch, found in sorted(self.tried.items())},
            "remat": None,
        }


def suggest(request: Request, found: Estimate) -> Advice:
    """Compiles single micro-steps of larger and smaller batches; `found` is the estimate of the configuration."""
    chips = found.topology.num_chips

    def measure(batch: int) -> int | None:
        one = _with_batch(request, batch, chips)
        step = estimate(one, validate=False)
        return step.hbm_total_bytes if step.compiles else None

    usable = usable_hbm_bytes(found.topology)
    largest, tried = largest_that_fits(measure, usable, max_measured=MAX_COMPILED)
    exact = largest == MAX_BATCH or largest + 1 in tried
    text = _advice(found, largest, tried, exact)
    return Advice(batch=largest, tried=tried, exact=exact, text=text)


def _with_batch(request: Request, batch: int, chips: int) -> Request:
    """The same configuration with that batch on each chip, and one micro-step."""
    sizes = (f"batch.per_core_batch_size={batch}", f"batch.global_batch_size={batch * chips}")
    overrides = (*request.overrides, *sizes, "batch.grad_accum_steps=1")
    keep = request.keep / f"batch-{batch}" if request.keep else None
    return replace(request, overrides=overrides, keep=keep)


def largest_that_fits(
    measure: Callable[[int], int | None], usable: int, *, max_measured: int
) -> tuple[int, dict[int, int | None]]:
    """The largest batch with measure(batch) <= usable among those measured, 0 for none; and all that was measured.

    measure gives bytes, None where a batch is refused. Batches 1 and 2 give a line; where it meets `usable` the next
    is measured, and so on between the largest that fits and the smallest that does not.
    """
    tried: dict[int, int | None] = {}
    fits, fails = 0, MAX_BATCH + 1
    guess = 1
    while len(tried) < max_measured and fails - fits > 1:
        total = tried[guess] = measure(guess)
        if total is not None and total <= usable:
            fits = max(fits, guess)
        else:
            fails = min(fails, guess)
        guess = _next_guess(tried, usable, fits, fails)
    return fits, tried


def _next_guess(tried: dict[int, int | None], usable: int, fits: int, fails: int) -> int:
    """Strictly between `fits` and `fails`: where a line through two of the points meets `usable`, else the middle."""
    over = tried.get(fails)
    seen = sorted((batch, total) for batch, total in tried.items() if total is not None and batch <= fits)
    if fails <= MAX_BATCH:  # a failure is known: between it and the last that fits
        ends = [*seen[-1:], *([(fails, over)] if over is not None else [])]
        wanted = (fits + fails) // 2
    else:
        ends, wanted = seen[-2:], 2 * fits
    if len(ends) == 2 and (slope := (ends[1][1] - ends[0][1]) / (ends[1][0] - ends[0][0])) > 0:
        wanted = int(ends[0][0] + (usable - ends[0][1]) / slope)
    return min(max(wanted, fits + 1), max(fails - 1, fits + 1))


def _advice(found: Estimate, largest: int, tried: dict[int, int | None], exact: bool) -> str:
    """What to set, in words."""
    sizes = ", ".join(f"{batch}: {_told(total)}" for batch, total in sorted(tried.items()))
    remat = "There is no setting for rematerialisation in this version, so none was tried."
    if not largest:
        return f"No per-core batch fits {found.topology.name} ({sizes}). {remat}"
    chips, whole = found.topology.num_chips, found.config.batch.global_batch_size
    above = min((batch for batch in tried if batch > largest), default=MAX_BATCH + 1)
    bound = "the largest that fits" if exact else f"the largest seen to fit ({largest + 1} to {above - 1} not tried)"
    if largest == MAX_BATCH:
        bound = "the largest that is ever tried, and fits"
    dividing = [batch for batch in range(1, largest + 1) if whole % (batch * chips) == 0]
    keep = f"batch.per_core_batch_size={max(dividing)} keeps the global batch of {whole}. " if dividing else ""
    return (
        f"Per-core batch {largest} is {bound} on {found.topology.name} (HBM by batch: {sizes}). {keep}"
        f"batch.per_core_batch_size={largest} goes with a global batch of {largest * chips} or a multiple of it: "
        f"another batch is another training, so choose its learning rate anew. {remat}"
    )


def _told(total: int | None) -> str:
    return "refused" if total is None else f"{total / 1e9:.2f} GB"
