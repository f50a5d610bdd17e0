"""How a run ended, or how far it is, in plain words: from its summary, its ranks' records and its supervisor's.

No process is looked for: the page of a folder is the same wherever and whenever it is made.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from oct_foundation.runtime.exits import ExitCode
from pretraining.report.gather import RunRecord, without_secrets

State = Literal["finished", "stopped", "failed", "unfinished"]
_MEANING = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "an error",
    ExitCode.CONFIG: "the configuration is wrong",
    ExitCode.NO_PROGRESS: "no progress any more, ended by the watchdog",
    ExitCode.TAKEN_OVER: "another process has taken the run over",
    ExitCode.STORAGE: "the storage of checkpoints failed",
    ExitCode.STOPPED: "stopped on request, saved",
    ExitCode.STOPPED_UNSAVED: "stopped on request, not saved",
    ExitCode.NOT_LEARNING: "stopped by an alarm, since the encoder has collapsed",
    ExitCode.REFUSED: "refused: permission, damaged checkpoints, or processes that differ",
}


@dataclass(frozen=True, kw_only=True)
class Ending:
    """`headline`: one line; details: sentences; step of total: finished updates, total None where it is not known."""

    state: State
    headline: str
    details: tuple[str, ...]
    step: int
    total: int | None


def ending_of(run: RunRecord) -> Ending:
    """What the folder says about the end. A summary that is older than the newest row is of an earlier start."""
    summary = run.summary or {}
    logged = max((int(row["step"]) for row in run.rows), default=0)
    summed_up = _whole(summary.get("steps")) or 0
    saved, left = [manifest["step"] for manifest in run.checkpoints], [one.step or 0 for one in run.exits]
    step, total = max(logged, summed_up, *saved, *left), _total(run, summary)
    outcome = str(summary.get("outcome", "")) if summed_up >= logged else ""
    state, headline = _state(run, outcome, step, total)
    told = [f"{without_secrets(one.reason)} (rank {one.rank})." for one in run.exits[:1]]
    if state == "unfinished":
        told = ["It is still running, or was ended without a word (power, memory, a kill); its last lines are below."]
    return Ending(state=state, headline=headline, details=(*told, *_history(run)), step=step, total=total)


def _state(run: RunRecord, outcome: str, step: int, total: int | None) -> tuple[State, str]:
    """The state and its one line. outcome: that of a summary which is up to date, else ""."""
    after = f"after {step:,} updates"
    if outcome == "completed":
        return "finished", f"Finished: all {step:,} updates are done."
    if outcome.startswith("stopped"):
        goes_on = "; the same command goes on" if outcome == "stopped, saved" else ""
        return "stopped", f"{outcome.capitalize()} {after}{goes_on}."
    if outcome:
        return "failed", f"{outcome.capitalize()} {after}."
    code = run.exits[0].code if run.exits else (run.supervisor or {}).get("code")
    if code is not None and code != ExitCode.DONE:
        return "failed", f"Failed {after}: {_code(code)}."
    of_all = f" of {total:,}" if total else ""
    return "unfinished", f"Not finished: the record ends after {step:,}{of_all} updates."


def _history(run: RunRecord) -> list[str]:
    """Restarts and what they cost, checkpoints, and when the record was last written to."""
    told = []
    restarts = _whole((run.supervisor or {}).get("restarts")) or 0
    attempts = {str(manifest.get("attempt")) for manifest in run.checkpoints}
    if restarts:
        told.append(f"It was restarted {restarts:,} {'time' if restarts == 1 else 'times'}.")
    elif len(attempts) > 1:
        told.append(f"{len(attempts)} starts have left checkpoints here.")
    if run.num_lost_rows:
        told.append(f"Updates behind {run.num_lost_rows:,} rows of the record were lost in restarts and trained again.")
    if run.checkpoints:
        newest = run.checkpoints[-1]
        when = str(newest.get("time_utc", "")).replace("T", " ").replace("+00:00", " UTC")
        told.append(f"Newest of {len(run.checkpoints):,} checkpoints in the folder: step {newest['step']:,}, {when}.")
    else:
        told.append("No checkpoint lies in the folder.")
    if run.last_time:
        told.append(f"Last row of the record: {run.last_time}.")
    return told


def _total(run: RunRecord, summary: Mapping[str, Any]) -> int | None:
    """Planned updates, from whoever knows."""
    facts = run.checkpoints[-1].get("facts") if run.checkpoints else None
    known = (
        summary.get("total_steps"),
        facts.get("total_steps") if isinstance(facts, Mapping) else None,
        run.planned("total_steps"),
        run.setting("train", "max_steps"),
    )
    return next((found for found in map(_whole, known) if found), None)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _code(code: object) -> str:
    """`exit code 74, the storage of checkpoints failed`."""
    known = next((meaning for member, meaning in _MEANING.items() if member == code), None)
    return f"exit code {code}, {known}" if known else f"exit code {code}"
