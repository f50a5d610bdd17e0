"""Stop requests as processes meet them: signals from outside, to a rank in the main thread and to a spawned one."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from oct_foundation.runtime.exits import ExitCode, read_exits
from oct_foundation.runtime.rank_exit import RankExit
from oct_foundation.runtime.stopping import DOUBLED_S, StopRequest

PROGRAM = Path(__file__).with_name("stopping_program.py")
PROJECT = PROGRAM.parents[2]


def start(kind: str, folder: Path) -> subprocess.Popen[str]:
    """The program, once it says that it is ready."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), kind, str(folder)],
        env={**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "4"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "READY\n"
    return process


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def press_until_it_ends(process: subprocess.Popen[str]) -> int:
    """Ctrl-C twice a second, since a busy machine may have heard the first one late; the exit code."""
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
    return end_of(process)[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("kind", ["rank", "spawned"])
def test_a_signal_sets_the_flag_of_the_rank(tmp_path: Path, kind: str, number: signal.Signals) -> None:
    process = start(kind, tmp_path)
    process.send_signal(number)
    heard = "SIGUSR1" if kind == "spawned" else number.name  # the launcher asks its ranks by USR1
    assert end_of(process) == (ExitCode.STOPPED, f"heard {heard}\n")


def test_a_spawned_rank_is_deaf_to_what_its_launcher_has_not_sent_twice(tmp_path: Path) -> None:
    process = start("spawned", tmp_path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(ranks) == 1
    os.kill(ranks[0], signal.SIGTERM)  # a broken pool does this to its processes: it asks, it does not kill
    assert end_of(process) == (ExitCode.STOPPED, "heard SIGTERM\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_before_there_are_ranks_a_signal_interrupts(tmp_path: Path, number: signal.Signals) -> None:
    process = start("early", tmp_path)
    process.send_signal(number)
    assert end_of(process) == (ExitCode.STOPPED, f"interrupted by {number.name}\n")


@pytest.mark.parametrize(("kind", "code"), [("patient", ExitCode.STOPPED_UNSAVED), ("saved", ExitCode.STOPPED)])
def test_a_rank_that_does_not_come_leaves_after_its_grace(tmp_path: Path, kind: str, code: ExitCode) -> None:
    process = start(kind, tmp_path)
    process.send_signal(signal.SIGTERM)
    assert end_of(process)[0] == code
    (record,) = read_exits(tmp_path)
    assert record.code == code
    assert "1 s after SIGTERM" in record.reason


@pytest.mark.parametrize(("grace_s", "save_s"), [(30.0, 20.0), (25.0, 15.0), (300.0, 290.0), (4.0, 2.0)])
def test_a_longer_grace_is_longer_for_the_save(tmp_path: Path, grace_s: float, save_s: float) -> None:
    assert StopRequest(RankExit(rank=0, folder=tmp_path), grace_s).save_within_s == save_s


def test_a_second_ctrl_c_ends_the_rank_at_once(tmp_path: Path) -> None:
    process = start("very patient", tmp_path)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # the terminal and the supervisor, at one moment: one request
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(DOUBLED_S + 0.5)
    assert press_until_it_ends(process) == ExitCode.STOPPED_UNSAVED
    assert "second Ctrl-C" in read_exits(tmp_path)[0].reason


def test_a_machine_that_repeats_itself_does_not_cut_off_the_save(tmp_path: Path) -> None:
    process = start("slow", tmp_path)
    process.send_signal(signal.SIGTERM)  # a Spot notice
    time.sleep(DOUBLED_S + 0.5)
    process.send_signal(signal.SIGTERM)  # the shutdown that follows it
    assert end_of(process) == (ExitCode.STOPPED, "heard SIGTERM\n")


def test_a_second_ctrl_c_to_the_launcher_reaches_its_ranks(tmp_path: Path) -> None:
    process = start("spawned-patient", tmp_path)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(DOUBLED_S + 0.5)  # the rank has 20 s
    assert press_until_it_ends(process) == 1, "a pool whose process has left is broken"
    (record,) = read_exits(tmp_path)
    assert record.code == ExitCode.STOPPED_UNSAVED
    assert "second Ctrl-C" in record.reason
