import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import crew
import pytest

from oct_foundation.runtime.rank_exit import RankExit
from oct_foundation.runtime.watchdog import Watchdog, WatchdogSettings

LOOK_S = 0.1
SHORT = WatchdogSettings(stall_s=1.0, compile_s=2.5, validation_s=2.0, save_s=1.0)
SHELL_PROGRAM = Path(__file__).with_name("watched_in_a_shell.py")


@pytest.fixture
def watched(tmp_path):
    crews = []

    def watch(duty, *arguments) -> crew.Crew:
        crews.append(crew.muster(tmp_path, 1, duty, *arguments))
        return crews[-1]

    yield watch
    for started in crews:
        started.end()


def start_watchdog(exit: RankExit, settings: WatchdogSettings = SHORT, num_steps: int = 3, margin_s: float = 60.0):
    """A watchdog that has seen `num_steps` quick steps."""
    watchdog = Watchdog(settings, exit, look_s=LOOK_S, margin_s=margin_s)
    watchdog.start()
    for step in range(1, num_steps + 1):
        watchdog.beat(step)
        exit.step = step
    return watchdog


def hang_in_python(seconds: float = 60.0) -> None:
    time.sleep(seconds)


def hang_after_step_3(exit: RankExit) -> None:
    start_watchdog(exit)
    hang_in_python()


def test_a_rank_that_hangs_ends_with_71_and_shows_where(watched):
    rank = watched(hang_after_step_3)
    assert rank.codes() == [71]
    said = rank.stderr()
    assert re.search(
        r"rank 0: no progress for \d+ s after step 3, in training \(limit 1 s\); the stacks of all threads:", said
    )
    assert "in hang_in_python" in said
    assert "in _watch" in said, "all threads"
    record = rank.records()[0]
    assert (record.code, record.step, record.cause) == (71, 3, True)


def go_on_for_longer_than_the_limit(exit: RankExit) -> None:
    watchdog = start_watchdog(exit)
    for step in range(4, 16):
        time.sleep(0.1)
        watchdog.beat(step)
    watchdog.stop()


def test_beats_keep_a_rank_alive(watched):
    rank = watched(go_on_for_longer_than_the_limit)
    assert rank.codes() == [0], rank.stderr()


def compile_for_longer_than_a_stall(exit: RankExit) -> None:
    watchdog = start_watchdog(exit, num_steps=0)
    time.sleep(1.2)
    watchdog.beat(1)
    time.sleep(1.2)  # the second step compiles, too
    watchdog.beat(2)
    hang_in_python()


def test_the_first_two_steps_may_compile_and_the_third_may_not(watched):
    rank = watched(compile_for_longer_than_a_stall)
    assert rank.codes() == [71]
    assert "after step 2, in training (limit 1 s)" in rank.records()[0].reason


def never_begin(exit: RankExit) -> None:
    start_watchdog(exit, WatchdogSettings(compile_s=0.5), num_steps=0)
    hang_in_python()


def test_a_rank_that_never_begins_ends_too(watched):
    rank = watched(never_begin)
    assert rank.codes() == [71]
    assert "before the first step, in compile" in rank.records()[0].reason


def validate_and_save(exit: RankExit) -> None:
    watchdog = start_watchdog(exit)
    with watchdog.phase("validation"):
        time.sleep(1.2)
        with watchdog.phase("save"):
            time.sleep(0.2)
        time.sleep(1.2)  # validation's own limit starts anew after the save in its middle
        with watchdog.phase("save"):
            hang_in_python()


def test_each_phase_has_its_own_limit_also_inside_another_one(watched):
    rank = watched(validate_and_save)
    assert rank.codes() == [71]
    assert "after step 3, in save (limit 1 s)" in rank.records()[0].reason


def hang_after_a_validation(exit: RankExit) -> None:
    watchdog = start_watchdog(exit)
    with watchdog.phase("validation"):
        time.sleep(1.0)
    hang_in_python()


def test_the_limit_of_training_is_back_after_a_phase(watched):
    rank = watched(hang_after_a_validation)
    assert rank.codes() == [71]
    assert "in training" in rank.records()[0].reason


