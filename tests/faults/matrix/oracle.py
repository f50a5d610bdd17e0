"""What must be true whatever happens: the newest intact step never goes back, all that a manifest names verifies, and
what is restored is bit for bit what was saved.

Every state can be made anew from its step and its writer, so no copy has to be kept to compare with.
"""

import zlib
from typing import Any

import torch

from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.manifest import CheckpointName
from oct_foundation.checkpoints.retention import CheckpointSettings
from oct_foundation.checkpoints.store import CheckpointStore, StoreError
from tests.faults.matrix.places import Place, open_store
from tests.faults.matrix.record import Record

VALUES_2MB = 500_000
SMALL = 5_000  # 20 kB: where the rounds count, not the bytes


def state_of(step: int, writer: str, num_values: int = VALUES_2MB) -> dict[str, Any]:
    """The state that `writer`, an attempt's name, saves after `step`: no two have the same values."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{writer} {step}".encode()))
    values = torch.randint(-(1 << 31), 1 << 31, (num_values,), generator=generator, dtype=torch.int64)
    return {"w": values.to(torch.int32), "step": step, "writer": writer}


def is_right(state: dict[str, Any], step: int, writer: str) -> bool:
    """True if a restored state is, bit for bit, what `writer` saved after `step`."""
    wanted = state_of(step, writer, len(state["w"]))
    return state.keys() == wanted.keys() and state["step"] == step and torch.equal(state["w"], wanted["w"])


def open_manager(store: CheckpointStore, keep_last: int = 2) -> CheckpointManager:
    """A new start of the run at a store."""
    return CheckpointManager(store, CheckpointSettings(every_steps=1, keep_last=keep_last, keep_best=0), "run")


def save(manager: CheckpointManager, step: int, num_values: int = VALUES_2MB) -> int:
    """Saves the state of a step; the step. Raises what `manager.save` raises."""
    manager.save(step, state_of(step, manager.attempt, num_values), {}, {})
    return step


class Watch:
    """Follows one run: `newest` is the step that may never be lost again. Looks with a store of its own."""

    def __init__(self, place: Place, record: Record) -> None:
        self.place, self.record = place, record
        self.store = open_store(place.address)
        self.newest = 0
        self.spoilt: set[CheckpointName] = set()  # these may be bad

    def acknowledge(self, step: int) -> None:
        """A save of this step has returned, so it must be there from now on."""
        self.newest = max(self.newest, step)

    def look(self) -> int:
        """Restores as the next start does, and verifies everything that is committed; 0 where nothing is."""
        manager = open_manager(self.store)
        try:
            found = manager.restore()
            surveyed = manager.survey(verify=True)
        except StoreError as error:
            self.record.lose("unloadable", f"step {self.newest} was acknowledged: {error}")
            return 0
        for item in (item for item in surveyed if item.trouble and item.name not in self.spoilt):
            self.record.lose("unloadable", f"{item.name.folder} was committed: {item.trouble}")
            self.spoilt.add(item.name)  # counted once
        if found is None:
            if self.newest:
                self.record.lose("unloadable", f"step {self.newest} was acknowledged, and nothing is there")
            return 0
        state, manifest = found
        if manifest.step < self.newest:
            self.record.lose("went back", f"step {manifest.step} restored, {self.newest} was acknowledged")
        if not is_right(state, manifest.step, manifest.attempt):
            self.record.lose("undetected", f"step {manifest.step} restored with other values than were saved")
        self.acknowledge(manifest.step)
        return manifest.step
