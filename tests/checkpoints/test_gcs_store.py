"""A bucket that misbehaves: what was said to be stored is stored, nothing else is said, and no call outlives its
deadline by much.
"""

import os
import re
import resource
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from oct_foundation.checkpoints.gcs import GcsStore
from oct_foundation.checkpoints.location import GcsUri
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.retention import CheckpointSettings
from oct_foundation.checkpoints.store import Conflict, Corrupt, Denied, Full, NotFound, StoreError, Unavailable
from tests.faults.fault_proxy import Fault
from tests.faults.gcs_emulator import GcsEmulator, gcs

__all__ = ["gcs"]

KEY = "step-00000001-a/state.pt"
LARGE = 9 << 20  # beyond 8 MiB the client uploads in chunks, resumably


@pytest.fixture
def store(gcs: GcsEmulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsStore]:
    """An empty prefix of a bucket of its own; its deadline is for a busy machine, no fault here needs it."""
    for name, value in gcs.environment.items():
        monkeypatch.setenv(name, value)
    gcs.proxy.inject()
    yield GcsStore(GcsUri(bucket=gcs.create_bucket(f"store-{secrets.token_hex(6)}"), prefix="run"), deadline_s=60)
    gcs.proxy.inject()


def writes(data: bytes) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        file.write(data)

    return write


@pytest.mark.parametrize("size", [1000, LARGE])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(match="^(POST|PUT) .*upload", action="status", status=503, times=2),
        Fault(match="^(POST|PUT) .*upload", action="status", status=429, times=1),
        Fault(match="^(POST|PUT) .*upload", action="cut", after=300, times=1),
        Fault(match="^(POST|PUT) .*upload", action="lose_reply", times=1),
    ],
    ids=["503", "429", "cut", "lost reply"],
)
def test_an_upload_through_trouble_is_whole_and_once(
    gcs: GcsEmulator, store: GcsStore, fault: Fault, size: int
) -> None:
    data = os.urandom(size)
    gcs.proxy.inject(fault)
    store.put(KEY, writes(data))
    assert gcs.proxy.unused() == []
    assert [(info.key, info.size) for info in store.list()] == [(KEY, size)]
    assert store.get_bytes(KEY) == data


@pytest.mark.parametrize("action", ["status", "cut", "lose_reply"])
def test_a_commit_through_trouble_is_there_and_may_be_said_again(
    gcs: GcsEmulator, store: GcsStore, action: str, caplog: pytest.LogCaptureFixture
) -> None:
    gcs.proxy.inject(Fault(match="^POST .*upload", action=action, after=10))  # type: ignore[arg-type]
    store.commit("m", b"one")
    assert gcs.proxy.unused() == []
    assert caplog.records == [], "trouble of a second is not worth a line"
    store.commit("m", b"one")
    with pytest.raises(Conflict, match="other bytes"):
        store.commit("m", b"two")
    assert store.get_bytes("m") == b"one"


@pytest.mark.parametrize("action", ["cut", "status"])
def test_a_download_through_trouble_is_whole(gcs: GcsEmulator, store: GcsStore, action: str) -> None:
    data = os.urandom(2_000_000)
    store.put(KEY, writes(data))
    gcs.proxy.inject(Fault(match="alt=media", action=action, after=700_000))  # type: ignore[arg-type]
    with store.open(KEY) as file:
        assert file.read() == data
    assert gcs.proxy.unused() == []


@pytest.mark.parametrize("action", ["flip", "truncate"])
def test_a_download_that_arrives_wrong_is_corrupt_and_leaves_nothing(
    gcs: GcsEmulator, store: GcsStore, action: str
) -> None:
    store.put(KEY, writes(os.urandom(100_000)))
    gcs.proxy.inject(Fault(match="alt=media", action=action, after=5000, times=None))  # type: ignore[arg-type]
    with pytest.raises((Corrupt, Unavailable)):
        store.open(KEY)
    with pytest.raises((Corrupt, Unavailable)):
        store.get_bytes(KEY)
    assert gcs.proxy.unused() == []


def test_a_lost_reply_of_a_delete_is_a_delete(gcs: GcsEmulator, store: GcsStore) -> None:
    store.commit("a", b"1")
    gcs.proxy.inject(Fault(match="^DELETE", action="lose_reply"))
    store.delete("a")
    assert gcs.proxy.unused() == []
    assert store.list() == []


