"""How a process of a run ended: the exit codes, and the file in which each rank writes down why it left.

A rank's own code is lost on the way: under xmp.spawn it arrives as BrokenProcessPool, under torchrun as 1. So each
rank writes its code and reason first, and launcher and supervisor read them.
"""

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """The numbers of sysexits.h where one fits; see docs/decisions/008."""

    DONE = 0
    FAILED = 1
    CONFIG = 2
    NO_PROGRESS = 71
    TAKEN_OVER = 73
    STORAGE = 74
    STOPPED = 75
    STOPPED_UNSAVED = 76
    NOT_LEARNING = 77
    REFUSED = 78
    INTERRUPTED = 130  # what shells say of Ctrl-C; a run that trains saves, and ends with STOPPED

    @property
    def worth_a_restart(self) -> bool:
        """False where the next start would end the same way, until a person has changed something."""
        return self in (
            ExitCode.FAILED,
            ExitCode.NO_PROGRESS,
            ExitCode.STOPPED,
            ExitCode.STOPPED_UNSAVED,
            ExitCode.INTERRUPTED,
        )


@dataclass(frozen=True, kw_only=True)
class ExitRecord:
    """Why a rank left. `step`: finished optimizer steps, None before training; `cause` False: another rank's fault."""

    rank: int
    code: int
    reason: str
    step: int | None = None
    cause: bool = True
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    time: float = field(default_factory=time.time)

    def write(self, folder: Path) -> None:
        """Writes `rank-NNNN.json`; the first record of a rank stays, since what follows is its consequence."""
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".rank-{self.rank:04d}.{os.getpid()}"
        temporary.write_text(json.dumps(asdict(self)) + "\n")
        try:
            os.link(temporary, folder / f"rank-{self.rank:04d}.json")
        except FileExistsError:
            pass
        finally:
            temporary.unlink()


def read_exits(folder: Path) -> list[ExitRecord]:
    """All records, causes before consequences, then by time: the first one is what happened."""
    found = [ExitRecord(**json.loads(path.read_text())) for path in folder.glob("rank-*.json")]
    return sorted(found, key=lambda record: (not record.cause, record.time))


def clear_exits(folder: Path) -> None:
    """Removes the records and steps of an earlier start."""
    for path in (*folder.glob("rank-*.json"), *folder.glob("step-*")):
        path.unlink(missing_ok=True)


def write_step(folder: Path, rank: int, step: int) -> None:
    """Notes how far a rank is: on a host without rank 0 nothing else says so once the rank is killed."""
    with suppress(OSError):  # a full disk must not end the run
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"step-{rank:04d}").write_text(str(step))


def newest_step(folder: Path) -> int | None:
    """The largest step that a rank has noted; None without any."""
    texts = [path.read_text() for path in folder.glob("step-*")]
    return max((int(text) for text in texts if text.isdigit()), default=None)


def combined_code(records: list[ExitRecord]) -> int | None:
    """The code of the whole job: that of the first cause; None without any record."""
    bad = [record for record in records if record.code != ExitCode.DONE]
    return bad[0].code if bad else (0 if records else None)