def make_slow_steps(exit: RankExit) -> None:
    watchdog = start_watchdog(exit, WatchdogSettings(stall_s=1.0))
    with watchdog.phase("validation"):
        pass
    for step in range(4, 10):
        time.sleep(0.15)
        watchdog.beat(step)
    time.sleep(1.5)  # longer than the stall, half of 20 usual steps
    watchdog.beat(10)
    watchdog.stop()


def test_a_rank_of_slow_steps_gets_twenty_of_them(watched):
    rank = watched(make_slow_steps)
    assert rank.codes() == [0], rank.stderr()


def hang_with_the_gil(exit: RankExit) -> None:
    start_watchdog(exit, margin_s=0.5)
    crew.hold_the_gil(30)


def test_a_c_call_that_keeps_the_gil_is_ended_by_the_backstop(watched):
    rank = watched(hang_with_the_gil)
    assert rank.codes(limit_s=15) == [1]
    assert "in hold_the_gil" in rank.stderr()
    assert rank.records() == {}, "no Python ran any more: the launcher has to say it"


def be_stopped_in_a_step(exit: RankExit) -> None:
    watchdog = start_watchdog(exit, WatchdogSettings(stall_s=1.5))
    crew.report_ready(exit)
    while not (exit.folder.parent / "awake").exists():  # the signals fall into this step
        time.sleep(0.02)
    time.sleep(3 * LOOK_S)
    watchdog.beat(4)
    watchdog.stop()


def test_a_process_that_was_stopped_for_longer_than_its_limit_goes_on(watched):
    rank = watched(be_stopped_in_a_step)
    rank.await_ready()
    rank.kill(0, crew.STOP)
    time.sleep(3.0)
    rank.kill(0, crew.GO_ON)
    (rank.folder / "awake").touch()
    assert rank.codes() == [0], rank.stderr()


def stop_and_rest(exit: RankExit, settings: WatchdogSettings) -> None:
    watchdog = start_watchdog(exit, settings, margin_s=0.1)
    watchdog.stop()
    with watchdog.phase("save"):  # the last save may come after the watch
        time.sleep(1.5)


@pytest.mark.parametrize("settings", [SHORT, WatchdogSettings(enabled=False, stall_s=0.2)], ids=["stopped", "disabled"])
def test_a_watchdog_that_is_stopped_or_disabled_ends_nothing(watched, settings):
    rank = watched(stop_and_rest, settings)
    assert rank.codes() == [0], rank.stderr()


def launch_a_rank_and_wait(exit: RankExit) -> None:
    import multiprocessing

    rank = multiprocessing.get_context("fork").Process(target=be_the_rank, args=(exit,))
    rank.start()
    rank.join()


def be_the_rank(exit: RankExit) -> None:
    start_watchdog(exit, WatchdogSettings())
    (exit.folder.parent / "rank.pid").write_text(str(os.getpid()))
    crew.report_ready(exit)
    hang_in_python()


def test_a_rank_whose_launcher_was_killed_leaves(watched):
    launcher = watched(launch_a_rank_and_wait)
    launcher.await_ready()
    pid = int((launcher.folder / "rank.pid").read_text())
    launcher.kill(0, crew.KILL)
    crew.wait_for(lambda: crew.has_ended(pid), "the orphan to leave")
    record = launcher.records()[0]
    assert (record.code, record.pid) == (1, pid)
    assert "the launcher is gone" in record.reason


def test_a_run_that_a_shell_started_survives_the_shell(tmp_path):
    command = (
        f'"{sys.executable}" "{SHELL_PROGRAM}" "{tmp_path}" & while [ ! -e "{tmp_path}/started" ]; do sleep 0.05; done'
    )
    subprocess.run(["sh", "-c", command], check=True, timeout=200)
    (tmp_path / "shell-ended").touch()
    crew.wait_for(lambda: (tmp_path / "finished").exists(), "the run to reach its end")
    before, after = (tmp_path / "finished").read_text().split()
    assert before != after, "the shell, its parent, had ended"
    assert not (tmp_path / "exits").exists()


@pytest.mark.parametrize("key", ["stall_s", "compile_s", "validation_s", "save_s"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_limit_that_limits_nothing_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match=rf"runtime\.watchdog\.{key}: found {value}, allowed .*watchdog\.enabled"):
        WatchdogSettings(**{key: value})
