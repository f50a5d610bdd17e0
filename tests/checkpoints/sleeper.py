"""Program for test_owner: claims a folder, saves step 1, stops itself (SIGSTOP) between data and manifest of step 2.

usage: sleeper.py FOLDER ATTEMPT. When it is woken it goes on; prints how its saves ended, one line each.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch

from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.owner import Ownership
from oct_foundation.checkpoints.retention import CheckpointSettings
from oct_foundation.checkpoints.store import StoreError


class Drowsy(LocalStore):
    """Falls asleep once the data of step 2 lies there."""

    def put(self, key: str, write: Callable[[BinaryIO], None]) -> None:
        super().put(key, write)
        if key.startswith("step-00000002-"):
            os.kill(os.getpid(), signal.SIGSTOP)


def main(root: Path, attempt: str) -> None:
    store = Drowsy(root)
    ownership = Ownership(store, attempt, renew_s=0.05, patience_s=0.5)
    ownership.claim()
    ownership.start_renewing()
    manager = CheckpointManager(store, CheckpointSettings(keep_last=1), "run", attempt, ownership=ownership)
    for step in (1, 2, 3):
        try:
            manager.save(step, {"w": torch.full((10,), float(step))}, {}, {})
            print("saved", step)
        except StoreError as error:
            print(type(error).__name__, step, error)
    try:
        manager.prune()
    except StoreError as error:
        print(type(error).__name__, "prune", error)
    ownership.release()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
