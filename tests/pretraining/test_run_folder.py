"""The folder of a run on disks that refuse it, its id, and the log that hears the last words."""

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretraining.run_folder import RunFolder, write_atomic
from tests.checkpoints.small_disk import mounted

PROJECT = Path(__file__).resolve().parents[2]


def created(path: Path, config: str = "a: 1\n") -> RunFolder:
    folder = RunFolder(path)
    folder.create(config)
    return folder


def test_the_id_stays_with_the_folder_wherever_it_lies(tmp_path):
    first = created(tmp_path / "run").run_id
    assert re.fullmatch("[0-9a-f]{12}", first)
    assert created(tmp_path / "run").run_id == first
    (tmp_path / "run").rename(tmp_path / "moved")
    assert created(tmp_path / "moved").run_id == first
    assert created(tmp_path / "run").run_id != first  # another run at the path of the first


def test_a_folder_of_an_older_version_gets_an_id(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.run_id == folder.run_id


def test_an_id_that_is_none_is_refused_by_file(tmp_path):
    (tmp_path / "run_id").write_text("")
    with pytest.raises(ValueError, match="run_id holds ''; 12 hex digits are allowed"):
        created(tmp_path)


def _id_of(path: Path) -> str:
    return created(path).run_id


def test_processes_that_start_together_read_one_id(tmp_path):
    with multiprocessing.get_context("fork").Pool(8) as pool:
        for attempt in range(20):
            assert len(set(pool.map(_id_of, [tmp_path / str(attempt)] * 8, chunksize=1))) == 1
    assert {path.name for path in (tmp_path / "0").iterdir()} == {"config.yaml", "run_id"}


def test_a_disk_without_hard_links_has_an_id_too(tmp_path, monkeypatch):
    def no_link(source: str, target: str) -> None:
        raise PermissionError(1, "Operation not permitted")  # what exFAT says

    monkeypatch.setattr(os, "link", no_link)
    assert created(tmp_path).run_id == created(tmp_path).run_id


def test_a_place_that_is_no_folder_is_the_users_to_change(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(ValueError, match=r"cannot be written \(.*\); set output_dir="):
            created(path)


def test_a_full_disk_is_not_a_wrong_configuration_and_is_left_clean(tmp_path):
    with mounted(tmp_path / "disk") as disk:
        folder = created(disk / "run")
        before = folder.config.read_text()
        with (disk / "other").open("wb") as other:
            os.posix_fallocate(other.fileno(), 0, shutil.disk_usage(disk).free)
        with pytest.raises(OSError, match=r"No space left on device.*free some space") as caught:
            created(disk / "new", "a: 2\n" * 9999)
        assert not isinstance(caught.value, ValueError)
        with pytest.raises(OSError, match="No space left on device"):
            folder.replace_config("a: 2\n" * 9999)
        assert folder.config.read_text() == before
        assert {path.name for path in folder.path.iterdir()} == {"config.yaml", "run_id"}


def test_a_start_changes_the_record_of_a_run_only_when_it_is_accepted(tmp_path):
    folder = created(tmp_path)
    folder.create("a: 2\n")
    assert folder.config.read_text() == "a: 1\n"
    folder.replace_config("a: 2\n")
    assert folder.config.read_text() == "a: 2\n"


def test_an_atomic_file_is_readable_by_others(tmp_path):
    write_atomic(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


TALKER = """
import multiprocessing
import os
import sys
from pathlib import Path
from pretraining.run_folder import RunFolder, close_tee
tee = RunFolder(Path(sys.argv[1])).tee_output()
Path(sys.argv[1], "tee.pid").write_text(str(tee.pid))
loader_worker = multiprocessing.get_context("forkserver").Process(target=os.getpid)
loader_worker.start()
loader_worker.join()
print("first", flush=True)
sys.stdin.readline()
try:
    print("last", flush=True)
except BrokenPipeError:
    pass
close_tee(tee)
Path(sys.argv[1], "tee.code").write_text(str(tee.returncode))
sys.exit(75)
"""


def talker(folder: Path, stdout: int) -> "subprocess.Popen[str]":
    """A process that has said its first word into the log and waits for a line."""
    process = subprocess.Popen([sys.executable, "-c", TALKER, str(folder)], cwd=PROJECT, text=True,
                               stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE)  # fmt: skip
    deadline = time.monotonic() + 120
    while not (folder / "train.log").exists() or "first" not in (folder / "train.log").read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    return process


@pytest.mark.skipif(shutil.which("tee") is None, reason="NO tee: the log was NOT tested")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_log_hears_what_is_said_after_a_signal_to_every_process(tmp_path, number):
    process = talker(tmp_path, subprocess.PIPE)
    os.kill(int((tmp_path / "tee.pid").read_text()), number)
    shown, errors = process.communicate("go on\n", timeout=120)
    assert (process.returncode, shown, errors) == (75, "first\nlast\n", "")
    assert (tmp_path / "train.log").read_text() == "first\nlast\n"
    assert (tmp_path / "tee.code").read_text() == "0", "it was not waited for, but killed after 10 s"


def test_the_log_goes_on_when_nobody_reads_the_output_any_more(tmp_path):
    reader, writer = os.pipe()
    process = talker(tmp_path, writer)
    os.close(writer)
    os.close(reader)
    process.communicate("go on\n", timeout=120)
    assert process.returncode == 75
    assert (tmp_path / "train.log").read_text() == "first\nlast\n"


def test_a_tee_that_is_gone_does_not_change_how_a_run_ends(tmp_path):
    process = talker(tmp_path, subprocess.PIPE)
    os.kill(int((tmp_path / "tee.pid").read_text()), signal.SIGKILL)
    _, errors = process.communicate("go on\n", timeout=120)
    assert (process.returncode, errors) == (75, "")
