"""The largest per-core batch that fits a slice, and the cheapest remat for one that does not, by few compilations.

What a step takes of HBM grows almost linearly with the batch: two points give a line, the line a guess, and only a
compiled guess counts. Recomputing blocks (train.remat) is asked about only where the configured batch needs it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from oct_foundation.models.remat import REMATS, Remat
from oct_foundation.preflight.roofline import usable_hbm_bytes
from pretraining.preflight.estimate import Estimate
from pretraining.preflight.run import Request, estimate
from pretraining.tasks.build import build_objective

# Each takes a minute or two at [64, 384, 384].
MAX_COMPILED = 6
MAX_BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class RematAdvice:
    """The cheapest setting under which `batch` fits, None where none does; tried: setting -> bytes, None where refused.

    extra: operations that the setting adds, as a share of the model's.
    """

    setting: Remat | None
    batch: int
    tried: dict[Remat, int | None]
    extra: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "setting": self.setting,
            "per_core_batch_size": self.batch,
            "extra_flops_share": self.extra,
            "hbm_total_bytes_by_setting": dict(self.tried),
        }


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The largest batch seen to fit without remat, 0 where none did; tried: batch -> bytes, None where refused.

    remat: for the configured batch, or for a batch of 1 where no setting is enough for that.
    """

    batch: int
    tried: dict[int, int | None]
    exact: bool
    remat: RematAdvice
    text: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "per_core_batch_size": self.batch,
            "exact": self.exact,
            "hbm_total_bytes_by_batch": {str(batch): found for batch, found in sorted(self.tried.items())},
            "remat": self.remat.to_dict(),
        }


def suggest(request: Request, found: Estimate) -> Advice:
    """Compiles single micro-steps of other batches and settings; `found` is the estimate of the configuration."""
    chips, config = found.topology.num_chips, found.config

    def measure(batch: int, remat: Remat) -> int | None:
        step = estimate(_with_batch(request, batch, chips, remat), validate=False)
        return step.hbm_total_bytes if step.compiles else None

    usable = usable_hbm_bytes(found.topology)
    largest, tried = largest_that_fits(lambda batch: measure(batch, "none"), usable, max_measured=MAX_COMPILED)
    exact = largest == MAX_BATCH or largest + 1 in tried
    setting, batch, sizes = remat_that_fits(measure, usable, wanted=config.batch.per_core_batch_size, tried=tried)
    objective = build_objective(config)
    extra = 0.0 if setting is None else objective.remat_flops(setting, found.kind) / objective.sample_flops(found.kind)
    remat = RematAdvice(setting=setting, batch=batch, tried=sizes, extra=extra)
    text = f"{_batch_advice(found, largest, tried, exact)} {_remat_advice(remat, largest)}"
    return Advice(batch=largest, tried=tried, exact=exact, remat=remat, text=text)


def _with_batch(request: Request, batch: int, chips: int, remat: Remat) -> Request:
    """The same configuration with that batch on each chip, that setting, and one micro-step."""
    sizes = (f"batch.per_core_batch_size={batch}", f"batch.global_batch_size={batch * chips}")
    overrides = (*request.overrides, *sizes, "batch.grad_accum_steps=1", f"train.remat={remat}")
    keep = request.keep / f"batch-{batch}-remat-{remat}" if request.keep else None
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
        if _within(total, usable):
            fits = max(fits, guess)
        else:
            fails = min(fails, guess)
        guess = _next_guess(tried, usable, fits, fails)
    return fits, tried


def _within(total: int | None, usable: int) -> bool:
    return total is not None and total <= usable


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


def remat_that_fits(
    measure: Callable[[int, Remat], int | None], usable: int, *, wanted: int, tried: dict[int, int | None]
) -> tuple[Remat | None, int, dict[Remat, int | None]]:
    """The cheapest setting under which batch `wanted` fits, the batch it is for, and what was measured of that batch.

    tried: batches without remat, as `largest_that_fits` gives them; a larger batch is taken to need more. Where no
    setting is enough for `wanted` and no batch fits without one, a batch of 1 is asked about.
    """
    fitting = [batch for batch, total in tried.items() if _within(total, usable)]
    if any(batch >= wanted for batch in fitting):
        return "none", wanted, {}
    batch, sizes = wanted, dict[Remat, int | None]()
    for batch in (wanted,) if fitting else dict.fromkeys((wanted, 1)):
        sizes = {}
        for setting in REMATS:  # from the cheapest on
            if setting == "none" and any(other <= batch for other in tried if other not in fitting):
                continue
            sizes[setting] = measure(batch, setting)
            if _within(sizes[setting], usable):
                return setting, batch, sizes
    return None, batch, sizes


def _batch_advice(found: Estimate, largest: int, tried: dict[int, int | None], exact: bool) -> str:
    """The batch to set, in words."""
    sizes = ", ".join(f"{batch}: {_told(total)}" for batch, total in sorted(tried.items()))
    if not largest:
        return f"No per-core batch fits {found.topology.name} without remat ({sizes})."
    chips, whole = found.topology.num_chips, found.config.batch.global_batch_size
    above = min((batch for batch in tried if batch > largest), default=MAX_BATCH + 1)
    bound = "the largest that fits" if exact else f"the largest seen to fit ({largest + 1} to {above - 1} not tried)"
    if largest == MAX_BATCH:
        bound = "the largest that is ever tried, and fits"
    dividing = [batch for batch in range(1, largest + 1) if whole % (batch * chips) == 0]
    keep = f"batch.per_core_batch_size={max(dividing)} keeps the global batch of {whole}. " if dividing else ""
    return (
        f"Per-core batch {largest} is {bound} on {found.topology.name} without remat (HBM by batch: {sizes}). {keep}"
        f"batch.per_core_batch_size={largest} goes with a global batch of {largest * chips} or a multiple of it: "
        f"another batch is another training, so choose its learning rate anew."
    )


def _remat_advice(remat: RematAdvice, largest: int) -> str:
    """The setting to choose, in words."""
    sizes = ", ".join(f"{setting}: {_told(total)}" for setting, total in remat.tried.items())
    match remat.setting:
        case "none":
            return f"A per-core batch of {remat.batch} needs no remat: train.remat=none costs no operations."
        case None:
            return f"No train.remat makes a per-core batch of {remat.batch} fit ({sizes})."
        case setting:
            cost = f"train.remat={setting} lets a per-core batch of {remat.batch} fit ({sizes})"
            cheaper = f"; a batch of {largest} with accumulation costs none" if largest else ""
            return f"{cost} and costs {remat.extra:.0%} more operations{cheaper}."


def _told(total: int | None) -> str:
    return "refused" if total is None else f"{total / 1e9:.2f} GB"
