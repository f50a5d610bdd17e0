"""A disk that is really full: what was committed stays, nothing half is left, and what pruning frees is used."""

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from oct_foundation.checkpoints.gcs import GcsStore
from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.location import GcsUri
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.owner import Ownership
from oct_foundation.checkpoints.retention import CheckpointSettings
from oct_foundation.checkpoints.store import Full, Unavailable
from tests.checkpoints.small_disk import mounted
from tests.faults.gcs_emulator import GcsEmulator, gcs

__all__ = ["gcs"]

SAVE_BYTES = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk") as folder:
        yield folder


def manager(store: LocalStore, keep_last: int, attempt: str | None = None, **options) -> CheckpointManager:
    wishes = CheckpointSettings(every_steps=1, keep_last=keep_last, keep_best=0)
    return CheckpointManager(store, wishes, "run", attempt, **options)


def state(step: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((SAVE_BYTES // 4,), float(step))}


def fill(disk: Path, room: int) -> Path:
    """Leaves `room` bytes of the disk, but for part of a page."""
    status = os.statvfs(disk)
    path = disk / "ballast"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - room)
    return path


def files(disk: Path) -> list[str]:
    return sorted(str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file() and path.name != "ballast")


def intact(store: LocalStore) -> list[int]:
    found = CheckpointManager(store, CheckpointSettings(), "run").survey(verify=True)
    assert [one.trouble for one in found] == [""] * len(found)
    return [one.name.step for one in found]


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.99])
def test_a_disk_that_fills_during_a_save_keeps_all_that_was_committed(disk, fraction):
    store = LocalStore(disk / "run")
    saver = manager(store, keep_last=9)
    for step in (1, 2):
        saver.save(step, state(step), {}, {})
    before = files(disk)
    ballast = fill(disk, room=int(fraction * SAVE_BYTES))
    with pytest.raises(Full, match="No space left on device"):
        saver.save(3, state(3), {}, {})
    assert files(disk) == before
    assert intact(store) == [1, 2]
    ballast.unlink()
    saver.save(3, state(3), {}, {})
    assert intact(store) == [1, 2, 3]


def test_little_space_is_made_by_pruning_before_the_save(disk):
    store = LocalStore(disk / "run")
    before = manager(store, keep_last=9)
    for step in range(1, 6):
        before.save(step, state(step), {}, {})
    fill(disk, room=SAVE_BYTES // 2)
    saver = manager(store, keep_last=2)
    saver.save(6, state(6), {}, {})
    assert intact(store) == [5, 6]


def test_little_space_that_pruning_does_not_mend_is_a_warning_and_the_save_is_tried(disk, caplog):
    store = LocalStore(disk / "run")
    fill(disk, room=int(1.5 * SAVE_BYTES))
    with caplog.at_level(logging.WARNING):
        manager(store, keep_last=2).save(1, state(1), {}, {})
    assert "little space for checkpoints" in caplog.text
    assert "1.6 MB are free, a save takes 1.0 MB" in caplog.text
    assert intact(store) == [1]


class Silent(LocalStore):
    """A mount that does not tell how much it can take."""

    def free_bytes(self) -> int | None:
        return None


def test_a_save_that_meets_a_full_disk_prunes_and_tries_once_more(disk, caplog):
    store = Silent(disk / "run")
    before = manager(store, keep_last=9)
    for step in range(1, 6):
        before.save(step, state(step), {}, {})
    fill(disk, room=SAVE_BYTES // 2)
    with caplog.at_level(logging.WARNING):
        manager(store, keep_last=2).save(6, state(6), {}, {})
    assert "step 6 found the disk full" in caplog.text
    assert intact(store) == [5, 6]


class Deaf(LocalStore):
    """A place that does not answer when asked for its room."""

    def free_bytes(self) -> int | None:
        raise Unavailable("out for lunch")


def test_not_knowing_the_room_does_not_stop_a_save(tmp_path, caplog):
    store = Deaf(tmp_path)
    with caplog.at_level(logging.WARNING):
        manager(store, keep_last=2).save(1, state(1), {}, {})
    assert "out for lunch" in caplog.text
    assert intact(store) == [1]


def test_the_owner_clears_what_a_crash_loop_left_others_wait_a_day(tmp_path):
    store = LocalStore(tmp_path)
    store.put("step-00000003-dead/state.pt", lambda file: file.write(b"x") and None)
    dead = tmp_path / "step-00000003-dead"
    (tmp_path / "step-00000004-dead").mkdir()
    killed = tmp_path / "step-00000004-dead" / ".state.pt.0123.tmp"
    killed.write_bytes(b"half")
    for path in (dead / "state.pt", killed, dead, killed.parent):
        os.utime(path, (path.stat().st_mtime - 700, path.stat().st_mtime - 700))
    manager(store, 2).prune()
    assert killed.exists()
    assert dead.exists()
    ownership = Ownership(store, "new")
    ownership.claim()
    manager(store, 2, "new", ownership=ownership).prune()
    assert not killed.exists()
    assert not dead.exists()
    ownership.release()


def test_a_full_spool_is_full_and_leaves_nothing_there_nor_in_the_bucket(
    disk, gcs: GcsEmulator, monkeypatch: pytest.MonkeyPatch
):
    for name, value in gcs.environment.items():
        monkeypatch.setenv(name, value)
    gcs.proxy.inject()
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    store = GcsStore(GcsUri(bucket=gcs.create_bucket(f"full-{os.urandom(6).hex()}"), prefix="run"), deadline_s=60)
    ballast = fill(disk, room=SAVE_BYTES // 2)
    free = store.free_bytes()
    assert free is not None
    assert free <= SAVE_BYTES
    with pytest.raises(Full, match="No space left on device"):
        manager(store, keep_last=2).save(1, state(1), {}, {})
    assert files(disk) == []
    assert store.list() == []
    ballast.unlink()
    manager(store, keep_last=2).save(1, state(1), {}, {})
    assert [info.key.rpartition("/")[2] for info in store.list("step-")] == ["manifest.json", "state.pt"]
