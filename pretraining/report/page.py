"""A run's record and its verdict -> the page, one HTML file that needs nothing but itself.

Equal records give equal bytes. The page holds ids of volumes and, where the run kept pictures, retinas: it stays beside
the data.
"""

import math
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from data_setup.errors import MEANING, REMEDY, Reason
from oct_foundation.diagnostics.findings import Finding
from oct_foundation.diagnostics.verdicts import Judgement
from pretraining.report.curves import Curve, draw, style_of
from pretraining.report.ending import ending_of
from pretraining.report.facts import facts_of
from pretraining.report.figures import Figure, sections
from pretraining.report.gather import RunRecord
from pretraining.report.pictures import show, similarity_gradient
from pretraining.report.probe_files import ProbeFile, newest_of_each
from pretraining.report.probe_table import ProbeGroup, groups_of
from pretraining.report.verdict import meaning_of

_TEMPLATE = "page.html.jinja"
_PHASES = {
    "step": "training",
    "data_wait": "waiting for data",
    "compile": "compiling",
    "checkpoint": "saving",
    "logging": "logging",
    "validation": "validation",
    "diagnostics": "readings of the network",
    "other": "other",
}


def write_page(run: RunRecord, judgement: Judgement, target: Path) -> None:
    """Writes the page to `target`, whole or not at all; raises OSError where it cannot."""
    page = render(run, judgement)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def render(run: RunRecord, judgement: Judgement) -> str:
    """The page as text."""
    notes = list(run.notes)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("pretraining.report").joinpath(_TEMPLATE).read_text(encoding="utf-8"))
    colour, meaning = meaning_of(run, judgement.verdict)
    ending = ending_of(run)
    pictures = show(run.pictures, notes)
    return template.render(
        name=run.setting("name") or "unnamed run",
        run_id=run.run_id,
        verdict=judgement.verdict,
        colour=colour,
        meaning=meaning,
        reasons=judgement.reasons,
        findings=_findings(judgement.findings),
        num_readings=len(run.readings),
        ending=ending,
        tiles=_tiles(run, ending.step, ending.total),
        sections=[(section, [_drawn(figure) for figure in section.figures]) for section in sections(run)],
        pictures=pictures,
        similarity_gradient=similarity_gradient() if pictures else "",
        probes=_probes(run, notes),
        phases=_phases(run),
        update_seconds=_update_seconds(run),
        bad_files=_bad_files(run.bad_files),
        facts=facts_of(run),
        newest=_newest(run),
        config_yaml=run.config_yaml,
        log_tail=[] if ending.state == "finished" else run.log_tail,
        notes=notes,
    )


def _probes(run: RunRecord, notes: list[str]) -> list[tuple[ProbeFile, list[ProbeGroup]]]:
    """Of each data set the newest table, with its groups; what cannot be shown becomes a note."""
    found = []
    for file in newest_of_each(run.probes):
        groups, num_left_out = groups_of(file.rows)
        if num_left_out:
            notes.append(f"{num_left_out} rows of probes/{file.name} lack a part or a number and are left out.")
        if groups:
            found.append((file, groups))
    return found


def _drawn(figure: Figure) -> dict[str, Any]:
    """A figure with its SVG and its legend: colour, dashes, label, newest value of each curve."""
    legend = []
    for place, curve in enumerate(figure.curves):
        colour, dashes = style_of(place)
        legend.append(
            {
                "colour": colour,
                "dashes": " ".join(f"{length:g}" for length in dashes),
                "label": curve.label,
                "newest": short(curve.points[-1][1]),
                "not_finite": sum(not math.isfinite(value) for _, value in curve.points),
                "num_points": len(curve.points),
            }
        )
    svg = draw(figure.name, figure.curves, figure.axis)
    return {
        "figure": figure,
        "level": figure.axis.level_label,
        "svg": svg,
        "legend": legend,
        "spoken": _spoken(figure.curves),
    }


def _spoken(curves: Sequence[Curve]) -> str:
    """The figure for who cannot see it."""
    ends = [f"{curve.label} from {short(curve.points[0][1])} to {short(curve.points[-1][1])}" for curve in curves]
    return "; ".join(ends)


def short(value: float) -> str:
    """Three digits, and no more places than a reader wants: 0.0314, 12.3, 1,240, 1.2e-07."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def _tiles(run: RunRecord, step: int, total: int | None) -> list[tuple[str, str]]:
    """The four numbers to see first: value, what it is."""
    ratio, spread = run.series("diag/pos_ratio"), run.series("diag/pooled_std")
    epochs = run.series("train/epoch")
    relative = short(spread[-1][1] / spread[0][1]) if spread and spread[0][1] else "–"
    return [
        (f"{step:,}", f"updates done, of {total:,}" if total else "updates done"),
        (short(epochs[-1][1]) if epochs else "–", "times through the data"),
        (short(ratio[-1][1]) if ratio else "–", "error beside the average scan; good is well below 1"),
        (relative, "spread between scans beside the start; bad is a third or less"),
    ]


def _findings(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Gravest first, then the newest."""
    order = {"alarm": 0, "warning": 1}
    ranked = sorted(findings, key=lambda finding: (order.get(str(finding.severity), 2), -finding.step, finding.name))
    return [{"finding": finding, "name": finding.name.replace("_", " ")} for finding in ranked]


def _phases(run: RunRecord) -> list[tuple[str, float, float]]:
    """Where the time of the last start went: phase, seconds, share; nothing before the end of a run."""
    spent = (run.summary or {}).get("wall_seconds")
    if not isinstance(spent, Mapping):
        return []
    seconds = {
        name: float(value) for name, value in spent.items() if isinstance(value, int | float) and name != "total"
    }
    total = sum(seconds.values())
    if total <= 0:
        return []
    known = [name for name in _PHASES if name in seconds]
    rest = sorted(seconds.keys() - set(known))
    return [(_PHASES.get(name, name.replace("_", " ")), seconds[name], seconds[name] / total) for name in known + rest]


def _update_seconds(run: RunRecord) -> float:
    """Seconds of all logged stretches of updates, from the rows alone."""
    total, before = 0.0, 0.0
    for step, seconds in run.series("train/seconds_per_step"):
        if math.isfinite(seconds) and step > before:
            total += seconds * (step - before)
        before = step
    return total


def _bad_files(refused: Mapping[str, int] | None) -> list[dict[str, Any]] | None:
    """Reasons, most frequent first, with what they mean and what helps; None where nobody knows."""
    if refused is None:
        return None
    table = []
    for code, count in sorted(refused.items(), key=lambda item: (-item[1], item[0])):
        known = Reason(code) if code in set(Reason) else None  # the run may be of a newer version
        meaning, remedy = (MEANING[known], REMEDY[known]) if known else ("", "")
        table.append({"reason": code.replace("_", " "), "count": count, "meaning": meaning, "remedy": remedy})
    return table


def _newest(run: RunRecord) -> list[tuple[str, str, str]]:
    """Every reading: name, first and newest value."""
    names = sorted({name for reading in run.readings for name in reading.values})
    held = {name: [reading.values[name] for reading in run.readings if name in reading.values] for name in names}
    return [(name, short(values[0]), short(values[-1])) for name, values in held.items()]
