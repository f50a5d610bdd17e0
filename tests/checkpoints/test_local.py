"""What LocalStore owes to the file system: the order of system calls, full disks, missing links, leftovers."""

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.store import Conflict, Denied, NotFound, StoreError

PROJECT = Path(__file__).resolve().parents[2]


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def run_python(code: str, *prefix: str) -> subprocess.CompletedProcess:
    command = [*prefix, sys.executable, "-c", code]
    environ = {"PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ, check=False)


def test_a_key_is_the_path_below_the_root(tmp_path):
    LocalStore(tmp_path / "a").commit("b/c.json", b"x")
    assert files(tmp_path) == ["a/b/c.json"]


def test_colleagues_may_read_what_the_umask_allows(tmp_path):
    before = os.umask(0o022)
    try:
        LocalStore(tmp_path).commit("m", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o644


def test_an_emptied_folder_goes(tmp_path):
    store = LocalStore(tmp_path)
    store.commit("a/x", b"")
    store.delete("a/x")
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_are_no_objects_and_go_when_old(tmp_path):
    store = LocalStore(tmp_path)
    store.commit("a/x", b"")
    old, new = tmp_path / "a" / ".x.0123.tmp", tmp_path / "a" / ".y.4567.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 100, time.time() - 100))
    assert [info.key for info in store.list()] == ["a/x"]
    store.sweep(older_than_s=50)
    assert files(tmp_path) == ["a/.y.4567.tmp", "a/x"]


def test_what_a_kill_leaves_of_a_folder_goes_when_old(tmp_path):
    store = LocalStore(tmp_path)
    store.commit("kept/x", b"")
    for name in ("empty", "half", "young"):
        (tmp_path / name).mkdir()
    (tmp_path / "half" / ".state.pt.0123.tmp").write_bytes(b"half")
    long_ago = time.time() - 100
    for path in (tmp_path / "half" / ".state.pt.0123.tmp", tmp_path / "empty", tmp_path / "kept"):
        os.utime(path, (long_ago, long_ago))
    store.sweep(older_than_s=50)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "young"]
    assert files(tmp_path) == ["kept/x"]


def test_without_hard_links_data_is_still_written_once(tmp_path, monkeypatch):
    def no_link(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "link", no_link)
    store = LocalStore(tmp_path)
    store.commit("m", b"1")
    store.commit("m", b"1")
    with pytest.raises(Conflict):
        store.commit("m", b"2")
    assert store.get_bytes("m") == b"1"
    assert files(tmp_path) == ["m"]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match="taken"):
        LocalStore(tmp_path / "taken").probe()
    with pytest.raises(NotFound):
        LocalStore(tmp_path / "taken").get_bytes("m")


def test_a_folder_that_may_not_be_written_is_denied(tmp_path):
    tmp_path.chmod(0o555)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("THIS USER MAY WRITE ANYWHERE: a place without permission was NOT tested")
        with pytest.raises(Denied, match="Permission denied"):
            LocalStore(tmp_path / "run").probe()
    finally:
        tmp_path.chmod(0o755)


def test_a_read_only_file_system_is_denied():
    if not Path("/proc/self").exists():
        pytest.skip("NO /proc: this was NOT tested")
    with pytest.raises(StoreError, match="/proc"):
        LocalStore(Path("/proc/self/checkpoints")).probe()


@pytest.mark.parametrize("limit", [0, 1_000, 300_000, 990_000])
def test_a_size_limit_in_the_middle_of_a_put_is_full_and_leaves_nothing(tmp_path, limit):
    code = f"""
import resource
from pathlib import Path
from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.store import Full
store = LocalStore(Path({str(tmp_path)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    store.put("step-1/state.pt", lambda file: [file.write(bytes(10_000)) for _ in range(100)])
except Full as error:
    print("full:", error)
"""
    done = run_python(code)
    assert done.stdout.startswith("full: cannot write"), done.stderr
    assert files(tmp_path) == []


def test_data_is_flushed_before_it_gets_its_name_and_the_name_before_put_returns(tmp_path):
    """Killing a process does not test fsync (the page cache survives), so the system calls are read instead."""
    if shutil.which("strace") is None:
        pytest.skip("STRACE ABSENT: the order of writes to disk was NOT tested")
    code = f"""
from pathlib import Path
from oct_foundation.checkpoints.local import LocalStore
LocalStore(Path({str(tmp_path / "run")!r})).put("step-1/state.pt", lambda file: file.write(b"x") and None)
"""
    done = run_python(code, "strace", "-f", "-y", "-e", "trace=mkdir,fsync,link,linkat,rename,renameat,renameat2")
    if "attach" in done.stderr and "Operation not permitted" in done.stderr:
        pytest.skip("STRACE NOT ALLOWED: the order of writes to disk was NOT tested")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    calls = [re.sub(r"^\[pid +\d+\] ", "", line).partition("(")[0] for line in lines]
    assert calls == ["mkdir", "fsync", "mkdir", "fsync", "fsync", calls[5], "fsync"], lines
    assert calls[5].startswith("link")
    for position, target in [(1, tmp_path), (3, tmp_path / "run"), (6, tmp_path / "run" / "step-1")]:
        assert f"<{target}>" in lines[position]
    assert ".state.pt." in lines[4]
