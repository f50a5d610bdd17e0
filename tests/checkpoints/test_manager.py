"""Save, find, verify, quarantine, restore, prune: over a real folder, damaged by hand."""

import errno
import json
import logging
import os
import resource
import threading
import time
from pathlib import Path

import pytest
import torch

from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.manager import LATEST_KEY, ORPHAN_AGE_S, CheckpointManager
from oct_foundation.checkpoints.manifest import CheckpointName, Manifest
from oct_foundation.checkpoints.retention import CheckpointSettings
from oct_foundation.checkpoints.store import Conflict, Corrupt, Full, NotFound

MANY = CheckpointSettings(every_steps=1, keep_last=100)


def manager(
    root: Path, attempt: str = "a1", settings: CheckpointSettings = MANY, run_id: str = "run"
) -> CheckpointManager:
    return CheckpointManager(LocalStore(root), settings, run_id, attempt)


def state(step: int) -> dict:
    return {"w": torch.full((1000,), float(step)), "step": step}


def save(root: Path, *steps: int, **options) -> CheckpointManager:
    saver = manager(root, **options)
    for step in steps:
        saver.save(step, state(step), {"val/loss": 1.0 / step}, {"samples_seen": step * 32})
    return saver


def folder(root: Path, step: int, attempt: str = "a1") -> Path:
    return root / f"step-{step:08d}-{attempt}"


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 16
    path.write_bytes(data)


def restored_step(root: Path) -> int | None:
    found = manager(root, "later").restore()
    if found is None:
        return None
    loaded, manifest = found
    assert loaded["step"] == manifest.step
    assert torch.equal(loaded["w"], state(manifest.step)["w"])
    return manifest.step


# --- saving


def test_a_saved_checkpoint_is_found_by_the_next_start_with_all_that_was_said(tmp_path):
    saved = manager(tmp_path).save(
        10, state(10), {"val/loss": 0.5, "train/loss": float("nan")}, {"git": "abc", "n": [1]}
    )
    found = manager(tmp_path, "a2", run_id="other").latest_intact()
    assert found == saved
    assert (found.run, found.step, found.attempt) == ("run", 10, "a1")
    assert found.metrics == {"val/loss": 0.5, "train/loss": None}
    assert found.facts == {"git": "abc", "n": [1]}
    assert found.files["state.pt"].size == (folder(tmp_path, 10) / "state.pt").stat().st_size


def test_the_layout_is_data_manifest_and_a_hint(tmp_path):
    save(tmp_path, 10)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "latest.json",
        "step-00000010-a1/manifest.json",
        "step-00000010-a1/state.pt",
    ]
    assert json.loads((tmp_path / LATEST_KEY).read_text())["step"] == 10


def test_the_manifest_is_written_last(tmp_path):
    saver = save(tmp_path, 10)
    state_time = (folder(tmp_path, 10) / "state.pt").stat().st_mtime_ns
    assert (folder(tmp_path, 10) / "manifest.json").stat().st_mtime_ns >= state_time
    (folder(tmp_path, 10) / "manifest.json").unlink()
    assert saver.steps() == []  # it alone makes a checkpoint


def test_the_same_step_twice_in_one_attempt_is_written_once(tmp_path):
    saver = manager(tmp_path)
    first = saver.save(10, state(10), {}, {})
    assert saver.save(10, state(11), {}, {}) is first
    assert restored_step(tmp_path) == 10


def test_each_attempt_has_its_own_folder_and_the_later_one_wins(tmp_path):
    save(tmp_path, 10, attempt="20260101T000000-b")
    save(tmp_path, 10, attempt="20260102T000000-a")
    found = manager(tmp_path).latest_intact()
    assert found is not None
    assert found.attempt == "20260102T000000-a"
    first, second = manager(tmp_path, None), manager(tmp_path, None)
    assert first.attempt != second.attempt


def test_foreign_objects_and_facts_cost_nothing(tmp_path):
    saver = manager(tmp_path)
    with pytest.raises(TypeError, match=r"state\['path'\]"):
        saver.save(10, {"path": tmp_path}, {}, {})
    with pytest.raises(TypeError, match="JSON"):
        saver.save(10, state(10), {}, {"path": tmp_path})
    assert list(tmp_path.iterdir()) == []


def test_another_writer_of_the_same_attempt_is_a_conflict_and_loses_nothing(tmp_path):
    save(tmp_path, 10)
    with pytest.raises(Conflict):
        save(tmp_path, 10)
    assert restored_step(tmp_path) == 10