@pytest.mark.parametrize("call", ["put", "commit", "replace", "list", "delete", "get_bytes", "open", "probe"])
def test_a_revoked_permission_is_said_at_once(gcs: GcsEmulator, store: GcsStore, call: str) -> None:
    gcs.proxy.inject(Fault(match=".", action="status", status=403, times=None))
    started = time.monotonic()
    arguments = {"put": (KEY, writes(b"x")), "commit": ("a", b""), "replace": ("a", b""), "list": (), "probe": ()}
    with pytest.raises(Denied, match=f"{store}"):
        getattr(store, call)(*arguments.get(call, ("a",)))
    assert time.monotonic() - started < 30, "it has waited for the deadline"


@pytest.mark.parametrize("call", ["commit", "get_bytes", "list"])
def test_a_silent_service_is_given_up_at_the_deadline_and_one_line_says_until_when(
    gcs: GcsEmulator, store: GcsStore, call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gcs.proxy.inject(Fault(match=".", action="status", status=503, times=None))
    monkeypatch.setattr("oct_foundation.checkpoints.gcs._QUIET_S", 0.0)
    hasty = GcsStore(store.uri, deadline_s=3)
    started = time.monotonic()
    with pytest.raises(Unavailable):
        getattr(hasty, call)(*{"commit": ("a", b""), "get_bytes": ("a",), "list": ()}[call])
    assert time.monotonic() - started < 30
    [line] = [record.getMessage() for record in caplog.records if record.name == "oct_foundation.checkpoints.gcs"]
    assert re.fullmatch(
        rf"cannot \w+ {store}\S* yet \(\w+: .+\); it is tried again until \d\d:\d\d:\d\d at the latest", line
    )


def test_a_bucket_that_does_not_exist_is_not_found(gcs: GcsEmulator, store: GcsStore) -> None:
    absent = GcsStore(GcsUri(bucket="no-such-bucket-here", prefix=""), deadline_s=60)
    for call in (absent.probe, absent.list, lambda: absent.put(KEY, writes(b"x" * 100))):
        with pytest.raises(NotFound, match="no-such-bucket-here"):
            call()


def test_a_save_through_trouble_is_restored_and_a_failed_one_leaves_the_last(gcs: GcsEmulator, store: GcsStore) -> None:
    manager = CheckpointManager(store, CheckpointSettings(keep_last=2), run_id="r")
    weights = {"model": {"w": torch.arange(1000.0)}}
    gcs.proxy.inject(
        Fault(match="^POST .*upload", action="status", status=503),
        Fault(match="^POST .*upload", action="lose_reply", skip=1),
    )
    manager.save(1, weights, {"val/loss": 1.0}, {})
    assert gcs.proxy.unused() == []
    gcs.proxy.inject(Fault(match="^POST .*upload", action="status", status=403, times=None))
    with pytest.raises(StoreError):
        manager.save(2, weights, {"val/loss": 1.0}, {})
    gcs.proxy.inject()
    found = CheckpointManager(store, CheckpointSettings(), run_id="r").restore()
    assert found is not None
    assert found[1].step == 1
    assert torch.equal(found[0]["model"]["w"], weights["model"]["w"])


@pytest.mark.parametrize("file", ["state.pt", "manifest.json"])
def test_one_download_that_arrives_wrong_puts_nothing_into_quarantine(
    gcs: GcsEmulator, store: GcsStore, file: str
) -> None:
    saver = CheckpointManager(store, CheckpointSettings(keep_last=2), "r")
    for step in (1, 2):
        saver.save(step, {"w": torch.full((1000,), float(step))}, {}, {})
    gcs.proxy.inject(Fault(match=rf"{file}\?alt=media", action="flip", after=100))
    found = CheckpointManager(store, CheckpointSettings(), "r").restore()
    assert gcs.proxy.unused() == []
    assert found is not None
    assert found[1].step == 2
    assert not [info for info in store.list() if "quarantine" in info.key]


def test_a_full_spool_leaves_nothing_while_its_error_is_kept(
    store: GcsStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(Full) as error:
            store.put(KEY, writes(b"x" * 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value is not None  # BackgroundSaver keeps it, and with it the frames of the failed call
    assert list(tmp_path.iterdir()) == []
