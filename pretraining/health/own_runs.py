"""metrics.jsonl and checkpoints of a run folder -> the runs that are in it; more than one is named, never averaged."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from oct_foundation.diagnostics.readings import Finding, readings_of
from pretraining.health.sections import unreadable
from pretraining.report.gather import Row, RunRecord

_RUN_ID = re.compile(r"[0-9a-f]{12}")


def config_hash(config: Mapping[str, Any]) -> str:
    """12 hex digits of a configuration, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:12]


def split_rows(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each run: steps of one never fall, since a resumed run puts later rows aside."""
    runs: list[list[Row]] = []
    for row in rows:
        if not runs or row["step"] < runs[-1][-1]["step"]:
            runs.append([])
        runs[-1].append(row)
    return runs


def runs_of(run: RunRecord) -> list[RunRecord]:
    """A record for each run in the folder's metrics, oldest first; one record at least."""
    parts = split_rows(run.rows)
    if len(parts) < 2:
        return [run]
    return [replace(run, rows=rows, readings=readings_of(rows)) for rows in parts]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whose a checkpoint is, by its manifest."""

    run: str
    config: str


def identities(run: RunRecord) -> dict[Identity, list[int]]:
    """Run id and hash of the settings that must not change, with the steps of the checkpoints that have them."""
    found: dict[Identity, list[int]] = {}
    for manifest in run.checkpoints:
        facts = manifest.get("facts")
        config = facts.get("config") if isinstance(facts, Mapping) else None
        identity = Identity(
            run=str(manifest.get("run", "")), config=_fixed_hash(config) if isinstance(config, Mapping) else ""
        )
        found.setdefault(identity, []).append(manifest["step"])
    return found


def mixed(run: RunRecord, parts: Sequence[RunRecord]) -> Iterator[Finding]:
    """Findings on a folder that holds more than one run."""
    if len(parts) > 1:
        ends = ", ".join(f"{part.rows[0]['step']:.0f} to {part.rows[-1]['step']:.0f}" for part in parts)
        yield two_runs(f"metrics.jsonl holds {len(parts)} runs, by its steps: {ends}; the last one is judged")
    whose = identities(run)
    if run.run_id and not _RUN_ID.fullmatch(run.run_id):
        yield unreadable("run_id", "it does not hold 12 hex digits")
    elif run.run_id:
        for other in sorted({identity.run for identity in whose} - {run.run_id}):
            yield two_runs(f"Checkpoints are of run {other}, the folder is of run {run.run_id}")
    if len(hashes := {identity.config for identity in whose if identity.config}) > 1:
        steps = "; ".join(f"{one.config}: steps {', '.join(map(str, at))}" for one, at in whose.items())
        yield two_runs(f"Checkpoints have {len(hashes)} different task, model or loss settings ({steps})")


def two_runs(evidence: str) -> Finding:
    """Named as a warning: figures of two runs in one table have told a story that neither of them has."""
    return Finding(
        name="two_runs",
        severity="warning",
        step=0,
        evidence=f"{evidence}.",
        remedy="Read each run's table alone. Give every run an output_dir of its own.",
    )


def _fixed_hash(config: Mapping[str, Any]) -> str:
    """Of what no resume may change."""
    return config_hash({name: config.get(name) for name in ("task", "seed", "model", "loss", "mask")})
