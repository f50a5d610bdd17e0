"""Scans in a bucket: the same set as from disk, whatever the network does; and clear words where it cannot."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import data_setup.gcs
from data_setup.errors import BadFile, Reason, StopPreparing
from data_setup.gcs import crc32c, download, fetch, list_files, mirror
from data_setup.index import PreparedSet
from data_setup.phantom import PhantomSettings, write_phantoms
from data_setup.prepare import PrepareSettings, prepare
from data_setup.sources import DirectorySource
from data_setup.tables import ManifestSource
from tests.faults.fault_proxy import Fault
from tests.faults.gcs_emulator import GcsEmulator, gcs

__all__ = ["gcs"]

PROJECT = Path(__file__).resolve().parents[2]
SETTINGS = PrepareSettings(image_size=(4, 16, 16), val_fraction=0.3)
Write = Callable[..., Path]


@pytest.fixture
def bucket(gcs: GcsEmulator, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty bucket, reached through the proxy, that waits no seconds between attempts."""
    for name, value in gcs.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(data_setup.gcs, "_PAUSE_S", 0.0)
    data_setup.gcs._filesystem.cache_clear()
    gcs.proxy.inject()
    yield gcs.create_bucket(f"b{abs(hash(request.node.name)) % 10**9}-{os.getpid()}")
    data_setup.gcs._filesystem.cache_clear()


@pytest.fixture
def scans(tmp_path: Path, write_opt: Write) -> Path:
    """Six scans of three patients, one of them empty, one cut."""
    root = tmp_path / "scans"
    rng = np.random.default_rng(5)
    for number in range(6):
        pixels = rng.integers(0, 256, (4 + number, 64, 96), dtype=np.uint8)
        write_opt(pixels=pixels, patient=f"TEST-{number // 2}", path=root / f"p{number // 2}" / f"{number}.dcm")
    (root / "p0" / "0.dcm").write_bytes(b"")
    cut = root / "p1" / "2.dcm"
    cut.write_bytes(cut.read_bytes()[:9000])
    return root


def upload(gcs: GcsEmulator, bucket: str, root: Path) -> str:
    for path in sorted(root.rglob("*")):
        if path.is_file():
            gcs.put(bucket, path.relative_to(root.parent).as_posix(), path.read_bytes())
    return f"gs://{bucket}/{root.name}"


def same_key(folder: Path, other: Path) -> Path:
    other.mkdir()
    (other / ".source_key").write_bytes((folder / ".source_key").read_bytes())
    return other


def test_a_bucket_gives_the_set_that_the_folder_gives(
    gcs: GcsEmulator, bucket: str, scans: Path, tmp_path: Path
) -> None:
    uri = upload(gcs, bucket, scans)
    local = prepare(DirectorySource(scans), tmp_path / "local", SETTINGS, 1)
    remote = prepare(DirectorySource(uri), same_key(tmp_path / "local", tmp_path / "remote"), SETTINGS, 2)
    assert remote.bad_by_reason() == {"empty_file": 1, "pixel_data_truncated": 1}
    assert [replace(row, bytes=None, crc32c=None) for row in remote.rows] == list(local.rows)
    by_size = {path.stat().st_size: crc32c(path.read_bytes()) for path in scans.rglob("*.dcm")}
    assert {row.bytes: row.crc32c for row in remote.rows} == by_size
    assert not list((tmp_path / "remote").rglob("*.tmp*"))


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(match="GET .*alt=media", action="cut", after=4000, times=2)],
        [Fault(match="GET .*alt=media", action="status", status=503, times=2)],
        [Fault(match="GET .*alt=media", action="status", status=429, times=1)],
        [Fault(match="GET .*alt=media", action="flip", after=5000, times=2)],
        [Fault(match="GET .*alt=media", action="truncate", after=5000, times=2)],
        [Fault(match="GET .*alt=media", action="slow", bytes_per_s=60_000, times=1)],
        [Fault(match="GET .*/o[/?]", action="status", status=503, times=1)],
    ],
    ids=["cut", "503", "429", "bit flip", "truncated", "slow", "503 on listing"],
)
def test_what_the_network_does_once_or_twice_leaves_no_trace(
    gcs: GcsEmulator, bucket: str, scans: Path, tmp_path: Path, faults: list[Fault]
) -> None:
    uri = upload(gcs, bucket, scans)
    undisturbed = prepare(DirectorySource(uri), tmp_path / "calm", SETTINGS, 1)
    gcs.proxy.inject(*faults)
    disturbed = prepare(DirectorySource(uri), same_key(tmp_path / "calm", tmp_path / "storm"), SETTINGS, 1)
    assert gcs.proxy.unused() == []
    assert disturbed.rows == undisturbed.rows


