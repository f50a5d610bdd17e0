"""Runs a stage of the preflight in a process of its own, in an environment that is neither the caller's nor becomes it.

torch_xla fixes its devices at import, libtpu locks the machine for its process, and a compiler may die of memory: none
of that may reach the caller.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# A real run must never see what preflight sets, and preflight must not see a pod's: TPU_* written with setdefault wins.
_FOREIGN = ("TPU_", "PJRT_", "XLA_", "LIBTPU_", "JAX_", "CLOUD_TPU_", "PT_XLA_")
_FOREIGN_NAMES = ("CPU_NUM_DEVICES", "MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE")
# libtpu takes a lock on the machine for the chips of its process; here are none, and two compilers may work at once.
_ALWAYS = {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
_PROGRESS_EVERY_S = 15.0
_TAIL = 3000


class StageFailed(RuntimeError):
    """A stage died without an answer: a bug of octfm, too little memory, or too little time. The message says which."""


def clean_environment(extra: Mapping[str, str], source: Mapping[str, str] | None = None) -> dict[str, str]:
    """`source` (default: this process's) without anything that concerns XLA or a process group, and with `extra`."""
    found = os.environ if source is None else source
    kept = {
        name: value for name, value in found.items() if not name.startswith(_FOREIGN) and name not in _FOREIGN_NAMES
    }
    return {**kept, **_ALWAYS, **extra}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`python -m module arguments` with `environment` beside what is always set; `what` it does, in words."""

    module: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    what: str


def run_stages(stages: Sequence[Stage], *, timeout_s: float, progress: Callable[[str], None], at_once: int = 1) -> None:
    """Runs all, `at_once` at a time; tells `progress` every 15 s that they still work. None outlives this call.

    Raises StageFailed with the end of what a stage said where it ends with another code than 0, or not in time.
    """
    waiting, running = list(stages), list[_Running]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(_Running(waiting.pop(0), timeout_s, progress))
            time.sleep(0.05)
            running = [one for one in running if not one.has_ended()]
    finally:
        for one in running:
            one.end()


class _Running:
    """A stage's process, what it says, and how long it has had."""

    def __init__(self, stage: Stage, timeout_s: float, progress: Callable[[str], None]) -> None:
        self._stage, self._timeout_s, self._progress = stage, timeout_s, progress
        self._start = self._told = time.monotonic()
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed by `end`
        self._process = subprocess.Popen(
            [sys.executable, "-m", stage.module, *stage.arguments],
            env=clean_environment({"PYTHONPATH": _with_this_package(), **stage.environment}),
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
        )

    def has_ended(self) -> bool:
        """Well, that is; raises StageFailed where it ended otherwise, or has had its time."""
        code, now, what = self._process.poll(), time.monotonic(), self._stage.what
        if code == 0:
            self.end()
        elif code is not None:
            self._said.seek(0)
            raise StageFailed(_why(what, code, self._said.read()))
        elif now - self._start > self._timeout_s:
            raise StageFailed(f"{what} took longer than {self._timeout_s:.0f} s: give it more with --timeout-s")
        elif now - self._told > _PROGRESS_EVERY_S:
            self._told = now
            self._progress(f"{what}: {now - self._start:.0f} s")
        return code == 0

    def end(self) -> None:
        """Kills what still runs."""
        self._process.kill()
        self._process.wait()
        self._said.close()


def _why(what: str, code: int, said: str) -> str:
    """What is known of the end of a stage."""
    if code == -9:
        return f"{what} was killed, mostly for want of memory: the compiler takes 9 GB at [64,384,384]"
    return f"{what} failed with code {code}:\n{said[-_TAIL:]}"


def _with_this_package() -> str:
    """A PYTHONPATH that finds this package from any folder: the stage stays in the caller's, for relative paths."""
    here = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
