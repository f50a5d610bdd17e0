"""A report -> health.md, health.json and health.html: the same sections three times, each file whole or not there."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from pretraining.health.sections import HealthReport
from pretraining.report.gather import without_secrets
from pretraining.run_folder import write_atomic

NAMES = ("health.md", "health.json", "health.html")
_COLOURS = {"LEARNED": "good", "NOT LEARNED": "bad", "CANNOT TELL": "open"}


def write_report(report: HealthReport, folder: Path) -> tuple[Path, ...]:
    """Writes the three files into `folder`; returns their paths. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = (as_markdown(report), as_json(report), as_html(report))
    paths = tuple(folder / name for name in NAMES)
    for path, text in zip(paths, texts, strict=True):
        write_atomic(path, text)
    return paths


def as_markdown(report: HealthReport) -> str:
    """Tables in the form that GitHub shows."""
    return _rendered("page.md.jinja", report, escape=False)


def as_html(report: HealthReport) -> str:
    """One page that loads nothing; everything is escaped."""
    return _rendered("page.html.jinja", report, escape=True)


def as_json(report: HealthReport) -> str:
    """Plain values; NaN and Inf, which JSON lacks, as text."""
    found = {
        "subject": report.subject,
        "verdict": report.verdict,
        "headline": report.headline,
        "exit_code": int(report.gravity),
        "severity": report.gravity.name.lower(),
        "facts": dict(report.facts),
        "modalities": [asdict(one) for one in report.verdicts],
        "findings": [asdict(one) for one in report.findings],
        "sections": {section.name: asdict(section) for section in report.sections},
    }
    return json.dumps(_plain(found), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _rendered(template: str, report: HealthReport, *, escape: bool) -> str:
    return _template(template, escape).render(report=report, colours=_COLOURS, gravity=int(report.gravity))


@cache
def _template(name: str, escape: bool) -> Template:
    environment = Environment(autoescape=escape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = _cell
    environment.filters["safe_line"] = without_secrets
    return environment.from_string(files("pretraining.health").joinpath(name).read_text(encoding="utf-8"))


def _cell(text: str) -> str:
    """A cell of a Markdown table: no bar ends it, no line breaks it."""
    return text.replace("|", "\\|").replace("\n", " ") or " "


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