def test_a_bucket_that_is_silent_is_told_of_once_and_one_that_answers_is_not(
    gcs: GcsEmulator, bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gcs.put(bucket, "scans/one", b"1")
    assert len(list_files(f"gs://{bucket}/scans")) == 1
    assert caplog.records == []
    monkeypatch.setattr(data_setup.gcs, "_QUIET_S", 0.3)
    gcs.proxy.inject(Fault(match="GET .*/o[/?]", action="delay", seconds=0.6))
    assert len(list_files(f"gs://{bucket}/scans")) == 1
    assert gcs.proxy.unused() == []
    [line] = [record.getMessage() for record in caplog.records]
    assert f"bucket gs://{bucket}: no answer for 0 s; it is asked again until about " in line


def test_an_object_that_always_arrives_wrong_is_a_transfer_mismatch(
    gcs: GcsEmulator, bucket: str, tmp_path: Path
) -> None:
    gcs.put(bucket, "scan.dcm", bytes(20_000))
    (file,) = list_files(f"gs://{bucket}")
    assert file.location is not None
    for action in ("flip", "truncate"):
        gcs.proxy.inject(Fault(match="alt=media", action=action, after=700, times=3))
        with pytest.raises(BadFile) as caught:
            fetch(file.location, file.stated, tmp_path / "copy")
        assert caught.value.reason is Reason.TRANSFER_MISMATCH
        assert gcs.proxy.unused() == []
        assert not (tmp_path / "copy").exists()


def test_a_replaced_or_deleted_object_is_a_missing_file(gcs: GcsEmulator, bucket: str, tmp_path: Path) -> None:
    gcs.put(bucket, "a.dcm", b"one")
    gcs.put(bucket, "b.dcm", b"two")
    one, two = sorted(list_files(f"gs://{bucket}"), key=lambda file: file.key)
    gcs.put(bucket, "a.dcm", b"other")
    gcs.delete(bucket, "b.dcm")
    for file in (one, two):
        assert file.location is not None
        with pytest.raises(BadFile, match="missing_file"):
            fetch(file.location, file.stated, tmp_path / "copy")


def test_a_revoked_permission_stops_with_its_name_and_the_same_call_goes_on(
    gcs: GcsEmulator, bucket: str, scans: Path, tmp_path: Path
) -> None:
    uri = upload(gcs, bucket, scans)
    gcs.proxy.inject(Fault(match="GET .*alt=media", action="status", status=403, skip=3, times=None))
    with pytest.raises(StopPreparing, match=r"refuses access.*storage\.objects\.get"):
        prepare(DirectorySource(uri), tmp_path / "set", SETTINGS, 1)
    gcs.proxy.inject()
    done: list[int] = []
    prepared = prepare(DirectorySource(uri), tmp_path / "set", SETTINGS, 1, lambda n, total, bad: done.append(n))
    assert done == [4, 5, 6]  # three were finished before
    assert len(prepared.rows) == 6


def test_a_vanished_bucket_stops_and_blames_no_file(gcs: GcsEmulator, bucket: str, scans: Path, tmp_path: Path) -> None:
    uri = upload(gcs, bucket, scans)
    gcs.proxy.inject(Fault(match=f"GET .*{bucket}", action="status", status=404, skip=2, times=None))
    with pytest.raises(StopPreparing, match="does not exist, or not any more"):
        prepare(DirectorySource(uri), tmp_path / "set", SETTINGS, 1)


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("gs://no-such-bucket-here", StopPreparing, "does not exist"),
        ("gs://None/scans", ValueError, "names no bucket"),
        ("gs://", ValueError, "names no bucket"),
    ],
)
def test_a_wrong_bucket_is_named_at_once(bucket: str, uri: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        list_files(uri)


def test_an_empty_folder_of_a_bucket_is_no_source(bucket: str) -> None:
    with pytest.raises(ValueError, match="holds no file"):
        DirectorySource(f"gs://{bucket}/nothing/here").files()


def test_a_manifest_in_a_bucket_states_what_the_bucket_lists(
    gcs: GcsEmulator, bucket: str, tmp_path: Path, write_opt: Write
) -> None:
    scan = write_opt().read_bytes()
    gcs.put(bucket, "readi/retinal_oct/structural_oct/a.dcm", scan)
    manifest = (
        "person_id\tfilepath\n1001\t/retinal_oct/structural_oct/a.dcm\n1002\t/retinal_oct/structural_oct/gone.dcm\n"
    )
    gcs.put(bucket, "readi/retinal_oct/manifest.tsv", manifest.encode())
    gcs.put(bucket, "readi/participants.tsv", b"person_id\trecommended_split\n1001\ttrain\n")
    prepared = prepare(ManifestSource(f"gs://{bucket}/readi"), tmp_path / "set", SETTINGS, 1)
    assert prepared.bad_by_reason() == {"missing_file": 1}
    (row,) = prepared.accepted("train")
    assert (row.bytes, row.crc32c) == (len(scan), crc32c(scan))


def test_a_set_travels_through_a_bucket_unchanged(gcs: GcsEmulator, bucket: str, scans: Path, tmp_path: Path) -> None:
    prepared = prepare(DirectorySource(scans), tmp_path / "set", SETTINGS, 1)
    volumes = [f"{prepared.info['version']}/volumes/{row.id}.npy" for row in prepared.accepted()]
    names = [*volumes, "index.jsonl", "dataset.json"]
    assert mirror(tmp_path / "set", names, f"gs://{bucket}/out") == len(names)
    assert mirror(tmp_path / "set", names, f"gs://{bucket}/out") == 0
    assert gcs.names(bucket) == sorted(f"out/{name}" for name in names)
    gcs.proxy.inject(Fault(match="GET .*alt=media", action="flip", after=100, times=2))
    copy = PreparedSet.load(download(f"gs://{bucket}/out", tmp_path / "copy"))
    assert gcs.proxy.unused() == []
    assert copy.rows == prepared.rows
    for row in copy.accepted():
        np.testing.assert_array_equal(copy.volume(row), prepared.volume(row))


def test_the_marker_comes_last_so_that_a_half_copied_set_is_none(
    gcs: GcsEmulator, bucket: str, scans: Path, tmp_path: Path
) -> None:
    prepared = prepare(DirectorySource(scans), tmp_path / "set", SETTINGS, 1)
    volumes = [f"{prepared.info['version']}/volumes/{row.id}.npy" for row in prepared.accepted()]
    gcs.proxy.inject(Fault(match="POST .*upload", action="status", status=403, skip=2, times=None))
    with pytest.raises(StopPreparing, match="refuses access"):
        mirror(tmp_path / "set", [*volumes, "index.jsonl", "dataset.json"], f"gs://{bucket}/out")
    assert "out/dataset.json" not in gcs.names(bucket)
    with pytest.raises(ValueError, match=r"no prepared set|holds nothing"):
        PreparedSet.load(download(f"gs://{bucket}/out", tmp_path / "copy"))


def test_crc32c_is_that_of_the_check_string() -> None:
    """RFC 3720, appendix B.4: crc32c of 32 zero bytes is 0x8A9136AA; of "123456789" 0xE3069283."""
    assert crc32c(bytes(32)) == "ipE2qg=="
    assert crc32c(b"123456789") == "4waSgw=="
    assert json.dumps(crc32c(b"")) == '"AAAAAA=="'


def test_the_command_prepares_from_a_bucket_into_a_bucket_and_a_run_trains_from_there(
    gcs: GcsEmulator, bucket: str, tmp_path: Path
) -> None:
    """Also that a second call copies nothing, and that the bucket never gets the key of the ids."""
    for path in write_phantoms(tmp_path / "dicom", PhantomSettings(num_volumes=5, scale=0.3)):
        gcs.put(bucket, f"scans/{path.name}", path.read_bytes())
    environment = {**os.environ, **gcs.environment, "OMP_NUM_THREADS": "1"}

    def octfm(*arguments: str) -> str:
        command = [sys.executable, "-m", "pretraining.cli", *arguments]
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    size, out = "model.image_size=[4,32,32]", f"gs://{bucket}/set"
    prepare_it = ("prepare", f"gs://{bucket}/scans", "--out", out, "--work", str(tmp_path / "work"), size)
    assert "5 volumes of 5 files" in octfm(*prepare_it)
    assert "0 were not there yet" in octfm(*prepare_it)
    assert not [name for name in gcs.names(bucket, "set/") if "key" in name or "journal" in name]
    run = ("train", "configs/smoke_test.yaml", "--device", "cpu", "max_steps=3", "wandb.mode=disabled")
    data = ("data.source=prepared", f"data.root={out}", f"data.cache_dir={tmp_path / 'cache'}", size)
    assert "step 3/3" in octfm(*run, *data, f"output_dir={tmp_path / 'run'}")
