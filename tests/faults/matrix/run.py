"""Runs rows side by side, each in a process and with an emulator of its own, and makes the table of what they saw."""

import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from tests.faults.gcs_emulator import running_emulator
from tests.faults.matrix.children import fork_context
from tests.faults.matrix.places import BucketPlace, LocalPlace, StoreKind, enter
from tests.faults.matrix.record import Record, Row
from tests.faults.matrix.rows import ROWS

_LONGEST_ROW_S = 1200.0
_LONGEST = (6, 7, 8, 11, 14, 21)  # minutes each


@dataclass(frozen=True, kw_only=True)
class Task:
    """A row on a store: so many rounds, drawn from `seed`."""

    number: int
    kind: StoreKind
    rounds: int
    seed: int

    @property
    def row(self) -> Row:
        """What to run."""
        return next(row for row in ROWS if row.number == self.number)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a task's row saw, and how long it took."""

    task: Task
    record: Record
    seconds: float

    def facts(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "row": self.task.number,
            "title": self.task.row.title,
            "expected": self.task.row.expected,
            "store": self.task.kind,
            "rounds": self.record.rounds,
            "fired": dict(self.record.fired),
            "losses": dict(self.record.losses),
            "complaints": self.record.complaints,
            "facts": self.record.facts,
            "seconds": round(self.seconds, 1),
            "passed": self.record.passed,
        }


def tasks(seed: int, quick: bool, numbers: Iterable[int] = (), kinds: Iterable[StoreKind] = ()) -> list[Task]:
    """All rows on all their stores, or those of `numbers` and `kinds`; the longest first, so that they overlap."""
    numbers, kinds = set(numbers), set(kinds)
    wanted = [
        Task(number=row.number, kind=kind, rounds=row.quick if quick else rounds, seed=seed)
        for row in ROWS
        for kind, rounds in row.rounds.items()
        if (not numbers or row.number in numbers) and (not kinds or kind in kinds)
    ]
    return sorted(wanted, key=lambda task: (task.number not in _LONGEST, task.kind == "local"))


def run_tasks(wanted: list[Task], jobs: int, tell: Callable[[Outcome], None]) -> list[Outcome]:
    """Runs `jobs` rows at a time and tells of each as it ends; the outcomes in the order of their rows."""
    context = fork_context()

    def run_one(task: Task) -> Outcome:
        folder = Path(tempfile.mkdtemp(prefix="octfm-faults-"))
        begun = time.monotonic()
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run_row, args=(task, folder, theirs))
        process.start()
        theirs.close()
        try:
            record = ours.recv() if ours.poll(_LONGEST_ROW_S) else _failed("the row does not end")
        except EOFError:
            process.join()
            record = _failed(f"the row's process ended with code {process.exitcode}")
        process.kill()
        process.join()
        shutil.rmtree(folder, ignore_errors=True)
        outcome = Outcome(task=task, record=record, seconds=time.monotonic() - begun)
        tell(outcome)
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        return sorted(
            pool.map(run_one, wanted), key=lambda outcome: (outcome.task.number, outcome.task.kind != "local")
        )


def _failed(complaint: str) -> Record:
    return Record(complaints=[complaint])


def _run_row(task: Task, folder: Path, pipe: Connection) -> None:
    """The top of a row's process: sends its record, whatever happens."""
    torch.set_num_threads(1)
    tempfile.tempdir = str(folder)  # all that the row leaves goes with its folder
    record = Record()
    rng = random.Random(f"{task.seed} {task.number} {task.kind}")
    try:
        if task.kind == "local":
            enter({})
            task.row.run(LocalPlace(folder / "run"), task.rounds, rng, record)
        else:
            with running_emulator() as emulator:
                bucket = emulator.create_bucket("octfm-faults")
                place = BucketPlace(emulator, bucket, through_proxy=task.row.breaks_network)
                enter(place.environment)
                task.row.run(place, task.rounds, rng, record)
    except Exception as error:  # the process's top: a row that breaks off has failed
        record.complaints.append(f"broke off: {error!r}\n{traceback.format_exc()}")
    pipe.send(record)


def one_line(outcome: Outcome) -> str:
    """For the progress."""
    task, record = outcome.task, outcome.record
    figures = f"{_verdict(record):4} {record.rounds:5d} rounds {outcome.seconds:6.1f} s"
    return f"{task.number:3d} {task.kind:5} {figures}  {task.row.title}"


def _verdict(record: Record) -> str:
    return "ok" if record.passed else "FAIL"


def table(outcomes: list[Outcome]) -> Iterator[str]:
    """A line for each outcome; below, what the rows found worth saying, and every complaint (the first 5 of a row)."""
    head = f"{'row':>3}  {'fault':62} {'store':5} {'rounds':>6} {'fired':>6} {'unload':>6} {'back':>5} {'undet':>5} "
    yield head + f"{'s':>6}  verdict"
    for outcome in outcomes:
        task, record = outcome.task, outcome.record
        losses = (record.losses["unloadable"], record.losses["went back"], record.losses["undetected"])
        yield (
            f"{task.number:3d}  {task.row.title:62.62} {task.kind:5} {record.rounds:6d} {record.fired.total():6d} "
            f"{losses[0]:6d} {losses[1]:5d} {losses[2]:5d} {outcome.seconds:6.1f}  {_verdict(record)}"
        )
    yield "unload: committed and not restored; back: an older step restored; undet: wrong and not noticed"
    for outcome in outcomes:
        for fact in outcome.record.facts:
            yield f"  row {outcome.task.number} {outcome.task.kind}: {fact}"
    for outcome in outcomes:
        if not outcome.record.fired.total():
            yield f"FAIL row {outcome.task.number} {outcome.task.kind}: no fault fired"
        for complaint in outcome.record.complaints[:5]:
            yield f"FAIL row {outcome.task.number} {outcome.task.kind}: {complaint}"
