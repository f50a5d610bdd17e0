"""Program for test_kill: forks a child that saves without pause, kills it with SIGKILL, looks at what is left; repeats.

usage: kill_loop.py FOLDER ROUNDS SEED. Prints one JSON object: where the kills fell. Torch is imported once, here; the
process has no other thread, so that forking it is safe.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.manifest import QUARANTINE_FILE
from oct_foundation.checkpoints.retention import CheckpointSettings

NUM_VALUES = 500_000  # 2 MB: long enough that kills fall into the data, short enough for many rounds


def open_manager(root: Path) -> CheckpointManager:
    return CheckpointManager(LocalStore(root), CheckpointSettings(every_steps=1, keep_last=2), "run")


def child(root: Path, acknowledge: int) -> None:
    """Resumes and saves one step after the other; tells each step through the pipe once `save` has returned."""
    manager = open_manager(root)
    restored = manager.restore()
    step = 0 if restored is None else restored[1].step
    while True:
        step += 1
        manager.save(step, {"w": torch.full((NUM_VALUES,), float(step))}, {}, {})
        os.write(acknowledge, step.to_bytes(8, "little"))


def one_round(root: Path, delay_s: float) -> int:
    """Runs a child until SIGKILL, `delay_s` after its first save; returns the last step that it acknowledged."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(root, writing)
        os._exit(1)
    os.close(writing)
    told = os.read(reading, 8)
    time.sleep(delay_s)
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL, "the child ended by itself"
    while rest := os.read(reading, 8):
        told = rest
    os.close(reading)
    return int.from_bytes(told, "little")


def where_it_fell(root: Path) -> str:
    """What the killed child was doing, by what lies around; then the leftovers go, as after a day."""
    temporary = [path.name for path in root.rglob(".*.tmp")]
    found = "data" if any("state.pt" in name for name in temporary) else "manifest" if temporary else "between"
    LocalStore(root).sweep(older_than_s=-1.0)
    assert not list(root.rglob(".*.tmp"))
    return found


def main(root: Path, rounds: int, seed: int) -> None:
    torch.set_num_threads(1)
    generator = random.Random(seed)
    fell = {"data": 0, "manifest": 0, "between": 0}
    newest = 0
    for _ in range(rounds):
        told = one_round(root, generator.uniform(0.0, 0.05))
        restored = open_manager(root).restore()
        assert restored is not None
        state, manifest = restored
        assert manifest.step >= told > newest, f"step {manifest.step} restored, {told} was acknowledged"
        assert torch.equal(state["w"], torch.full((NUM_VALUES,), float(manifest.step)))
        assert not list(root.rglob(QUARANTINE_FILE)), "a committed checkpoint was damaged"
        newest = manifest.step
        fell[where_it_fell(root)] += 1
    print(json.dumps({"fell": fell, "newest": newest}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
