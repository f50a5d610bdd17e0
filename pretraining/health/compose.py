"""Pieces -> a report: the sections that every kind of target has, in the order of the field's own report (G8)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oct_foundation.diagnostics.learned import ModalityVerdict
from oct_foundation.diagnostics.readings import Finding
from pretraining.health.sections import (
    BROKEN,
    NOT_RECORDED,
    Gravity,
    HealthReport,
    Section,
    Table,
    gravity_of,
    overall,
)

ORDER = (
    "status",
    "progress",
    "losses",
    "devices",
    "performance",
    "normalisation",
    "model",
    "changes",
    "warnings",
    "next_steps",
    "checkpoints",
    "completion",
    "components",
    "evaluation",
    "weights",
    "conclusion",
)
_RANK = {"alarm": 0, "warning": 1, "info": 2}
# What a component's status is computed from: findings by name. What is named nowhere is of the training.
_COMPONENTS: dict[str, frozenset[str]] = {
    "Losses": frozenset(
        {
            "flat_loss",
            "divergence",
            "over_fit",
            "metrics_not_finite",
            "not_finite",
            "dominance",
            "loss_jump",
            "loss_drop",
        }
    ),
    "Validation": frozenset({"partial_validation", "series_out_of_step", "best_is_not_best"}),
    "Checkpoints": frozenset({"best_final_gap", "checkpoint_mislabelled", "no_checkpoint"}),
    "Files": frozenset({"unreadable", "file_missing", "torn_lines"}),
    "Learning rate and updates": frozenset({"rate_not_as_planned", "skipped_updates"}),
    "Devices": frozenset({"device_hot", "device_memory_full"}),
    "Identity": frozenset({"two_runs"}),
}
_MEANING = {
    Gravity.SOUND: "Nothing was found that speaks against this run.",
    Gravity.WARNING: "Something deserves a look before more time is spent.",
    Gravity.NOT_LEARNED_OR_DEFECT: "It has not learned, or has a defect: do not use it as it is.",
    Gravity.BROKEN: "Numbers are NaN or Inf, or a file cannot be read: do not go on from it.",
}


@dataclass(kw_only=True)
class Draft:
    """What the kinds of targets fill in. weight_findings are also among the findings; unchecked: components that nobody
    could look at.
    """

    subject: str
    sections: list[Section] = field(default_factory=list)
    verdicts: list[ModalityVerdict] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    weight_findings: list[Finding] = field(default_factory=list)
    unchecked: set[str] = field(default_factory=set)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, title: str, *lines: str, tables: Sequence[Table] = ()) -> None:
        """A section; its place follows from its name."""
        self.sections.append(Section(name=name, title=title, lines=lines, tables=tuple(tables)))


def finished(draft: Draft, *, strict: bool) -> HealthReport:
    """Adds what follows from the findings, and puts sections in order."""
    findings = _in_order([*draft.findings, *draft.weight_findings])
    gravity = gravity_of(draft.verdicts, findings, strict=strict)
    verdict = overall(draft.verdicts)
    headline = _headline(verdict, draft.verdicts, findings)
    draft.add("warnings", "Warnings and findings", *_told(findings))
    draft.add("next_steps", "Next steps", *_next_steps(findings, draft.verdicts))
    draft.add("components", "Components", tables=[_components(draft)])
    draft.add(
        "conclusion",
        "Conclusion",
        f"{headline}",
        f"{_MEANING[gravity]} Exit code {int(gravity)}.",
    )
    present = {section.name: section for section in draft.sections}
    for name in ORDER:
        if name not in present:
            title = name.replace("_", " ").capitalize()
            present[name] = Section(name=name, title=title, lines=(f"{title}: {NOT_RECORDED}.",))
    return HealthReport(
        subject=draft.subject,
        headline=headline,
        sections=tuple(present[name] for name in ORDER),
        verdicts=tuple(draft.verdicts),
        findings=tuple(findings),
        gravity=gravity,
        facts=draft.facts,
    )


def notes_as_findings(notes: Sequence[str]) -> list[Finding]:
    """What could not be read of a run folder; data that are not prepared yet, or lie elsewhere, are no defect."""
    found = []
    for note in notes:
        missing = "is missing" in note or "prepared/" in note
        found.append(
            Finding(
                name="file_missing" if missing else "unreadable",
                severity="warning" if missing else "alarm",
                step=0,
                evidence=note,
                remedy="Take it from another copy of the folder, if there is one; this report says nothing of it.",
            )
        )
    return found


def _in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Broken ones first, then by severity; equal ones once."""
    unique = {(one.name, one.evidence): one for one in findings}
    return sorted(unique.values(), key=lambda one: (one.name not in BROKEN, _RANK[one.severity]))


def _headline(verdict: str, verdicts: Sequence[ModalityVerdict], findings: Sequence[Finding]) -> str:
    by_modality = ", ".join(f"{one.name} {one.verdict}" for one in verdicts)
    counts: Mapping[str, int] = {
        level: sum(one.severity == level for one in findings) for level in ("alarm", "warning")
    }
    told = ", ".join(f"{count} {level}{'s' if count > 1 else ''}" for level, count in counts.items() if count)
    return f"{verdict} ({by_modality or 'no modality'}); {told or 'no warnings'}."


def _told(findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return ["No warnings."]
    return [f"{one.severity.upper()}, {one.name.replace('_', ' ')}: {one.evidence}" for one in findings]


def _next_steps(findings: Sequence[Finding], verdicts: Sequence[ModalityVerdict]) -> list[str]:
    steps = list(dict.fromkeys(one.remedy for one in findings if one.severity != "info"))
    of_names: dict[str, list[str]] = {}
    for one in verdicts:
        if one.verdict != "LEARNED":
            of_names.setdefault(_next_step(one), []).append(one.name)
    steps += [f"{', '.join(names)}: {step}" for step, names in of_names.items()]
    return steps or ["None follows from what was found."]


def _next_step(verdict: ModalityVerdict) -> str:
    """Of one that has not learned, or of which nobody can tell."""
    if verdict.trs_needed:
        return f"hold out about {verdict.trs_needed:,} TRs, which would decide it."
    if verdict.verdict == "CANNOT TELL":
        return f"nobody can tell: {verdict.reasons[-1] if verdict.reasons else NOT_RECORDED}"
    return (
        "not learned: see that inputs and targets belong together, in time too; then the learning rate, and whether "
        "the training was long enough."
    )


def _components(draft: Draft) -> Table:
    """component, status, notes: the status is the gravest finding's, never an opinion."""
    rows: list[tuple[str, ...]] = [
        (f"Learning: {one.name}", one.verdict, one.reasons[-1] if one.reasons else "–") for one in draft.verdicts
    ]
    named = frozenset().union(*_COMPONENTS.values())
    groups = {name: [one for one in draft.findings if one.name in names] for name, names in _COMPONENTS.items()}
    groups["Training"] = [one for one in draft.findings if one.name not in named]
    groups["Weights"] = draft.weight_findings
    for name, findings in groups.items():
        worst = min(findings, key=lambda one: _RANK[one.severity], default=None)
        if worst is not None:
            status = {"alarm": "DEFECT", "warning": "WARNING", "info": "ok"}[worst.severity]
            rows.append((name, status, worst.evidence))
        else:
            rows.append((name, NOT_RECORDED, "–") if name in draft.unchecked else (name, "ok", "no finding"))
    return Table(header=("component", "status", "notes"), rows=tuple(rows))
