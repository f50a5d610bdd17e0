"""Row 1: SIGKILL at random moments of a process that saves without pause.

The writer says through a pipe what it is doing; the row waits for a phase drawn at random and kills it at a random
moment of that phase. What the pipe holds at the end tells where the kill fell and what had been committed.
"""

import os
import random
import struct
import time
from collections import defaultdict
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
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


class TellingStore(PassingStore):
    """Says each phase of a save at its begin."""

    def __init__(self, address: str, pipe: int) -> None:
        super().__init__(open_store(address))
        self._pipe = pipe

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


def save_without_pause(address: str, variables: dict[str, str], num_values: int, pipe: Connection) -> None:
    """The writer: resumes, and saves one step after the other until it is killed."""
    torch.set_num_threads(1)
    enter(variables)
    manager = open_manager(TellingStore(address, pipe.fileno()))
    found = manager.restore()
    step = 0 if found is None else found[1].step
    while True:
        step = save(manager, step + 1, num_values)


class Killer:
    """Starts writers and kills them; learns meanwhile how long each phase lasts."""

    def __init__(self, place: Place, rng: random.Random, num_values: int = VALUES_2MB) -> None:
        self._place, self._rng, self._num_values = place, rng, num_values
        self._context = fork_context()
        self._lasted: dict[bytes, list[float]] = defaultdict(lambda: [0.005])  # seconds of each phase

    def kill_one(self) -> tuple[str, int]:
        """Lets a writer save a few steps and kills it; in which phase the kill fell, and the last committed step."""
        phase, number = self._rng.choice(list(PHASES)), self._rng.randint(1, 3)
        ours, theirs = self._context.Pipe(duplex=False)
        arguments = (self._place.address, self._place.environment, self._num_values, theirs)
        writer = self._context.Process(target=save_without_pause, args=arguments, daemon=True)
        writer.start()
        theirs.close()
        said = self._listen(ours, phase, number)
        time.sleep(self._rng.uniform(0.0, 1.2 * median(self._lasted[phase][-50:])))
        writer.kill()
        writer.join()
        said += iter(lambda: _hear(ours), None)
        ours.close()
        if writer.exitcode != -9:
            raise RuntimeError(f"the writer ended by itself with code {writer.exitcode}")
        committed = max((word.step for word in said if word.phase == AFTER), default=0)
        return PHASES[said[-1].phase], committed

    def _listen(self, pipe: Connection, phase: bytes, number: int) -> list[Said]:
        """What is said until the phase begins for the `number`-th time; the times between the words are kept."""
        said: list[Said] = []
        begun = time.monotonic()
        while sum(word.phase == phase for word in said) < number:
            if not pipe.poll(_PATIENCE_S) or (word := _hear(pipe)) is None:
                raise RuntimeError("the writer says nothing")
            now = time.monotonic()
            if said:
                self._lasted[said[-1].phase].append(now - begun)
            begun = now
            said.append(word)
        return said


def _hear(pipe: Connection) -> Said | None:
    data = os.read(pipe.fileno(), _MESSAGE.size)
    return Said(*_MESSAGE.unpack(data)) if data else None


def run_kills(place: Place, rounds: int, rng: random.Random, record: Record) -> None:
    """`rounds` kills, and up to as many again until each phase has had its 10."""
    watch, killer = Watch(place, record), Killer(place, rng)
    wanted = min(10, rounds // 5)
    while record.rounds < rounds or (
        record.rounds < 2 * rounds and min(record.fired[phase] for phase in PHASES.values()) < wanted
    ):
        phase, committed = killer.kill_one()
        record.fired[phase] += 1
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
