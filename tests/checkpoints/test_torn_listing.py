"""A listing is no snapshot: a reader beside a writer that commits and prunes never goes back to an older step."""

from pathlib import Path

import torch

from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.retention import CheckpointSettings

ONE = CheckpointSettings(every_steps=1, keep_last=1, keep_best=0)


def state(step: int) -> dict:
    return {"w": torch.full((1000,), float(step))}


class TornListing(LocalStore):
    """A listing during which another process commits step 20 and prunes step 10: the first folder read, 10's, is gone
    when its turn comes; 20's was not there when the root was read.
    """

    other: CheckpointManager | None = None

    def list(self, prefix: str = ""):
        before = super().list(prefix)
        if self.other is not None:
            other, self.other = self.other, None
            other.save(20, state(20), {}, {})
        return [info for info in before if (self.root / info.key).exists()]


def test_a_reader_never_falls_back_because_its_listing_was_torn(tmp_path: Path):
    CheckpointManager(LocalStore(tmp_path), ONE, "r", "a1").save(5, state(5), {}, {})
    writer = CheckpointManager(LocalStore(tmp_path), ONE, "r", "a2")
    writer.restore()  # step 5 stays: the one resumed from
    writer.save(10, state(10), {}, {})
    store = TornListing(tmp_path)
    store.other = writer
    found = CheckpointManager(store, ONE, "r", "reader").restore()
    assert store.other is None
    assert found is not None
    assert found[1].step >= 10


class PrunedMeanwhile(LocalStore):
    """Between the listing and the first read another process commits step 20 and prunes step 10."""

    other: CheckpointManager | None = None

    def list(self, prefix: str = ""):
        before = super().list(prefix)
        if self.other is not None:
            other, self.other = self.other, None
            other.save(20, state(20), {}, {})
        return before


def test_a_reader_whose_newest_was_pruned_looks_again_before_it_takes_an_older_one(tmp_path: Path):
    CheckpointManager(LocalStore(tmp_path), ONE, "r", "a1").save(5, state(5), {}, {})
    writer = CheckpointManager(LocalStore(tmp_path), ONE, "r", "a2")
    writer.restore()  # step 5 stays: the one resumed from
    writer.save(10, state(10), {}, {})
    store = PrunedMeanwhile(tmp_path)
    store.other = writer
    found = CheckpointManager(store, ONE, "r", "reader").restore()
    assert store.other is None
    assert found is not None
    assert found[1].step == 20
