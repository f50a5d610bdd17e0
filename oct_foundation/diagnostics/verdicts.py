"""Readings -> one verdict on a run, with its reasons: LEARNING, NOT LEARNING, COLLAPSED or CANNOT TELL.

The loss is no witness: the smallest of nine toy runs belonged to a dead encoder (jepa.md, section 4). Witnesses are the
error over that of the average scan, the spread of features, whether weights move, and probes where there are any.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from oct_foundation.diagnostics.findings import find
from oct_foundation.diagnostics.readings import Course, Finding, Reading, Thresholds, shown

Verdict = Literal["LEARNING", "NOT LEARNING", "COLLAPSED", "CANNOT TELL"]

# Before this share of the run a probe that is behind the random-init encoder may still catch up (jepa.md, section 4).
_PROBES_COUNT_FROM = 0.25
_DEFAULT = Thresholds()


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdict, one sentence with numbers for each reason, and all findings of the last reading."""

    verdict: Verdict
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...]


def judge(
    readings: Sequence[Reading], thresholds: Thresholds = _DEFAULT, warmup_steps: int = 0, total_steps: int = 0
) -> Judgement:
    """The verdict on a run as far as its readings go; total_steps, the planned updates, 0 where nobody knows.

    In this order: standing still or not finite is NOT LEARNING; too few volumes or readings is CANNOT TELL; then the
    witnesses decide, and CANNOT TELL is said where they contradict each other.
    """
    findings = tuple(find(readings, thresholds, warmup_steps))
    course = Course.of(readings, thresholds, warmup_steps)
    probes = _probes(course, total_steps)

    def judged(verdict: Verdict, *reasons: str) -> Judgement:
        return Judgement(verdict=verdict, reasons=reasons, findings=findings)

    if standing := [item for item in findings if item.name in ("not_finite", "nothing_trains", "ema_frozen")]:
        return judged("NOT LEARNING", *(item.evidence for item in standing))
    if gaps := _gaps(course, warmup_steps):
        return judged("CANNOT TELL", *gaps)
    verdict, reasons = _weigh(course, findings, probes)
    return judged(verdict, *reasons, *probes.reasons)


@dataclass(frozen=True, kw_only=True)
class _Probes:
    """What probes say: `gains` against the random-init encoder, True, False, or None where they do not say it yet."""

    gains: bool | None = None
    reasons: tuple[str, ...] = ()


def _probes(course: Course, total_steps: int) -> _Probes:
    """The newest reading with scores of the same labels for both encoders; their means are compared.

    Scores that are behind do not count before a quarter of the run.
    """
    for reading in reversed(course.later):
        pairs = {
            label: (reading.values[name], reading.values[f"probe_init/{label}"])
            for name in reading.values
            if (label := name.removeprefix("probe/")) != name and f"probe_init/{label}" in reading.values
        }
        if not pairs:
            continue
        trained, untrained = (fmean(pair[index] for pair in pairs.values()) for index in (0, 1))
        gains: bool | None = trained - untrained > course.thresholds.probe_gain
        reason = (
            f"At step {reading.step:,} the mean score of probes ({', '.join(sorted(pairs))}) was {trained:.3g}, and "
            f"{untrained:.3g} on the encoder before training."
        )
        if not gains and reading.step < _PROBES_COUNT_FROM * total_steps:
            gains, reason = None, f"{reason} It is too early for this to count."
        return _Probes(gains=gains, reasons=(reason,))
    return _Probes()


