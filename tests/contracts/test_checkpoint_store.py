"""What every CheckpointStore promises, held against each implementation."""

import io
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from oct_foundation.checkpoints.gcs import GcsStore
from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.location import GcsUri
from oct_foundation.checkpoints.store import CheckpointStore, Conflict, Full, NotFound
from tests.faults.gcs_emulator import GcsEmulator, gcs

__all__ = ["gcs"]

KEY = "step-00000001-a/state.pt"


@pytest.fixture(params=["local", "gcs"])
def make_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], CheckpointStore]:
    """Opens the same place anew, as the next process would."""
    match request.param:
        case "local":
            return lambda: LocalStore(tmp_path / "runs" / "one")
        case "gcs":
            emulator: GcsEmulator = request.getfixturevalue("gcs")
            for name, value in emulator.environment.items():
                monkeypatch.setenv(name, value)
            emulator.proxy.inject()
            bucket = emulator.create_bucket(f"contract-{secrets.token_hex(6)}")
            return lambda: GcsStore(GcsUri(bucket=bucket, prefix="runs/one"))
    raise AssertionError(request.param)


@pytest.fixture
def store(make_store: Callable[[], CheckpointStore]) -> CheckpointStore:
    return make_store()


def writes(data: bytes) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        file.write(data)

    return write


def keys(store: CheckpointStore, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


def test_an_absent_place_is_empty_and_not_made_by_reading(store, tmp_path):
    assert store.list() == []
    with pytest.raises(NotFound):
        store.get_bytes(KEY)
    with pytest.raises(NotFound):
        store.open(KEY)
    assert list(tmp_path.iterdir()) == []


def test_what_is_put_comes_back_for_every_later_reader(store, make_store):
    data = os.urandom(3_000_000)
    store.put(KEY, writes(data))
    again = make_store()
    assert again.get_bytes(KEY) == data
    with again.open(KEY) as file:
        assert file.read() == data
        assert file.seek(5) == 5
        assert file.read(7) == data[5:12]
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")
    [info] = again.list()
    assert (info.key, info.size) == (KEY, len(data))


def test_put_never_overwrites(store):
    store.put(KEY, writes(b"first"))
    with pytest.raises(Conflict, match="exists already"):
        store.put(KEY, writes(b"second"))
    with pytest.raises(Conflict):  # nor with the same bytes: data is written once
        store.put(KEY, writes(b"first"))
    assert store.get_bytes(KEY) == b"first"
    assert keys(store) == [KEY]


def test_a_put_that_fails_half_way_leaves_nothing(store, tmp_path):
    def write(file: BinaryIO) -> None:
        file.write(b"x" * 100_000)
        raise RuntimeError("lost interest")

    with pytest.raises(RuntimeError, match="lost interest"):
        store.put(KEY, write)
    assert store.list() == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_full_disk_under_the_writer_is_called_full(store, tmp_path):
    def write(file: BinaryIO) -> None:
        file.write(b"x" * 100_000)
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    if not Path("/dev/full").exists():
        pytest.skip("NO /dev/full: a full disk was NOT tested")
    with pytest.raises(Full, match=r"state\.pt.*No space left"):
        store.put(KEY, write)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_nobody_sees_an_object_before_it_is_whole(store, make_store):
    def write(file: BinaryIO) -> None:
        file.write(b"half")
        file.flush()
        assert make_store().list() == []
        with pytest.raises(NotFound):
            make_store().get_bytes(KEY)
        file.write(b" and half")

    store.put(KEY, write)
    assert store.get_bytes(KEY) == b"half and half"


def test_commit_is_done_once_and_may_be_said_twice(store):
    store.commit("a/manifest.json", b"one")
    store.commit("a/manifest.json", b"one")
    with pytest.raises(Conflict, match="other bytes"):
        store.commit("a/manifest.json", b"two")
    assert store.get_bytes("a/manifest.json") == b"one"


def test_of_many_writers_of_one_key_exactly_one_wins(store):
    outcomes: list[str] = []

    def commit(name: str) -> None:
        try:
            store.commit("m", name.encode())
            outcomes.append(name)
        except Conflict:
            outcomes.append("lost")

    threads = [threading.Thread(target=commit, args=(f"writer {i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [outcome for outcome in outcomes if outcome != "lost"]
    assert len(outcomes) == 8
    assert [winner.encode() for winner in winners] == [store.get_bytes("m")]


def test_replace_takes_the_place_of_anything(store):
    store.replace("latest.json", b"1")
    store.replace("latest.json", b"22")
    assert store.get_bytes("latest.json") == b"22"
    assert keys(store) == ["latest.json"]


def test_list_goes_by_the_text_of_the_key_in_its_order(store):
    for key in ("step-2-b/x", "step-1-a/y", "step-1-a/x", "step-10-a/x", "latest.json"):
        store.commit(key, b"")
    assert keys(store) == ["latest.json", "step-1-a/x", "step-1-a/y", "step-10-a/x", "step-2-b/x"]
    assert keys(store, "step-1") == ["step-1-a/x", "step-1-a/y", "step-10-a/x"]
    assert keys(store, "step-1-a/") == ["step-1-a/x", "step-1-a/y"]
    assert keys(store, "other") == []


def test_delete_of_nothing_is_success_and_neighbours_stay(store):
    store.delete(KEY)
    store.commit("a/x", b"1")
    store.commit("a/y", b"2")
    store.delete("a/x")
    store.delete("a/x")
    assert keys(store) == ["a/y"]


def test_a_deleted_key_can_be_written_anew(store):
    store.put(KEY, writes(b"first"))
    store.delete(KEY)
    store.put(KEY, writes(b"second"))
    assert store.get_bytes(KEY) == b"second"


def test_probe_leaves_no_trace(store):
    store.probe()
    assert store.list() == []


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", ".hidden", "a/.tmp", "a b", "a\n", "ä"])
def test_keys_that_could_leave_the_place_are_refused(store, key):
    with pytest.raises(ValueError, match="store key"):
        store.commit(key, b"")
    with pytest.raises(ValueError, match="store key"):
        store.delete(key)


def test_the_room_is_that_of_the_disk_and_asking_makes_nothing(store, tmp_path):
    free = store.free_bytes()
    assert free is not None
    assert 0 < free <= max(shutil.disk_usage(folder).total for folder in (tmp_path, tempfile.gettempdir()))
    assert list(tmp_path.iterdir()) == []


def test_sweep_spares_objects(store):
    store.commit("a/x", b"1")
    store.sweep(older_than_s=-1.0)
    assert keys(store) == ["a/x"]