class FullOn(LocalStore):
    """A disk that is full when a key of this name is written (the call does reach the disk for all others)."""

    name = ""

    def _refuse(self, key: str) -> None:
        if key.endswith(self.name):
            raise Full(f"cannot write {key}: {os.strerror(errno.ENOSPC)}")

    def put(self, key, write):
        self._refuse(key)
        super().put(key, write)

    def commit(self, key, data):
        self._refuse(key)
        super().commit(key, data)

    def replace(self, key, data):
        self._refuse(key)
        super().replace(key, data)


@pytest.mark.parametrize("limit", [0, 1_000, 3_000, 5_000])
def test_a_size_limit_in_the_middle_of_torch_save_is_full_and_leaves_the_old_one(tmp_path, limit):
    saver = save(tmp_path, 10)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(Full, match="File too large"):
            saver.save(20, state(20), {}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not folder(tmp_path, 20).exists()
    assert restored_step(tmp_path) == 10


@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
def test_a_full_disk_leaves_the_old_one_and_nothing_of_the_new_one(tmp_path, name):
    save(tmp_path, 10)
    store = FullOn(tmp_path)
    store.name = name
    saver = CheckpointManager(store, MANY, "run", "a2")
    with pytest.raises(Full):
        saver.save(20, state(20), {}, {})
    assert not folder(tmp_path, 20, "a2").exists()
    assert restored_step(tmp_path) == 10
    store.name = "nothing"
    saver.save(20, state(20), {}, {})  # space again: the same step works
    assert restored_step(tmp_path) == 20


def test_trouble_after_the_commit_is_a_warning_not_a_failed_save(tmp_path, caplog):
    store = FullOn(tmp_path)
    store.name = LATEST_KEY
    with caplog.at_level(logging.WARNING):
        CheckpointManager(store, MANY, "run", "a1").save(10, state(10), {}, {})
    assert "step 10 is saved" in caplog.text
    assert restored_step(tmp_path) == 10


# --- finding and restoring


def test_nothing_saved_is_none_and_no_error(tmp_path):
    assert manager(tmp_path).restore() is None
    assert manager(tmp_path).latest_intact() is None
    assert manager(tmp_path).steps() == []


def test_the_newest_by_step_is_restored_and_a_step_can_be_named(tmp_path):
    save(tmp_path, 9, 100, 20)
    assert manager(tmp_path).steps() == [9, 20, 100]
    assert restored_step(tmp_path) == 100
    for which in (20, CheckpointName(step=20, attempt="a1")):
        found = manager(tmp_path).restore(which)
        assert found is not None
        assert found[1].step == 20


def test_a_restored_run_keeps_its_id(tmp_path):
    save(tmp_path, 10, run_id="first")
    resumed = manager(tmp_path, "a2", run_id="fresh")
    resumed.restore()
    assert resumed.save(20, state(20), {}, {}).run == "first"


DAMAGE = {
    "state flipped": lambda at: flip(at / "state.pt", 2000),
    "state empty": lambda at: (at / "state.pt").write_bytes(b""),
    "state cut": lambda at: os.truncate(at / "state.pt", 3000),
    "state longer": lambda at: (at / "state.pt").open("ab").write(b"x"),
    "state gone": lambda at: (at / "state.pt").unlink(),
    "manifest flipped": lambda at: flip(at / "manifest.json", 100),
    "manifest empty": lambda at: (at / "manifest.json").write_bytes(b""),
    "manifest cut": lambda at: os.truncate(at / "manifest.json", 50),
    "manifest no dict": lambda at: (at / "manifest.json").write_bytes(b"[1]"),
    "manifest binary": lambda at: (at / "manifest.json").write_bytes(b"\xff\xfe"),
    "manifest edited": lambda at: edit(at / "manifest.json", '"val/loss": ', '"val/loss": 1'),
    "manifest of another": lambda at: copy_manifest(at.parent / "step-00000010-a1", at),
}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def copy_manifest(source: Path, target: Path) -> None:
    (target / "manifest.json").write_bytes((source / "manifest.json").read_bytes())


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_goes_into_quarantine_and_the_next_older_is_taken(tmp_path, damage):
    save(tmp_path, 10, 20, 30)
    DAMAGE[damage](folder(tmp_path, 30))
    before = {path: path.read_bytes() for path in folder(tmp_path, 30).iterdir()}
    assert restored_step(tmp_path) == 20
    note = json.loads((folder(tmp_path, 30) / "quarantine.json").read_text())
    assert note["reason"]
    assert {path: path.read_bytes() for path in before} == before  # evidence stays as it is
    assert manager(tmp_path).steps() == [10, 20]
    assert restored_step(tmp_path) == 20  # and the next start does not look again
    with pytest.raises((Corrupt, NotFound)):
        manager(tmp_path).restore(30)


def test_a_rank_that_only_reads_refuses_a_damaged_checkpoint_and_leaves_no_note(tmp_path, caplog):
    save(tmp_path, 10, 20)
    flip(folder(tmp_path, 20) / "state.pt", 2000)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    reader = CheckpointManager(LocalStore(tmp_path), MANY, "run", "a2", may_quarantine=False)
    with pytest.raises(Corrupt, match="step-00000020-a1 is not intact"):
        reader.restore(CheckpointName(step=20, attempt="a1"))
    found = reader.latest_intact()
    assert found is not None
    assert found.step == 10
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert caplog.text.count("not intact as it is read here: its sha256") == 2


def test_every_flipped_bit_of_a_manifest_is_noticed(tmp_path):
    save(tmp_path, 10)
    data = (folder(tmp_path, 10) / "manifest.json").read_bytes()
    good = Manifest.from_bytes(data)
    for offset in range(len(data)):
        broken = bytearray(data)
        broken[offset] ^= 1
        try:
            assert Manifest.from_bytes(bytes(broken)) == good  # white space became other white space
        except Corrupt:
            continue


def test_when_all_are_damaged_the_run_stops_with_every_reason(tmp_path):
    save(tmp_path, 10, 20)
    flip(folder(tmp_path, 10) / "state.pt", 2000)
    (folder(tmp_path, 20) / "state.pt").unlink()
    for _ in range(2):  # the second start meets the quarantine notes
        with pytest.raises(Corrupt, match="none of the 2 checkpoints") as error:
            manager(tmp_path).restore()
        assert "step-00000010-a1" in str(error.value)
        assert "step-00000020-a1" in str(error.value)
        assert "quarantine.json" in str(error.value)
    with pytest.raises(Corrupt):
        manager(tmp_path).latest_intact()


def test_a_named_step_never_falls_back(tmp_path):
    save(tmp_path, 10, 20)
    flip(folder(tmp_path, 20) / "state.pt", 2000)
    with pytest.raises(Corrupt, match="step-00000020-a1 is not intact: its sha256"):
        manager(tmp_path).restore(20)
    with pytest.raises(NotFound, match=r"no checkpoint of 15; committed steps: \[10, 20\]"):
        manager(tmp_path).restore(15)


def test_a_named_step_in_quarantine_is_checked_again(tmp_path):
    save(tmp_path, 10, 20)
    flip(folder(tmp_path, 20) / "state.pt", 2000)
    assert restored_step(tmp_path) == 10
    flip(folder(tmp_path, 20) / "state.pt", 2000)  # the disk was repaired
    found = manager(tmp_path).restore(20)
    assert found is not None
    assert found[0]["step"] == 20


def test_data_without_manifest_and_a_lying_hint_are_nothing(tmp_path):
    folder(tmp_path, 30).mkdir()
    torch.save(state(30), folder(tmp_path, 30) / "state.pt")
    (tmp_path / LATEST_KEY).write_text('{"step": 30}')
    (tmp_path / "step-twelve").mkdir()
    (tmp_path / "step-twelve" / "manifest.json").write_text("{}")
    assert manager(tmp_path).restore() is None
    save(tmp_path, 10)
    (tmp_path / LATEST_KEY).write_text("nonsense")
    assert restored_step(tmp_path) == 10


# --- pruning


def test_the_last_ones_and_the_best_stay(tmp_path):
    saver = manager(tmp_path, settings=CheckpointSettings(every_steps=1, keep_last=2, best_metric="val/loss"))
    for step, loss in [(10, 0.5), (20, 0.1), (30, float("nan")), (40, 0.4), (50, 0.3)]:
        saver.save(step, state(step), {"val/loss": loss}, {})
    assert saver.steps() == [20, 40, 50]
    assert not folder(tmp_path, 10).exists()


def test_the_one_resumed_from_stays(tmp_path):
    save(tmp_path, 10, 20)
    resumed = manager(tmp_path, "a2", settings=CheckpointSettings(every_steps=1, keep_last=1, keep_best=0))
    resumed.restore(10)
    resumed.save(30, state(30), {}, {})
    resumed.save(40, state(40), {}, {})
    assert resumed.steps() == [10, 40]


def test_after_going_back_the_new_save_stays_though_older_attempts_were_further(tmp_path):
    save(tmp_path, 10, 90)
    resumed = manager(tmp_path, "a2", settings=CheckpointSettings(every_steps=1, keep_last=1, keep_best=0))
    resumed.restore(10)
    resumed.save(20, state(20), {}, {})
    assert resumed.steps() == [10, 20, 90]


def test_a_damaged_newer_one_does_not_push_out_the_newest_intact(tmp_path):
    save(tmp_path, 10, 20)
    flip(folder(tmp_path, 20) / "state.pt", 2000)
    resumed = manager(tmp_path, "a2", settings=CheckpointSettings(every_steps=1, keep_last=1, keep_best=0))
    found = resumed.latest_intact()
    assert found is not None
    assert found.step == 10
    resumed.prune()
    assert resumed.steps() == [10]
    assert folder(tmp_path, 20).exists()  # quarantine is never deleted


def test_what_is_in_quarantine_takes_no_place_among_the_last_ones(tmp_path):
    save(tmp_path, 10, 20)
    flip(folder(tmp_path, 20) / "state.pt", 2000)
    assert restored_step(tmp_path) == 10  # an earlier start: this one's protection ends with it
    resumed = manager(tmp_path, "a2", settings=CheckpointSettings(every_steps=1, keep_last=2, keep_best=0))
    resumed.save(30, state(30), {}, {})
    assert resumed.steps() == [10, 30]
    assert folder(tmp_path, 20).exists()


def test_leftovers_of_dead_writers_go_after_a_day_not_before(tmp_path):
    save(tmp_path, 10)
    orphan, young, own = folder(tmp_path, 11, "dead"), folder(tmp_path, 12, "alive"), folder(tmp_path, 13, "a2")
    for at in (orphan, young, own):
        at.mkdir()
        (at / "state.pt").write_bytes(b"x")
        (at / ".manifest.json.00.tmp").write_bytes(b"x")
    long_ago = time.time() - ORPHAN_AGE_S - 60
    for path in (*orphan.iterdir(), own / "state.pt"):
        os.utime(path, (long_ago, long_ago))
    manager(tmp_path, "a2").prune()
    assert not orphan.exists()
    assert (own / "state.pt").exists()  # a save of this very start, however slow
    assert (young / "state.pt").exists()
    assert (young / ".manifest.json.00.tmp").exists()
    assert restored_step(tmp_path) == 10


class Overtaken(LocalStore):
    """A place where, just before the first read of one kind, another process saves step 20 and prunes step 10."""

    def __init__(self, root: Path, before: str) -> None:
        super().__init__(root)
        self.before = before

    def overtake(self, by: str) -> None:
        if by == self.before:
            self.before = ""
            wishes = CheckpointSettings(every_steps=1, keep_last=1, keep_best=0)
            manager(self.root, "other", settings=wishes).save(20, state(20), {}, {})

    def get_bytes(self, key):
        self.overtake("get_bytes")
        return super().get_bytes(key)

    def open(self, key):
        self.overtake("open")
        return super().open(key)


@pytest.mark.parametrize("before", ["get_bytes", "open"])
def test_a_reader_that_is_overtaken_looks_again_and_calls_nothing_corrupt(tmp_path, before):
    save(tmp_path, 10)
    store = Overtaken(tmp_path, before)
    found = CheckpointManager(store, MANY, "run", "reader").restore()
    assert store.before == "", "the other process never came"
    assert found is not None
    assert found[1].step == 20
    assert not list(tmp_path.rglob("quarantine.json"))


def test_a_reader_always_finds_an_intact_one_while_another_process_saves_and_prunes(tmp_path):
    saver = manager(tmp_path, settings=CheckpointSettings(every_steps=1, keep_last=1, keep_best=0))
    saver.save(1, state(1), {}, {})
    seen: list[int | None] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(restored_step(tmp_path))

    reader = threading.Thread(target=read)
    reader.start()
    for step in range(2, 102):
        saver.save(step, state(step), {}, {})
    done.set()
    reader.join()
    assert seen == sorted(step for step in seen if step is not None)
    assert len(set(seen)) > 3  # the reader did see the writer at work
    assert not list(tmp_path.rglob("quarantine.json"))
