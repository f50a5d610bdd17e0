"""Checkpoints without a run, and files of other trainers -> the draft of their report."""

from collections.abc import Sequence
from pathlib import Path

from oct_foundation.checkpoints.store import StoreError
from oct_foundation.diagnostics.learned import judge_checkpoint
from oct_foundation.diagnostics.loss_course import partial_validation
from oct_foundation.diagnostics.readings import Finding
from oct_foundation.film import FILM_MODALITIES
from pretraining.health import best_and_final, checkpoints, course, facts, foreign, modalities
from pretraining.health.best_and_final import BestAndFinal
from pretraining.health.compose import Draft
from pretraining.health.foreign import ForeignFile
from pretraining.health.losses import history_table, log_table
from pretraining.health.own_runs import config_hash, two_runs
from pretraining.health.sections import NOT_RECORDED, Table, number, unreadable
from pretraining.health.target import Target
from pretraining.health.training_log import LoggedRun, read_log
from pretraining.saved_run import open_run


def draft_of_checkpoints(place: str) -> Draft:
    """One checkpoint of our store, or the newest of a folder: weights, and no word on learning."""
    draft = Draft(subject=place, unchecked={"Losses", "Validation", "Learning rate and updates", "Devices", "Training"})
    try:
        opened = open_run(place)
        stored = checkpoints.look_into(opened.store, only=opened.name)
    except (ValueError, StoreError, OSError) as error:
        draft.findings.append(unreadable(place, str(error)))
        stored = checkpoints.Stored(manifests=(), weighed=(), findings=())
    draft.findings += stored.findings
    draft.weight_findings += [finding for one in stored.weighed for finding in one.examination.findings]
    manifest = stored.manifests[-1] if stored.manifests else None
    config = (manifest.facts.get("config") or {}) if manifest else {}
    draft.verdicts += checkpoints.verdicts_without_series(config)
    if manifest:
        rows = (
            ("run id", manifest.run),
            ("configuration", f"{config_hash(config)} (hash)" if config else NOT_RECORDED),
            ("git commit", str(manifest.facts.get("git_sha", NOT_RECORDED))),
            ("step", f"{manifest.step:,} of {manifest.facts.get('total_steps', NOT_RECORDED)}"),
            ("written", manifest.time_utc),
        )
        draft.add("status", "Status", "A checkpoint alone.", tables=[Table(header=("", ""), rows=rows)])
        metrics = tuple((name, number(value)) for name, value in sorted(manifest.metrics.items()))
        if metrics:
            draft.add("losses", "Metrics of its step", tables=[Table(header=("metric", "value"), rows=metrics)])
        versions = manifest.facts.get("versions") or {}
        table = Table(header=("version", ""), rows=tuple((str(k), str(v)) for k, v in versions.items()))
        draft.add("changes", "Changes and versions", tables=[table])
        draft.facts |= {"run_id": manifest.run, "step": manifest.step}
    draft.sections.append(modalities.section_of(draft.verdicts))
    draft.sections.append(facts.model_section(None, "", stored.weighed))
    draft.sections.append(facts.weights_section(stored.weighed))
    return draft


def draft_of_foreign(target: Target, val_trs: int | None, val_trs_total: int | None) -> Draft:
    """A log, checkpoint files, or both. The last run of a log is judged; runs are never averaged."""
    draft = Draft(subject=target.place, unchecked={"Devices", "Learning rate and updates", "Training"})
    files = _files(draft, target.files)
    runs = _runs(draft, target.log)
    _status(draft, runs, files)
    _losses(draft, runs, files)
    _judge(draft, runs, val_trs, val_trs_total)
    _checkpoints(draft, runs, files)
    draft.weight_findings += [finding for file in files for finding in file.weighed.examination.findings]
    draft.sections.append(facts.model_section(None, "", [file.weighed for file in files]))
    draft.sections.append(facts.weights_section([file.weighed for file in files]))
    draft.unchecked |= {"Weights", "Checkpoints"} if not files else set()
    draft.unchecked |= {"Losses", "Validation"} if not runs else set()
    return draft


def _files(draft: Draft, paths: Sequence[Path]) -> list[ForeignFile]:
    found = []
    for path in paths:
        try:
            found.append(foreign.read_foreign(path))
        except ValueError as error:
            draft.findings.append(unreadable(path.name, str(error)))
    return found


