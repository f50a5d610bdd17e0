"""Weights & Biases as a guest: own thread, bounded queue, and never a reason for a run to wait or to fail.

Online when there is a key, offline when there is none or the network does not answer; metrics.jsonl has it
all anyway.
"""

import logging
import os
import queue
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from oct_foundation.tracking.jsonl import read_rows
from oct_foundation.tracking.redact import redact
from oct_foundation.tracking.wandb_files import newest_row, rows_of
from oct_foundation.tracking.wandb_settings import WandbSettings, resolve_mode

# An hour of rows at one a second; beyond that W&B is not coming back, and memory must not grow with it.
QUEUE_ROWS = 3600
# wandb keeps to its limits by itself; a little longer, and what it has to say is still heard.
JOIN_SLACK_S = 5.0
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WandbRun:
    """Which run the rows are of.

    folder: gets the files (<folder>/wandb/..); run_id: kept in the checkpoint, a resumed run goes on in the same
    curves; config: redacted before it leaves. goes_on: the steps between the last checkpoint and the end of the attempt
    before this one are trained again; rows that W&B has of them are not sent twice, so that steps never fall. Rows up
    to `resumed_step` that a kill has kept from W&B come from `record`, the run's metrics.jsonl.
    """

    folder: Path
    run_id: str
    config: Mapping[str, Any]
    goes_on: bool = False
    record: Path | None = None
    resumed_step: int = 0

    def __post_init__(self) -> None:
        if not _RUN_ID.fullmatch(self.run_id):
            raise ValueError(f"run id {self.run_id!r}: letters, digits, '-' and '_' are allowed, 128 at most")


def start_wandb(settings: WandbSettings, run: WandbRun) -> "WandbTracker | None":
    """The tracker that `settings` and this machine call for, None when it is disabled."""
    mode = resolve_mode(settings, os.environ)
    return None if mode == "disabled" else WandbTracker(settings, run, mode)


