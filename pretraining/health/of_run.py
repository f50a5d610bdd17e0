"""A run folder of any task -> the draft of its report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oct_foundation.checkpoints.manifest import Manifest
from oct_foundation.checkpoints.store import StoreError
from oct_foundation.diagnostics.readings import Finding
from pretraining.health import best_and_final, checkpoints, course, facts, modalities, own_runs, pace
from pretraining.health.checkpoints import Stored
from pretraining.health.compose import Draft, notes_as_findings
from pretraining.health.film_evaluation import judge_series
from pretraining.health.losses import baseline_lines, epoch_of, merged, table_of
from pretraining.health.sections import NOT_RECORDED, Table, unreadable
from pretraining.report.ending import Ending, ending_of
from pretraining.report.gather import RunRecord, gather
from pretraining.report.verdict import judgement_of
from pretraining.run_folder import RunFolder
from pretraining.saved_run import open_run


def draft_of_run(folder: Path, peak_tflops: float | None) -> Draft:
    """Raises ValueError for what is no run folder."""
    whole = gather(folder)
    parts = own_runs.runs_of(whole)
    run, draft = parts[-1], Draft(subject=str(folder))
    task, ending = _task(run), ending_of(run)
    draft.findings += [*notes_as_findings(whole.notes), *_torn_lines(folder), *own_runs.mixed(whole, parts)]
    leak_free = _judge(draft, run, task, folder)
    best = best_and_final.of_run(run, task, ())
    stored = _stored(draft, run, folder, best.best_at if best else None)
    _status(draft, run, task, ending)
    draft.add("losses", "Losses", *baseline_lines(run, task), *_two_tables(parts), tables=_tables(parts, task))
    draft.findings += course.of_run(run, task, ending.total)
    draft.sections.append(pace.devices_section(folder, task, run, peak_tflops))
    draft.findings += pace.device_findings(folder)
    over = ending.state == "finished"
    draft.sections.append(pace.performance_section(folder, run, ending.step, ending.total, finished=over))
    draft.sections.append(facts.normalisation_section(run, task, leak_free))
    draft.sections.append(facts.model_section(run, task, stored.weighed))
    changes = [*_changes(whole, parts), *ending.details]
    draft.add("changes", "Changes and versions", *changes, tables=[facts.versions_table(run)])
    _checkpoints(draft, run, task, ending, stored)
    draft.sections.append(facts.weights_section(stored.weighed))
    draft.add("completion", "Completion", ending.headline)
    if not pace.device_uses(folder):
        draft.unchecked.add("Devices")
    if not stored.weighed:
        draft.unchecked |= {"Weights", *([] if stored.manifests else ["Checkpoints"])}
    return draft


def _task(run: RunRecord) -> str:
    """As configured; of a folder without configuration, by what it records."""
    if isinstance(found := run.setting("task"), str):
        return found
    names = {name for reading in run.readings for name in reading.values}
    if any(name.startswith("gain/") for name in names):
        return "multimodal"
    return "autoencoder" if any(name.startswith("verdict/") for name in names) else "vjepa"


def _judge(draft: Draft, run: RunRecord, task: str, folder: Path) -> bool | None:
    """Verdicts, with the section of the evaluation; whether statistics are free of validation TRs, None if unknown."""
    if task == "multimodal":
        draft.verdicts += modalities.of_answers(run)
    elif task == "autoencoder":
        return judge_series(draft, run, folder, note=_so_far(run))
    else:
        judgement = judgement_of(run)
        draft.verdicts += modalities.of_judgement(run, judgement)
        draft.findings += judgement.findings
    draft.sections.append(modalities.section_of(draft.verdicts, note=_so_far(run)))
    return None


def _so_far(run: RunRecord) -> list[str]:
    return [] if ending_of(run).state == "finished" else ["The run is not finished: this is what it says so far."]


def _stored(draft: Draft, run: RunRecord, folder: Path, best: int | None) -> Stored:
    if not (folder / "checkpoints").is_dir() and run.setting("checkpoint", "ckpt_dir") is None:
        return Stored(manifests=(), weighed=(), findings=())  # nobody knows where they are
    try:
        opened = open_run(str(folder))
        stored = checkpoints.look_into(opened.store, best)
    except (ValueError, StoreError, OSError) as error:
        draft.findings.append(unreadable("The place of checkpoints", str(error)))
        return Stored(manifests=(), weighed=(), findings=())
    draft.findings += stored.findings
    draft.weight_findings += [finding for one in stored.weighed for finding in one.examination.findings]
    return stored


def _status(draft: Draft, run: RunRecord, task: str, ending: Ending) -> None:
    done, planned = epoch_of(run, ending.step), epoch_of(run, ending.total) if ending.total else None
    draft.add("status", "Status", ending.headline, tables=[facts.header_table(run, task, ending, (done, planned))])
    share = f"{ending.step / ending.total:.0%} of the planned updates" if ending.total else f"plan: {NOT_RECORDED}"
    draft.add("progress", "Progress", f"{ending.step:,} updates done, {share}; {len(run.readings)} readings.")
    draft.facts |= {"task": task, "step": ending.step, "total_steps": ending.total, "state": ending.state}
    draft.facts |= {"run_id": run.run_id, "config_hash": own_runs.config_hash(run.config) if run.config else None}


def _tables(parts: Sequence[RunRecord], task: str) -> list[Table]:
    if len(parts) == 1:
        return [table_of(parts[0], task)]
    named = [table_of(part, task) for part in parts]
    return [
        Table(header=one.header, rows=one.rows, caption=f"Run {place} of {len(parts)} in this record")
        for place, one in enumerate(named, start=1)
    ]


def _two_tables(parts: Sequence[RunRecord]) -> list[str]:
    return ["This record holds more than one run: one table each, and nothing is compared across."] if parts[1:] else []


def _changes(run: RunRecord, parts: Sequence[RunRecord]) -> list[str]:
    """What differs between the parts of the record, if anything does."""
    whose = own_runs.identities(run)
    told = [
        f"Checkpoints of run {one.run}, settings {one.config}: steps {', '.join(map(str, at))}."
        for one, at in whose.items()
    ]
    sha = str((run.summary or {}).get("git_sha", ""))
    if sha.endswith("-dirty"):
        told.append("The code had uncommitted changes.")
    return told if len(parts) == 1 else [f"{len(parts)} runs share this record.", *told]


def _checkpoints(draft: Draft, run: RunRecord, task: str, ending: Ending, stored: Stored) -> None:
    found = best_and_final.of_run(run, task, {manifest.step for manifest in stored.manifests})
    draft.findings += checkpoints.against_record(stored.manifests, merged(run))
    lines, tables = [], []
    if found is None:
        lines.append("Best against final: no metric chooses a best checkpoint; the last one is delivered.")
    else:
        tables.append(found.table("step"))
        gap = best_and_final.finding_of_run(found, run, finished=ending.state == "finished")
        draft.findings += [gap] if gap else []
    if stored.manifests:
        tables.append(_list(stored.manifests))
    else:
        lines.append("No checkpoint could be read.")
        if ending.state == "finished" and run.setting("checkpoint", "enabled") is not False:
            draft.findings.append(_NO_CHECKPOINT)
    draft.add("checkpoints", "Checkpoints: best against final", *lines, tables=tables)


_NO_CHECKPOINT = Finding(
    name="no_checkpoint",
    severity="warning",
    step=0,
    evidence="The run is finished and none of its checkpoints can be found.",
    remedy="Look at checkpoint.ckpt_dir: they may lie in a bucket, or have been moved.",
)


def _list(manifests: Sequence[Manifest]) -> Table:
    rows = tuple(
        (f"{one.step:,}", one.time_utc, f"{sum(digest.size for digest in one.files.values()) / 1e6:,.1f} MB", one.run)
        for one in manifests
    )
    return Table(
        header=("step", "written", "size", "run"), rows=rows, caption="Checkpoints that are whole by their size"
    )


def _torn_lines(folder: Path) -> list[Finding]:
    """Lines of the record that are none. One at the end is what a kill leaves; others are damage."""
    path = RunFolder(folder).metrics
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return []
    torn = [place for place, line in enumerate(lines) if line.strip() and not _is_row(line)]
    if not torn:
        return []
    if torn == [len(lines) - 1]:
        evidence = f"The last line of {path.name} is cut, as a kill leaves it."
        return [
            Finding(name="torn_lines", severity="info", step=0, evidence=evidence, remedy="A restart puts it aside.")
        ]
    return [
        unreadable(f"{len(torn)} of {len(lines)} lines of {path.name}, the first at {torn[0] + 1},", "they are no rows")
    ]


def _is_row(line: bytes) -> bool:
    try:
        row: Any = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and "step" in row
