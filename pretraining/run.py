"""A run in the hands of a worker: its parts, where it stands, and how it may end before its last step."""

from dataclasses import dataclass, field
from typing import Any

from oct_foundation.checkpoints.background import BackgroundSaver
from oct_foundation.diagnostics.verdicts import Judgement
from oct_foundation.optim.schedules import Schedules
from oct_foundation.runtime.base import Runtime
from oct_foundation.runtime.exits import ExitCode
from oct_foundation.runtime.lifeline import Lifeline
from oct_foundation.tracking.meters import Stopwatch
from oct_foundation.tracking.tracker import Tracker
from pretraining.config import RunConfig
from pretraining.state import TrainState
from pretraining.tasks.task import Task, Watch


class DivergedError(RuntimeError):
    """Too many updates in a row had a gradient that was not finite."""


class StoppedError(Exception):
    """All ranks stop here, by agreement; `code` says why and whether the state is saved."""

    def __init__(self, code: ExitCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(kw_only=True)
class Run:
    """Everything that a worker trains with.

    `saver` is None on ranks that do not save, `watch` where it is off.
    """

    config: RunConfig
    task: Task
    runtime: Runtime
    life: Lifeline
    state: TrainState
    schedules: Schedules
    total_steps: int
    global_batch: int
    accumulation: int
    tracker: Tracker
    saver: BackgroundSaver | None
    facts: dict[str, Any]
    watch: Watch | None = None
    judgement: Judgement | None = None
    read_at: int = -1
    best: float | None = None
    start_step: int = 0
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    train_graphs: int = 0
    last: dict[str, float] = field(default_factory=dict)
