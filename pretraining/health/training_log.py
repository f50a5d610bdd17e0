"""A `training.log` of the field's form -> epochs, run by run; runs that share a file are told apart, never mixed.

`Epoch 3/50 | Train Loss: 721.1600 | Val Loss: 573.4500 | fMRI Corr: -0.0005 | LR: 1.19e-05`
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

NAME = "training.log"
_NUMBER = r"([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf(?:inity)?))"
_LINE = re.compile(
    rf"Epoch\s+(\d+)(?:/(\d+))?\s*\|\s*Train Loss:\s*{_NUMBER}"
    rf"(?:\s*\|\s*Val Loss:\s*{_NUMBER})?(?:\s*\|\s*fMRI Corr:\s*{_NUMBER})?(?:\s*\|\s*LR:\s*{_NUMBER})?",
    re.IGNORECASE,
)
# A warm-up is at most linear: beyond this many times its own line, no schedule takes the rate.
_BEYOND_LINEAR = 10.0


@dataclass(frozen=True, kw_only=True)
class LoggedEpoch:
    """One line; None for what it lacks. total: planned epochs."""

    epoch: int
    total: int | None
    train_loss: float
    val_loss: float | None
    correlation: float | None
    learning_rate: float | None


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """Epochs of one run, rising. why: what tells it from the one before in the file, "" for the first.

    joined: whether the file goes on counting epochs from the one before, as if they were one.
    """

    epochs: tuple[LoggedEpoch, ...]
    why: str = ""
    joined: bool = False


def read_log(path: Path) -> tuple[list[LoggedRun], list[str]]:
    """The runs of a file, and lines that begin like an epoch but are torn. Raises OSError, ValueError without any."""
    lines, torn = [], []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if match := _LINE.search(text):
            lines.append(_epoch(match))
        elif re.search(r"\bEpoch\s+\d+\s*/", text):
            torn.append(text.strip()[:80])
    if not lines:
        raise ValueError(f"{path.name} has no line of the form 'Epoch 3/50 | Train Loss: 721.16 | Val Loss: ...'")
    return split_runs(lines), torn


def split_runs(lines: Sequence[LoggedEpoch]) -> list[LoggedRun]:
    """Where epochs begin anew, the plan changes or the rate jumps as no schedule does, another run begins.

    An epoch that comes again later on is a resumed run: its newer line counts.
    """
    runs: list[list[LoggedEpoch]] = []
    marks: list[tuple[str, bool]] = []
    for line in lines:
        why, joined = _breaks(runs[-1], line) if runs else ("", False)
        if not runs or why:
            runs.append([])
            marks.append((why, joined))
        runs[-1] = [*(earlier for earlier in runs[-1] if earlier.epoch < line.epoch), line]
    return [
        LoggedRun(epochs=tuple(run), why=why, joined=joined) for run, (why, joined) in zip(runs, marks, strict=True)
    ]


def _breaks(run: Sequence[LoggedEpoch], line: LoggedEpoch) -> tuple[str, bool]:
    """Why `line` is of another run, and whether it goes on counting; ("", False) where it is of this one."""
    last = run[-1]
    goes_on = line.epoch > last.epoch
    if line.epoch <= run[0].epoch and (len(run) > 1 or line.epoch <= 1):
        return f"epochs begin anew at {line.epoch} after {last.epoch}", False
    if line.total != last.total:
        return f"{line.total} epochs are planned, {last.total} were before", goes_on
    if goes_on and (jump := _jump(run, line)):
        return jump, True
    return "", False


def _jump(run: Sequence[LoggedEpoch], line: LoggedEpoch) -> str:
    """Says how the rate jumped. Needs two rates before; up to the highest one, a restart of a cosine may take it."""
    known = [(earlier.epoch, earlier.learning_rate) for earlier in run if earlier.learning_rate is not None]
    rate = line.learning_rate
    if rate is None or len(known) < 2:
        return ""
    slope = max(max((after - before) / (b - a) for (a, before), (b, after) in pairwise(known)), 0.0)
    (epoch, last), highest = known[-1], max(value for _, value in known)
    reach = max(last + slope * (line.epoch - epoch), highest)
    if reach <= 0 or rate <= _BEYOND_LINEAR * reach:
        return ""
    return (
        f"the learning rate is {rate:.3g} at epoch {line.epoch}, {rate / reach:.0f} times what the schedule up to "
        f"epoch {epoch} ({last:.3g}) could have reached"
    )


def _epoch(match: re.Match[str]) -> LoggedEpoch:
    epoch, total, *values = match.groups()
    train, val, correlation, rate = (None if value is None else float(value) for value in values)
    assert train is not None
    return LoggedEpoch(
        epoch=int(epoch),
        total=None if total is None else int(total),
        train_loss=train,
        val_loss=val,
        correlation=correlation,
        learning_rate=rate,
    )
