"""What a health report is made of: sections of sentences and tables, verdicts, findings; and how grave all of it is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from oct_foundation.diagnostics.learned import Learned, ModalityVerdict
from oct_foundation.diagnostics.readings import Finding

NOT_RECORDED = "not recorded"
# Findings that say: numbers are broken, or a file is. All others weigh by their severity.
BROKEN = frozenset({"weights_not_finite", "optimizer_not_finite", "metrics_not_finite", "not_finite", "unreadable"})


class Gravity(IntEnum):
    """The exit code, for a scheduler to act on."""

    SOUND = 0
    WARNING = 1
    NOT_LEARNED_OR_DEFECT = 2
    BROKEN = 3


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a header; caption "" where the section's title says it."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """`name`: its id in the page and its key in the JSON."""

    name: str
    title: str
    lines: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HealthReport:
    """All that the three files say. subject: what was looked at; facts: plain values for programs."""

    subject: str
    headline: str
    sections: tuple[Section, ...]
    verdicts: tuple[ModalityVerdict, ...]
    findings: tuple[Finding, ...]
    gravity: Gravity
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Learned:
        """Of all modalities together."""
        return overall(self.verdicts)


def overall(verdicts: Sequence[ModalityVerdict]) -> Learned:
    """NOT LEARNED where one has not, LEARNED where all have, CANNOT TELL else."""
    said = {verdict.verdict for verdict in verdicts}
    if "NOT LEARNED" in said:
        return "NOT LEARNED"
    return "LEARNED" if said == {"LEARNED"} else "CANNOT TELL"


def gravity_of(verdicts: Sequence[ModalityVerdict], findings: Sequence[Finding], *, strict: bool = False) -> Gravity:
    """The worst of all; CANNOT TELL weighs nothing, with `strict` as much as a warning."""
    found = [Gravity.SOUND]
    for finding in findings:
        if finding.name in BROKEN and finding.severity == "alarm":
            found.append(Gravity.BROKEN)
        elif finding.severity != "info":
            found.append(Gravity.WARNING if finding.severity == "warning" else Gravity.NOT_LEARNED_OR_DEFECT)
    said = overall(verdicts)
    if said == "NOT LEARNED":
        found.append(Gravity.NOT_LEARNED_OR_DEFECT)
    if said == "CANNOT TELL" and strict:
        found.append(Gravity.WARNING)
    return max(found)


def unreadable(what: str, reason: str, step: int = 0) -> Finding:
    """A file that should be readable and is not."""
    return Finding(
        name="unreadable",
        severity="alarm",
        step=step,
        evidence=f"{what} cannot be read: {reason.rstrip('.')}.",
        remedy="Take another copy of it, or go back to an older checkpoint. What it held is not in this report.",
    )


def number(value: float | None, digits: int = 4) -> str:
    """`digits` digits; NaN and Inf by name; "not recorded" for None."""
    if value is None:
        return NOT_RECORDED
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Inf" if value > 0 else "-Inf")
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
    return f"{value:.{digits}g}"


def span(low: float, high: float) -> str:
    """An interval, or that there is none."""
    return "no interval" if math.isnan(low) or math.isnan(high) else f"{low:+.3f} to {high:+.3f}"


def duration(seconds: float) -> str:
    """For people."""
    for limit, unit, name in ((2 * 86400, 86400, "days"), (5400, 3600, "h"), (90, 60, "min")):
        if seconds >= limit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.3g} s"
