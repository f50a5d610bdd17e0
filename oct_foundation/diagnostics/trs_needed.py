"""An undecided verdict -> the number of held-out TRs that would decide it, if its estimates stayed what they are.

An interval narrows with the square root of the TRs. Its t quantile shrinks too as batches become more, which is left
out: the number is rather too large than too small. It is a plan for the next run, no promise.
"""

import math
from collections.abc import Iterable

from scipy import stats

from oct_foundation.diagnostics.autocorrelated import MIN_TRS, Estimate


def to_lie_above(value: Estimate, line: float = 0.0) -> float:
    """TRs after which the lower bound is above `line`; inf where the value itself is not, MIN_TRS without bounds."""
    return _after(value, value.value - line, without_bounds=MIN_TRS)


def to_lie_below(value: Estimate, line: float) -> float:
    """TRs after which the upper bound is below `line`; inf where the value itself is not, or has no bounds."""
    return _after(value, line - value.value, without_bounds=math.inf)


def for_shift_test(p: float, num_shifts: int, num_trs: int, largest_p: float) -> float:
    """TRs after which the shift test can pass: enough shifts, and a z that grows with the square root of the TRs."""
    if p <= largest_p:
        return num_trs
    shifts_needed = math.ceil(1 / largest_p) - 1
    if num_shifts < shifts_needed:
        return num_trs + shifts_needed - num_shifts
    z = float(stats.norm.isf(p))
    return num_trs * (float(stats.norm.isf(largest_p)) / z) ** 2 if z > 0 else math.inf


def decided_after(num_trs: int, all_of: Iterable[float], one_of: Iterable[float]) -> int | None:
    """TRs after which all of one list hold (LEARNED), or one of the other (NOT LEARNED); None where that is never.

    An empty `all_of` never holds: a leak is not mended by more TRs. The number is above num_trs, which did not decide.
    """
    least = min([max(all_of, default=math.inf), *one_of])
    return max(num_trs + 1, math.ceil(least)) if math.isfinite(least) else None


def _after(value: Estimate, distance: float, without_bounds: float) -> float:
    if math.isnan(value.half_width):
        return without_bounds
    return value.num_trs * (value.half_width / distance) ** 2 if distance > 0 else math.inf