def _runs(draft: Draft, log: Path | None) -> list[LoggedRun]:
    """Of the log; several are a finding, torn lines are one."""
    if log is None:
        return []
    try:
        runs, torn = read_log(log)
    except (OSError, ValueError) as error:
        draft.findings.append(unreadable(log.name, str(error)))
        return []
    if torn:
        draft.findings.append(unreadable(f"{len(torn)} lines of {log.name}", f"the first is {torn[0]!r}"))
    for place, run in enumerate(runs[1:], start=2):
        draft.findings.append(two_runs(f"{log.name} holds {len(runs)} runs; run {place} begins where {run.why}"))
    return runs


def _status(draft: Draft, runs: Sequence[LoggedRun], files: Sequence[ForeignFile]) -> None:
    last = runs[-1].epochs[-1] if runs else None
    rows = [
        ("run id", NOT_RECORDED),
        ("git commit", NOT_RECORDED),
        ("device", NOT_RECORDED),
        ("epoch", NOT_RECORDED if last is None else f"{last.epoch} of {last.total or NOT_RECORDED}"),
        ("runs in the log", f"{len(runs)}"),
    ]
    for file in files:
        epoch, step = (NOT_RECORDED if value is None else f"{value:,}" for value in (file.epoch, file.global_step))
        hashed = config_hash(file.config) if file.config else NOT_RECORDED
        rows.append((file.path.name, f"epoch {epoch}, step {step}, configuration {hashed}"))
    title = "A log and files of another trainer: what they do not say is not recorded."
    draft.add("status", "Status", title, tables=[Table(header=("", ""), rows=tuple(rows))])
    if last is not None:
        left = None if last.total is None else last.total - last.epoch
        draft.add(
            "progress", "Progress", f"{last.epoch} epochs done, {NOT_RECORDED if left is None else left} were left."
        )
    draft.facts |= {"runs": len(runs), "epoch": last.epoch if last else None}


def _losses(draft: Draft, runs: Sequence[LoggedRun], files: Sequence[ForeignFile]) -> None:
    """One table per run. A log that counts on as if it were one run is also judged as that, for flatness alone."""
    tables = [log_table(run) for run in runs]
    if len(runs) > 1:
        tables = [
            Table(header=one.header, rows=one.rows, caption=f"Run {place} of {len(runs)}")
            for place, one in enumerate(tables, start=1)
        ]
    tables += [table for file in files if not runs and (table := history_table(file))]
    lines = ["No baseline was recorded: what predict-the-mean would score nobody knows."] if tables else []
    if len(runs) > 1:
        lines.append(
            "Runs are shown apart. Nothing is computed across them, but whether the loss is flat as the log joins it."
        )
    if tables:
        draft.add("losses", "Losses", *lines, tables=tables)
    if not runs:
        return
    findings = list(course.of_log(runs[-1]))
    for run in runs[:-1]:
        findings += [one for one in course.of_log(run) if one.name == "metrics_not_finite"]
    joined = all(run.joined for run in runs[1:]) and len(runs) > 1
    if joined and not any(one.name == "flat_loss" for one in findings):
        flat = course.flat_as_joined(runs[0], runs[-1])
        findings += [flat] if flat else []
    draft.findings += findings


def _judge(draft: Draft, runs: Sequence[LoggedRun], val_trs: int | None, val_trs_total: int | None) -> None:
    if not runs:
        draft.verdicts += [judge_checkpoint(name) for name in FILM_MODALITIES]
    else:
        draft.verdicts += modalities.of_log(runs[-1], val_trs, val_trs_total)
        if val_trs is not None and val_trs_total is not None:
            partial: Finding | None = partial_validation(val_trs, val_trs_total, runs[-1].epochs[-1].epoch)
            draft.findings += [partial] if partial else []
    draft.sections.append(modalities.section_of(draft.verdicts))


def _checkpoints(draft: Draft, runs: Sequence[LoggedRun], files: Sequence[ForeignFile]) -> None:
    """Best against final, and files that are not what their names say."""
    val_of: dict[int, float] = {}
    found: BestAndFinal | None
    if runs:
        val_of = {line.epoch: line.val_loss for line in runs[-1].epochs if line.val_loss is not None}
        found = best_and_final.of_log(runs[-1], files)
    else:
        longest = max((file.val for file in files), key=len, default=())
        val_of = dict(enumerate(longest, start=1))
        found = best_and_final.of_histories(files)
    draft.findings += foreign.mislabelled(files, val_of)
    if found is None:
        draft.add("checkpoints", "Checkpoints: best against final", f"Best against final: {NOT_RECORDED}.")
        return
    gap = best_and_final.finding_of_log(found)
    draft.findings += [gap] if gap else []
    draft.add("checkpoints", "Checkpoints: best against final", tables=[found.table("epoch")])