class WandbTracker:
    """Rows to one W&B run, from a thread of its own.

    Every row carries its own `step`, the x axis of all curves. W&B's internal step is never set: it drops every row
    behind the largest step seen, which is how train curves got lost when validation had logged a larger one.
    """

    def __init__(self, settings: WandbSettings, run: WandbRun, mode: Literal["online", "offline"]) -> None:
        self._settings, self._run, self._mode = settings, run, mode
        self._config = redact(run.config)
        self._rows: queue.Queue[dict[str, Any] | _Finish] = queue.Queue(maxsize=QUEUE_ROWS)
        self._failed = threading.Event()
        self._num_dropped = 0
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Hands the row over and returns at once; with the queue full it is dropped, and counted."""
        self._put({**metrics, "step": step})

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """A W&B table under `name`, on the way of the rows; no other attempt's record brings it back."""
        if rows:
            self._put({name: _Table(rows=tuple(rows)), "step": step})

    def _put(self, row: dict[str, Any]) -> None:
        if self._failed.is_set():
            return
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self._num_dropped += 1
            if self._num_dropped == 1:
                _log.warning("W&B is %d rows behind; rows are dropped from it from now on", QUEUE_ROWS)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Waits until W&B has everything, as long as the time limits allow; the rest stays on disk."""
        if not self._failed.is_set():
            with suppress(queue.Full):
                self._rows.put(_Finish(summary=dict(summary)), timeout=self._settings.finish_timeout_s)
            self._thread.join(self._settings.init_timeout_s + self._settings.finish_timeout_s + JOIN_SLACK_S)
        if self._thread.is_alive():
            _log.warning("W&B did not finish in time; `wandb sync %s/wandb/*` sends the rest", self._run.folder)
        if self._num_dropped:
            _log.warning("W&B missed %d rows; metrics.jsonl has them", self._num_dropped)

    def _work(self) -> None:
        """The thread: opens the run, passes rows on, closes it."""
        try:
            on_disk = newest_row(self._run.folder, self._run.run_id) if self._run.goes_on else _NOTHING
            run = self._open_run()
            had = self._had(run, on_disk) if self._run.goes_on else _NOTHING
            run.define_metric("*", step_metric="step")
            for recorded in self._recorded():
                if missing := _missing(recorded, had):
                    run.log(missing)
            while not isinstance(row := self._rows.get(), _Finish):
                if missing := _missing(row, had):
                    run.log({name: _shown(value) for name, value in missing.items()})
            run.summary.update(redact(row.summary))
            run.finish()
            _end_service()
        except Exception as error:
            # Foreign code with errors of many kinds (its own, OSError, protobuf, asyncio): a guest must not
            # end the run.
            self._failed.set()
            _log.warning("W&B failed, the run goes on with metrics.jsonl: %s", _first_line(error))

    def _had(self, run: Any, on_disk: "_Newest") -> "_Newest":
        """The newest row that W&B has or will get: from this disk, and from the service."""
        if not run.offline:  # the service knows what it got of attempts that were online
            return max(on_disk, (int(run.summary.get("step", 0)), frozenset()))
        online = self._run.folder.glob(f"wandb/run-*/run-{self._run.run_id}.wandb")
        return max(
            on_disk, *((int(row["step"]), frozenset[str]()) for path in online for row in rows_of(path)), _NOTHING
        )

    def _recorded(self) -> Iterator[dict[str, float]]:
        """The rows that led to the state which the run goes on from."""
        if self._run.goes_on and self._run.record is not None:
            yield from (row for row in read_rows(self._run.record) if row["step"] <= self._run.resumed_step)

    def _open_run(self) -> Any:
        """An online run if asked for and possible within `init_timeout_s`, else an offline one."""
        import wandb  # lazily: it costs a second, and only rank 0 gets here

        self._run.folder.mkdir(parents=True, exist_ok=True)  # else wandb silently writes to a temporary folder
        if self._mode == "online":
            try:
                return self._init(wandb, "online")
            except Exception as error:  # not wandb.Error alone: its service raises plain Exceptions, too
                _log.warning("W&B: not online (%s); rows are kept offline", _first_line(error))
                wandb.teardown()  # the failed start still holds the run id: offline would be refused
        return self._init(wandb, "offline")

    def _init(self, wandb: ModuleType, mode: str) -> Any:
        settings = self._settings
        return wandb.init(
            mode=mode,
            project=settings.project,
            entity=settings.entity,
            tags=settings.tags,
            name=settings.run_name,
            id=self._run.run_id,
            resume="allow",
            dir=self._run.folder,
            config=self._config,
            settings=wandb.Settings(
                init_timeout=settings.init_timeout_s,
                finish_timeout=settings.finish_timeout_s,
                console="off",  # train.log has the output already
                silent=True,
                disable_git=True,  # no diff of the working tree leaves the machine
                disable_code=True,
            ),
        )


@dataclass(frozen=True, kw_only=True)
class _Finish:
    """Last in the queue."""

    summary: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Rows with the columns of the first."""

    rows: tuple[Mapping[str, Any], ...]


def _shown(value: Any) -> Any:
    """A number as it is, a table as W&B wants it."""
    if not isinstance(value, _Table):
        return value
    import wandb

    columns = list(value.rows[0])
    return wandb.Table(columns=columns, data=[[row.get(column) for column in columns] for row in value.rows])


# A step, and the names that were logged at it.
_Newest = tuple[int, frozenset[str]]
_NOTHING: _Newest = (0, frozenset())


def _missing(row: Mapping[str, Any], had: _Newest) -> dict[str, Any]:
    """What of `row` is behind the newest row that W&B has; empty for none."""
    step, names = had
    if row["step"] < step:
        return {}
    rest = {name: value for name, value in row.items() if row["step"] > step or name not in names | {"step"}}
    return {**rest, "step": row["step"]} if rest else {}


def _end_service() -> None:
    """Ends wandb's own process now: until the interpreter's end it would hold our output, and the log with it."""
    import wandb

    wandb.teardown()


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