def _gaps(course: Course, warmup_steps: int) -> tuple[str, ...]:
    """Why the record says too little, one reason each; empty where it suffices."""
    gaps = []
    least = course.thresholds.min_volumes
    volumes = course.last.values.get("num_volumes") if course.last else None
    if volumes is not None and volumes < least:
        gaps.append(f"Only {volumes:.0f} held-out volumes were looked at; {least} are the least that say something.")
    if course.last and course.last.step < course.thresholds.min_steps:
        gaps.append(f"Only {course.last.step:,} updates are done; before {course.thresholds.min_steps} none is judged.")
    if course.initial is None:
        gaps.append("The record has no reading at step 0, against which the spread of features is measured.")
    if len(course.later) < 2:
        after = f"after the warm-up of {warmup_steps:,} steps" if warmup_steps else "after step 0"
        gaps.append(f"The record has {len(course.later)} of the 2 readings {after} that a verdict needs.")
    elif missing := [name for name in ("pos_ratio", "pooled_std") if course.latest(name) is None]:
        gaps.append(f"The last two readings lack {' and '.join(missing)}.")
    elif course.scans_alike():
        gaps.append(
            f"All held-out scans have the same features, before training and at steps {course.steps()}: they may be "
            "copies of one scan, or empty."
        )
    return tuple(gaps)


def _weigh(course: Course, findings: Sequence[Finding], probes: _Probes) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict of prediction, spread, legibility and probes, where the record suffices."""
    prediction, legibility = _prediction(course), _legibility(course)
    spreads = course.relative("pooled_std")
    spread = (
        f"At steps {course.steps()} features of different scans lay {shown(spreads)} times as far apart as before "
        f"training (line: {course.thresholds.spread:.2g})."
        if spreads
        else "The spread of features has no measure: before training all held-out scans had the same."
    )
    reasons = (prediction.reason, spread, *([legibility.reason] if legibility.reason else []))
    if any(finding.name == "collapse" for finding in findings):
        if probes.gains:
            return "CANNOT TELL", (*reasons, "Yet its features serve probes better than those before training.")
        return "COLLAPSED", reasons
    if probes.gains is False:
        return "NOT LEARNING", (*reasons, "Its features serve probes no better than those before training.")
    if prediction.says is not False and (spreads is None or min(spreads) <= course.thresholds.spread):
        return "CANNOT TELL", (*reasons, "Prediction and spread do not say the same.")
    witnesses = {prediction.says, legibility.says, probes.gains} - {None}
    if witnesses == {True}:
        return "LEARNING", reasons
    if witnesses == {False}:
        return "NOT LEARNING", reasons
    if legibility.says and probes.gains is None:
        return "LEARNING", reasons  # a predictor that was taught nonsense may sit on an encoder that learned
    return "CANNOT TELL", (*reasons, "These witnesses contradict each other.")


@dataclass(frozen=True, kw_only=True)
class _Witness:
    """`says`: True for a run that learns, False for one that does not, None where it cannot say."""

    says: bool | None
    reason: str


def _prediction(course: Course) -> _Witness:
    """Does the predictor know what is special of a scan? Its cosine, without it the error beside the average scan."""
    limits = course.thresholds
    ratios = course.latest("pos_ratio") or ()
    error = (
        f"At steps {course.steps()} the error on hidden patches was {shown(ratios)} times that of showing the average "
        f"scan there (line: {limits.pos_ratio:g})"
    )
    if (cosines := course.latest("centred_cos")) is None:
        sides = {ratio < limits.pos_ratio for ratio in ratios}
        return _Witness(says=sides.pop() if len(sides) == 1 else None, reason=f"{error}.")
    reason = (
        f"{error}, and the likeness of predicted and true features, the average scan taken away, {shown(cosines)} "
        f"(line: {limits.centred_cos:g})."
    )
    return _Witness(says=fmean(cosines) >= limits.centred_cos, reason=reason)


def _legibility(course: Course) -> _Witness:
    """Can clearly more of a scan be read off its features than off those of the untrained network?

    Less says nothing: runs that gained lost up to a quarter of it.
    """
    limits = course.thresholds
    if (relative := course.relative("scan_r2")) is None or (course.initial_value("scan_r2") or 0) <= 0:
        return _Witness(says=None, reason="")
    reason = (
        f"Of what tells scans apart {shown(relative)} times as much could be read off their features as before "
        f"training (line: {limits.legible_more:g})."
    )
    return _Witness(says=True if fmean(relative) >= limits.legible_more else None, reason=reason)
