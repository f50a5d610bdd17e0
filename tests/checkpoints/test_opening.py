"""A place is opened and tried before training: what is useless is refused by key, with what mends it."""

import logging
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oct_foundation.checkpoints.gcs import GcsStore
from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.location import GcsUri, LocalPath, parse_ckpt_dir
from oct_foundation.checkpoints.mounts import Mount, doubt_about, mount_of
from oct_foundation.checkpoints.opening import open_store, probe
from oct_foundation.checkpoints.sharing import ranks_without
from oct_foundation.checkpoints.store import Denied, NotFound, StoreError, Unavailable
from pretraining.sections import CheckpointSection
from tests.checkpoints.small_disk import mounted
from tests.faults.fault_proxy import Fault
from tests.faults.gcs_emulator import GcsEmulator, gcs

__all__ = ["gcs"]

PROJECT = Path(__file__).resolve().parents[2]
NOBODY = 65534


def start(ckpt_dir: str | None, output_dir: Path) -> Path:
    """What a start does with ckpt_dir: the folder that it may use then."""
    location = CheckpointSection(ckpt_dir=ckpt_dir).location(output_dir)
    assert isinstance(location, LocalPath)
    probe(open_store(location))
    return location.path


# --- ckpt_dir, case by case


@pytest.mark.parametrize("value", [None, "", "None", "none", "null", "~", " "])
def test_an_unset_ckpt_dir_is_the_folder_of_the_run(value, tmp_path):
    assert start(value, tmp_path / "run") == tmp_path / "run" / "checkpoints"


def test_a_relative_run_folder_counts_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert start(None, Path("run")) == tmp_path / "run" / "checkpoints"


def test_a_relative_ckpt_dir_too_and_what_is_missing_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert start("not/yet/there", tmp_path / "run") == tmp_path / "not" / "yet" / "there"
    assert (tmp_path / "not" / "yet" / "there").is_dir()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["gs://None/x", "gs:///x"])
def test_an_unset_bucket_is_refused_when_the_configuration_is_read(value):
    with pytest.raises(ValueError, match=rf"checkpoint\.ckpt_dir is '{value}': .* never set; allowed: a local path"):
        CheckpointSection(ckpt_dir=value)


def test_a_read_only_disk_is_denied_with_the_way_out(tmp_path):
    with mounted(tmp_path / "disk", "ro") as disk, pytest.raises(Denied) as refusal:
        start(str(disk / "x"), tmp_path)
    assert f"checkpoint.ckpt_dir={disk / 'x'} cannot be used: cannot commit" in str(refusal.value)
    assert "Read-only file system. Let this user write there, or name a folder" in str(refusal.value)


def test_a_folder_of_another_user_is_denied(tmp_path):
    """Permission bits do not bind root, so the start is made by a child of another user."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    code = f"""
import os
from pathlib import Path
from oct_foundation.checkpoints.location import LocalPath
from oct_foundation.checkpoints.opening import open_store, probe
from oct_foundation.checkpoints.store import Denied
if os.getuid() == 0:
    os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
else:
    os.chmod({str(tmp_path)!r}, 0o555)
try:
    probe(open_store(LocalPath(path=Path({str(tmp_path / "x")!r}))))
except Denied as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={"PYTHONPATH": str(PROJECT)}
    )
    tmp_path.chmod(0o755)
    assert "Permission denied. Let this user write there" in done.stdout, done.stderr


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotFound, match=r"checkpoint\.ckpt_dir=.*file/x cannot be used.* name another folder"):
        start(str(tmp_path / "file" / "x"), tmp_path)


@pytest.fixture
def bucket(gcs: GcsEmulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsUri]:
    for name, value in gcs.environment.items():
        monkeypatch.setenv(name, value)
    gcs.proxy.inject()
    yield GcsUri(bucket=gcs.create_bucket(f"open-{secrets.token_hex(6)}"), prefix="run")
    gcs.proxy.inject()


def test_a_bucket_is_opened_and_left_empty(bucket):
    store = open_store(bucket)
    probe(store)
    assert isinstance(store, GcsStore)
    assert store.list() == []


