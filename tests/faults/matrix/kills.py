"""Row 1: SIGKILL at random moments of a process that saves without pause.

The writer is told in which phase of a save it dies, and times its own death: on a busy machine a killer in another
process comes too late for a phase of milliseconds. It says through a pipe what it is doing, and what the pipe holds at
the end tells where the kill fell and what had been committed.
"""

import os
import random
import signal
import struct
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.manager import LATEST_KEY, ORPHAN_AGE_S
from oct_foundation.checkpoints.manifest import MANIFEST_FILE, STATE_FILE, CheckpointName
from tests.faults.matrix.children import fork_context
from tests.faults.matrix.oracle import VALUES_2MB, Watch, open_manager, save
from tests.faults.matrix.passing import PassingStore, Result
from tests.faults.matrix.places import LocalPlace, Place, enter, open_store
from tests.faults.matrix.record import Record

DATA, MANIFEST, AFTER = b"d", b"m", b"a"
PHASES = {DATA: "while data is written", MANIFEST: "before the manifest", AFTER: "after the commit"}
_MESSAGE = struct.Struct("<cQ")  # shorter than PIPE_BUF: it is in the pipe whole or not at all
_PATIENCE_S = 60.0


class Said(NamedTuple):
    """The phase that begins, and of which step's save."""

    phase: bytes
    step: int


class SelfKill(NamedTuple):
    """When a writer dies: in the `number`-th time of `phase`, after this share of what that phase lasted before."""

    phase: bytes
    number: int
    share: float


class TellingStore(PassingStore):
    """Says each phase of a save at its begin, and sets the clock of its death."""

    def __init__(self, address: str, pipe: int, death: SelfKill) -> None:
        super().__init__(open_store(address))
        self._pipe, self._death = pipe, death
        self._lasted = dict.fromkeys(PHASES, 0.005)
        self._times, self._now, self._since = dict.fromkeys(PHASES, 0), AFTER, time.monotonic()

    def around(self, name: str, key: str, call: Callable[[], Result]) -> Result:
        checkpoint = CheckpointName.of_key(key)
        if checkpoint is None or name not in ("put", "commit"):
            return call()
        if key.endswith(STATE_FILE):
            self._say(DATA, checkpoint.step)
        result = call()
        if key.endswith(STATE_FILE):
            self._say(MANIFEST, checkpoint.step)
        elif key.endswith(MANIFEST_FILE):
            self._say(AFTER, checkpoint.step)
        return result

    def _say(self, phase: bytes, step: int) -> None:
        os.write(self._pipe, _MESSAGE.pack(phase, step))
        now = time.monotonic()
        self._lasted[self._now] = now - self._since
        self._now, self._since = phase, now
        self._times[phase] += 1
        if (phase, self._times[phase]) == self._death[:2]:
            delay = self._death.share * self._lasted[phase]
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()


def save_without_pause(
    address: str, variables: dict[str, str], num_values: int, pipe: Connection, death: SelfKill
) -> None:
    """The writer: resumes, and saves one step after the other until it dies."""
    torch.set_num_threads(1)
    enter(variables)
    manager = open_manager(TellingStore(address, pipe.fileno(), death))
    found = manager.restore()
    step = 0 if found is None else found[1].step
    while True:
        step = save(manager, step + 1, num_values)


def random_moment(rng: random.Random, phases: Sequence[bytes] = tuple(PHASES)) -> SelfKill:
    """In one of the first saves, anywhere in one of `phases` or just behind it."""
    return SelfKill(rng.choice(phases), rng.randint(1, 3), rng.uniform(0.0, 1.1))


def kill_one(place: Place, death: SelfKill, num_values: int = VALUES_2MB) -> tuple[str, int]:
    """Lets a writer save until it dies; in which phase it did, and the last committed step."""
    context = fork_context()
    ours, theirs = context.Pipe(duplex=False)
    arguments = (place.address, place.environment, num_values, theirs, death)
    writer = context.Process(target=save_without_pause, args=arguments, daemon=True)
    writer.start()
    theirs.close()
    said: list[Said] = []
    while ours.poll(_PATIENCE_S) and (word := _hear(ours)) is not None:
        said.append(word)
    writer.join(_PATIENCE_S)
    ours.close()
    if writer.exitcode != -signal.SIGKILL or not said:
        raise RuntimeError(f"the writer ended by itself with code {writer.exitcode}")
    committed = max((word.step for word in said if word.phase == AFTER), default=0)
    return PHASES[said[-1].phase], committed


def _hear(pipe: Connection) -> Said | None:
    data = os.read(pipe.fileno(), _MESSAGE.size)
    return Said(*_MESSAGE.unpack(data)) if data else None


def run_kills(place: Place, rounds: int, rng: random.Random, record: Record) -> None:
    """`rounds` kills, and up to twice as many and 20 more, aimed at it, until each phase has had its 10."""
    watch = Watch(place, record)
    wanted = min(10, rounds // 5)
    while record.rounds < 3 * rounds + 20:
        missing = [phase for phase, name in PHASES.items() if record.fired[name] < wanted]
        if record.rounds >= rounds and not missing:
            break
        aims = list(PHASES) if record.rounds < rounds else missing
        name, committed = kill_one(place, random_moment(rng, aims))
        record.fired[name] += 1
        watch.acknowledge(committed)
        watch.look()
        record.rounds += 1
    for phase in PHASES.values():
        record.require_fired(phase, wanted)
    record.facts.append(", ".join(f"{times} {phase}" for phase, times in record.fired.items()))
    if isinstance(place, LocalPlace):
        _leftovers_go_after_a_day(place.root, record)


def _leftovers_go_after_a_day(root: Path, record: Record) -> None:
    """Ages everything, starts the run once more, prunes: what is left belongs to a committed checkpoint."""
    orphans = [path for path in root.glob("step-*") if not (path / MANIFEST_FILE).exists()]
    record.facts.append(f"{len(orphans)} orphans of {record.rounds} kills cleaned")
    for path in (*root.rglob("*"), root):
        os.utime(path, (time.time() - ORPHAN_AGE_S - 60,) * 2)
    store = LocalStore(root)
    open_manager(store).prune()
    left = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    strange = [name for name in left if name != LATEST_KEY and not (root / name).with_name(MANIFEST_FILE).exists()]
    record.require(not strange, f"leftovers of killed writers stay after a day: {strange[:5]}")
    record.require(len(orphans) >= record.rounds // 10, f"{len(orphans)} kills left an orphan: little was cleaned")
