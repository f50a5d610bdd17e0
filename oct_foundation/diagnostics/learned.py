"""Held-out series -> LEARNED, NOT LEARNED or CANNOT TELL for one modality, with reasons, figures and TRs needed.

The rules of multimodal.md, 4.3. A report once called a run healthy whose correlation was .0013 on 24 TRs: a number says
nothing without its interval, its baseline and its ceiling, and where they are missing the verdict is CANNOT TELL.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy import stats

from oct_foundation.diagnostics.autocorrelated import MIN_TRS
from oct_foundation.diagnostics.noise_ceiling import Ceiling
from oct_foundation.diagnostics.skill import (
    TRAINING_MEAN,
    CategoricalSeries,
    Estimate,
    Measures,
    Series,
    measure,
    measure_categorical,
)
from oct_foundation.diagnostics.trs_needed import decided_after, for_shift_test, to_lie_above, to_lie_below

Learned = Literal["LEARNED", "NOT LEARNED", "CANNOT TELL"]

LEAST_TRS_OVER_TAU = 20
LARGEST_SHIFT_P = 0.025
_LEAST_SHIFTS = math.ceil(1 / LARGEST_SHIFT_P) - 1  # 39: the best of so few has a p of 1 / 40
# Upper bounds below these are no learning worth the name: of r, the larger of .05 and a tenth of the ceiling.
WORTHLESS_R, WORTHLESS_SHARE_OF_CEILING, WORTHLESS_SKILL = 0.05, 0.1, 0.01
# Deviation of one TR's correlation over 83,138 voxels where nothing is shared: noise as smooth as 14 mm, the widest of
# four (measured: .0031 white, .0112 at 6 mm, .0210 at 9 mm). At an autocorrelation of .5 the interval is sqrt(3) wider.
_WIDEST_TR_DEVIATION, _AUTOCORRELATION_FACTOR = 0.0351, math.sqrt(3)


@dataclass(frozen=True, kw_only=True)
class ModalityVerdict:
    """What one modality came to. figures: plain numbers and names, for tables and JSON; NaN bounds: no interval could
    be formed. trs_needed: held-out TRs that would decide, None where it is decided, or more TRs would not help.
    """

    name: str
    verdict: Learned
    reasons: tuple[str, ...]
    figures: Mapping[str, float | str] = field(default_factory=dict)
    trs_needed: int | None = None


def judge_series(name: str, series: Series, ceiling: Ceiling | None = None) -> ModalityVerdict:
    """A continuous modality, by 4.3. Something real but worthless, which both rules would have, is NOT LEARNED; so are
    predictions that are no numbers.
    """
    if broken := float(1 - np.isfinite(series.prediction).mean()):
        reason = f"{broken:.1%} of the predictions are NaN or Inf."
        return ModalityVerdict(name=name, verdict="NOT LEARNED", reasons=(reason,), figures={"not_finite": broken})
    found = measure(series)
    if found.constant_voxels == series.truth.shape[1]:
        reason = "The truth does not change over the held-out TRs: there is nothing to predict."
        return ModalityVerdict(name=name, verdict="CANNOT TELL", reasons=(reason,), figures={"fvu": found.fvu})
    worthless_r = max(WORTHLESS_R, WORTHLESS_SHARE_OF_CEILING * ceiling.best_r if ceiling else 0.0)
    missing = _missing(found, series)
    reasons: tuple[str, ...] = (_summary(found), _ceiling_says(found, ceiling))
    figures = _figures(found, ceiling)
    if too_low := _worthless({"r(time)": (found.r_time, worthless_r), "skill": (found.skill, WORTHLESS_SKILL)}):
        return ModalityVerdict(name=name, verdict="NOT LEARNED", reasons=(*reasons, *too_low), figures=figures)
    if not missing:
        reasons = (*reasons, *_beside(found, series))
        return ModalityVerdict(name=name, verdict="LEARNED", reasons=reasons, figures=figures)
    return ModalityVerdict(
        name=name,
        verdict="CANNOT TELL",
        reasons=(*reasons, *missing),
        figures=figures,
        trs_needed=_trs_needed(found, worthless_r, mendable=series.complete and series.leak_free),
    )


def judge_categorical(name: str, series: CategoricalSeries) -> ModalityVerdict:
    """A modality of codes, by skill alone: there is no correlation of categories. Otherwise as judge_series; pass the
    costs of the same model on shifted inputs as a baseline in place of the shift test.
    """
    if broken := float(1 - np.isfinite(series.cross_entropy).mean()):
        reason = f"The cross-entropy of {broken:.1%} of the TRs is NaN or Inf."
        return ModalityVerdict(name=name, verdict="NOT LEARNED", reasons=(reason,), figures={"not_finite": broken})
    skill, over = measure_categorical(series)
    bar = min(over, key=lambda other: over[other].value)
    lines = {"skill": skill, f"skill above {bar}": over[bar]}
    missing = (*_not_above_zero(lines), *_too_short(skill.num_trs, skill.trs_over_tau), *_faults(series))
    figures = _bounds("skill", skill) | _bounds("over_bar", over[bar]) | {"bar": bar, "num_trs": skill.num_trs}
    figures |= {"tau": skill.tau, "cross_entropy": float(series.cross_entropy.mean())}
    figures |= {"unigram": float(series.unigram.mean())}
    summary = (
        f"Cross-entropy {figures['cross_entropy']:.4g} against {figures['unigram']:.4g} of the training frequencies: "
        f"skill {skill} on {skill.num_trs} TRs (n/tau {skill.trs_over_tau:.0f})."
    )
    if too_low := _worthless({"skill": (skill, WORTHLESS_SKILL)}):
        return ModalityVerdict(name=name, verdict="NOT LEARNED", reasons=(summary, *too_low), figures=figures)
    if not missing:
        return ModalityVerdict(name=name, verdict="LEARNED", reasons=(summary,), figures=figures)
    mendable = series.complete and series.leak_free
    needed = decided_after(
        skill.num_trs,
        all_of=[*map(to_lie_above, lines.values()), LEAST_TRS_OVER_TAU * skill.tau] if mendable else [],
        one_of=[to_lie_below(skill, WORTHLESS_SKILL)],
    )
    return ModalityVerdict(
        name=name, verdict="CANNOT TELL", reasons=(summary, *missing), figures=figures, trs_needed=needed
    )


def judge_logged(
    name: str, r_mean: float, num_trs: int, num_trs_total: int, ceiling: Ceiling | None = None
) -> ModalityVerdict:
    """Only a logged mean of r(voxels) over num_trs of num_trs_total validation TRs exists, no series.

    The interval is the widest that four smoothnesses of noise gave, times sqrt(3) for autocorrelation. It can say NOT
    LEARNED, never LEARNED: there is no baseline and no test. Raises ValueError for num_trs below 1.
    """
    if num_trs < 1:
        raise ValueError(f"num_trs must be 1 or more; found {num_trs}")
    if not math.isfinite(r_mean):
        return ModalityVerdict(name=name, verdict="NOT LEARNED", reasons=("The logged r is NaN or Inf.",))
    half = stats.norm.ppf(0.975) * _WIDEST_TR_DEVIATION * _AUTOCORRELATION_FACTOR / math.sqrt(num_trs)
    high = r_mean + half
    line = max(WORTHLESS_R, WORTHLESS_SHARE_OF_CEILING * ceiling.best_r if ceiling else 0.0)
    figures: dict[str, float | str] = {"r_voxels": r_mean, "r_voxels_low": r_mean - half, "r_voxels_high": high}
    figures |= {"num_trs": num_trs, "num_trs_total": num_trs_total}
    reasons = [
        f"Only a logged mean exists: r(voxels) {r_mean:.4f} over {num_trs} TRs, at most {high:.3f} (95 %, the widest "
        "of four smoothnesses of noise in 83,138 voxels, autocorrelation .5).",
    ]
    if num_trs < num_trs_total:
        reasons.append(f"It comes from {num_trs} of {num_trs_total} validation TRs: not from all ranks.")
    if high < line:
        reasons.append(f"Its upper bound is below {line:.3g}.")
        return ModalityVerdict(name=name, verdict="NOT LEARNED", reasons=tuple(reasons), figures=figures)
    reasons.append("A mean without series has no baseline and no test of chance: it cannot show that this was learned.")
    needed = math.ceil(num_trs * (half / (line - r_mean)) ** 2) if r_mean < line else None
    return ModalityVerdict(name=name, verdict="CANNOT TELL", reasons=tuple(reasons), figures=figures, trs_needed=needed)


def judge_checkpoint(name: str) -> ModalityVerdict:
    """A checkpoint alone holds weights, and no held-out TR."""
    reason = "A checkpoint alone says nothing of held-out TRs; evaluate it, or give the folder of its run."
    return ModalityVerdict(name=name, verdict="CANNOT TELL", reasons=(reason,))


def judge_loss_only(name: str, loss: float) -> ModalityVerdict:
    """Only a loss was recorded, in its own unit."""
    reason = f"A loss of {loss:.4g} without what predict-the-mean would score: a constant may do better."
    return ModalityVerdict(name=name, verdict="CANNOT TELL", reasons=(reason,), figures={"loss": loss})


def _trs_needed(found: Measures, worthless_r: float, *, mendable: bool) -> int | None:
    """TRs that would decide a series; `mendable`: no fault stands in the way of LEARNED that TRs cannot mend."""
    num_trs = found.skill.num_trs
    long_enough = LEAST_TRS_OVER_TAU * num_trs / found.trs_over_tau
    to_learn = [to_lie_above(value) for value in (found.skill, found.r_time, found.over[found.bar])]
    to_learn += [long_enough, for_shift_test(found.shift_p, found.num_shifts, num_trs, LARGEST_SHIFT_P)]
    worthless = [to_lie_below(found.r_time, worthless_r), to_lie_below(found.skill, WORTHLESS_SKILL)]
    return decided_after(num_trs, all_of=to_learn if mendable else [], one_of=worthless)


def _missing(found: Measures, series: Series) -> tuple[str, ...]:
    """What LEARNED still lacks, a sentence each."""
    lines = {"skill": found.skill, "r(time)": found.r_time, f"skill above {found.bar}": found.over[found.bar]}
    missing = [*_not_above_zero(lines), *_too_short(found.skill.num_trs, found.trs_over_tau)]
    if found.num_shifts < _LEAST_SHIFTS:
        missing.append(
            f"The TRs leave room for {found.num_shifts} shifts in time; {_LEAST_SHIFTS} are the least that can show "
            "that chance does worse."
        )
    elif not found.shift_p <= LARGEST_SHIFT_P:
        missing.append(
            f"Of {found.num_shifts} predictions shifted in time, too many do as well (p {found.shift_p:.3f}, "
            f"at most {LARGEST_SHIFT_P})."
        )
    if found.over[found.bar].value <= 0:
        missing.append(
            f"On these TRs {found.bar} does as well or better: more of them alone would not make it LEARNED."
        )
    return (*missing, *_faults(series))


def _not_above_zero(lines: Mapping[str, Estimate]) -> list[str]:
    return [
        f"The interval of {what}, {value}, does not lie above 0." for what, value in lines.items() if not value.low > 0
    ]


def _too_short(num_trs: int, trs_over_tau: float) -> list[str]:
    if trs_over_tau >= LEAST_TRS_OVER_TAU and num_trs >= MIN_TRS:
        return []
    return [f"{num_trs} TRs count as {trs_over_tau:.0f} independent ones; {LEAST_TRS_OVER_TAU} are the least."]


def _faults(series: Series | CategoricalSeries) -> list[str]:
    faults = []
    if not series.complete:
        faults.append("Not all validation TRs of all ranks are in it.")
    if not series.leak_free:
        faults.append("Mean, variance or normalisation have seen validation TRs, or nobody knows.")
    return faults


def _worthless(lines: Mapping[str, tuple[Estimate, float]]) -> list[str]:
    return [
        f"{what} is at most {value.high:.3f}, below the {line:.3g} from which on there is something to speak of."
        for what, (value, line) in lines.items()
        if value.high < line
    ]


def _summary(found: Measures) -> str:
    return (
        f"Skill {found.skill} (FVU {found.fvu:.3f}, of the mean {found.fvu_of[TRAINING_MEAN]:.3f}), "
        f"r(time) {found.r_time}, r(voxels) {found.r_voxels} on {found.skill.num_trs} TRs "
        f"(n/tau {found.trs_over_tau:.0f}); skill above {found.bar}, the strongest naive predictor, "
        f"{found.over[found.bar]}; shift test p {found.shift_p:.3f}."
    )


def _ceiling_says(found: Measures, ceiling: Ceiling | None) -> str:
    if ceiling is None:
        return "No noise ceiling: the best that could be reached is not known."
    share = found.r_time.value / ceiling.best_r if ceiling.best_r > 0 else math.nan
    return f"r(time) is {share:.0%} of the noise ceiling {ceiling.best_r:.3f}."


def _beside(found: Measures, series: Series) -> list[str]:
    """Naive predictors that are no bar and do better: they see what the model does not."""
    return [
        f"{name}, which sees what the model does not, has FVU {found.fvu_of[name]:.3f}, the model {found.fvu:.3f}."
        for name in series.beside
        if found.fvu_of[name] < found.fvu
    ]


def _figures(found: Measures, ceiling: Ceiling | None) -> dict[str, float | str]:
    figures: dict[str, float | str] = {"fvu": found.fvu, "shift_p": found.shift_p, "bar": found.bar}
    figures |= {"num_trs": found.skill.num_trs, "constant_voxels": found.constant_voxels}
    figures |= {"tau": found.skill.tau, "truth_tau": found.truth_tau, "trs_over_tau": found.trs_over_tau}
    for name, value in (("skill", found.skill), ("r_time", found.r_time), ("r_voxels", found.r_voxels)):
        figures |= _bounds(name, value)
    figures |= _bounds("over_bar", found.over[found.bar])
    figures |= {f"fvu/{name}": value for name, value in found.fvu_of.items()}
    return figures | ({"ceiling_r": ceiling.best_r, "ceiling_fvu": ceiling.best_fvu} if ceiling else {})


def _bounds(name: str, value: Estimate) -> dict[str, float | str]:
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