def test_a_bucket_without_permission_is_denied_with_the_role_that_is_missing(bucket, gcs):
    gcs.proxy.inject(Fault(match=".", action="status", status=403, times=None))
    with pytest.raises(Denied) as refusal:
        probe(open_store(bucket))
    assert gcs.proxy.unused() == []
    assert f"checkpoint.ckpt_dir={bucket} cannot be used" in str(refusal.value)
    assert f"roles/storage.objectUser on gs://{bucket.bucket}" in str(refusal.value)


def test_a_missing_bucket_is_not_found_with_the_command_that_makes_it(bucket):
    with pytest.raises(NotFound, match=r"no-such-bucket-here cannot be used.*buckets create gs://no-such"):
        probe(open_store(GcsUri(bucket="no-such-bucket-here", prefix="")))


# --- mounts

MOUNTS = """\
/dev/root / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
gcsfuse /mnt/my\\040bucket fuse.gcsfuse rw 0 0
server:/export /mnt/nfs nfs4 rw 0 0
tmpfs /mnt/nfs/fast tmpfs rw 0 0
overlay /over ext4 rw 0 0
server:/export /over nfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "point", "kind"),
    [
        ("/data/run", "/", "ext4"),
        ("/mnt/my bucket/run", "/mnt/my bucket", "fuse.gcsfuse"),
        ("/mnt/my", "/", "ext4"),
        ("/mnt/nfs/run", "/mnt/nfs", "nfs4"),
        ("/mnt/nfs/fast/run", "/mnt/nfs/fast", "tmpfs"),
        ("/mnt/nfsx", "/", "ext4"),
        ("/over/run", "/over", "nfs"),
    ],
)
def test_the_deepest_and_last_mount_counts(path, point, kind):
    assert mount_of(Path(path), MOUNTS) == Mount(Path(point), kind)


def test_without_a_table_there_is_no_mount():
    assert mount_of(Path("/data"), "") is None


def test_fuse_and_network_mounts_are_doubted_local_disks_are_not():
    assert "gs://bucket/prefix" in str(doubt_about(Mount(Path("/m"), "fuse.gcsfuse")))
    assert "network mount (nfs4)" in str(doubt_about(Mount(Path("/m"), "nfs4")))
    for kind in ("ext4", "xfs", "btrfs", "tmpfs", "overlay"):
        assert doubt_about(Mount(Path("/m"), kind)) is None


def test_a_folder_of_a_local_disk_is_opened_without_a_word(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        open_store(LocalPath(path=tmp_path))
    assert caplog.text == ""
    assert list(tmp_path.iterdir()) == []


# --- several hosts


def on_all_ranks(stores: list[Any]) -> list[list[int] | StoreError]:
    """What each rank gets when all ask at once, in threads that gather like processes do."""
    slots: list[Any] = [None] * len(stores)
    barrier = threading.Barrier(len(stores))
    answers: list[Any] = [None] * len(stores)

    def gather_of(rank: int) -> Callable[[Any], list[Any]]:
        def gather(value: Any) -> list[Any]:
            barrier.wait(30)
            slots[rank] = value
            barrier.wait(30)
            return list(slots)

        return gather

    def ask(rank: int) -> None:
        answers[rank] = ranks_without(stores[rank], gather_of(rank), rank)

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_ranks_that_share_the_folder_all_see_it_and_nothing_is_left(tmp_path):
    assert on_all_ranks([LocalStore(tmp_path) for _ in range(3)]) == [[], [], []]
    assert list(tmp_path.iterdir()) == []


def test_ranks_of_a_host_with_a_folder_of_its_own_are_named_on_all_ranks(tmp_path):
    here, there = LocalStore(tmp_path / "here"), LocalStore(tmp_path / "there")
    assert on_all_ranks([here, here, there, there]) == [[2, 3]] * 4


class Unreachable(LocalStore):
    """A folder whose server is away."""

    def get_bytes(self, key: str) -> bytes:
        raise Unavailable("out for lunch")


def test_a_rank_that_cannot_read_is_named_rather_than_left_waiting_for(tmp_path):
    assert on_all_ranks([LocalStore(tmp_path), Unreachable(tmp_path)]) == [[1], [1]]


def test_an_address_reads_the_same_wherever_it_is_opened(tmp_path):
    location = parse_ckpt_dir(str(tmp_path))
    assert isinstance(location, LocalPath)
    assert str(open_store(location)) == str(tmp_path) == os.path.abspath(tmp_path)
