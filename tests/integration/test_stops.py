"""How whole runs end: by request, by a fault of a rank, by silence, by another writer; codes, reasons, what is left."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oct_foundation.runtime.exits import ExitCode, read_exits
from tests.integration.conftest import PROJECT, SMOKE, assert_states_equal

STEPS = 6
SHORT = (f"train.max_steps={STEPS}", "train.val_every_steps=3", "checkpoint.every_steps=100", "train.log_every_steps=1")
TWO_RANKS = ("runtime.num_processes=2", "batch.per_core_batch_size=1")


def stop_in_mid_run(train, folder, device):
    stopped = train(folder, *SHORT, device=device, fault="term:4", code=ExitCode.STOPPED)
    at = stopped.summary["steps"]
    assert at in (4, 5), "the signal came during the update after step 4"
    assert stopped.summary["outcome"] == "stopped, saved"
    assert stopped.state()["step"] == at
    (record,) = read_exits(folder / "exits")
    assert (record.code, record.step) == (ExitCode.STOPPED, at)
    assert f"saved and stopped at step {at}" in stopped.output
    return at


@pytest.mark.slow  # the two ranks below stop and save, test_runs.py goes on bit for bit
def test_a_run_that_is_asked_to_stop_saves_at_once_and_goes_on_bit_for_bit(train, tmp_path):
    straight = train(tmp_path / "straight", *SHORT)
    at = stop_in_mid_run(train, tmp_path / "stopped", "cpu")
    resumed = train(tmp_path / "stopped", *SHORT)
    assert resumed.summary["start_step"] == at
    assert read_exits(tmp_path / "stopped" / "exits") == []
    assert resumed.curve("train/loss") == straight.curve("train/loss")
    assert_states_equal(resumed.state()["model"], straight.state()["model"])
    assert_states_equal(resumed.state()["optimizer"], straight.state()["optimizer"])


@pytest.mark.slow  # tests/runtime/test_stopping.py has the mechanism without the minute of compiling
def test_a_rank_that_xla_runs_outside_the_main_thread_hears_the_request(train, tmp_path):
    stop_in_mid_run(train, tmp_path, "xla")


def test_two_ranks_stop_after_the_same_step(train, tmp_path):
    stopped = train(tmp_path, *SHORT, *TWO_RANKS, "train.max_steps=200", "train.epochs=100", fault="term@1:3", code=75)
    first, second = read_exits(tmp_path / "exits")
    assert first.code == second.code == ExitCode.STOPPED
    assert first.step == second.step == stopped.summary["steps"] == stopped.state()["step"]


@pytest.mark.slow
def test_a_request_without_checkpoints_says_that_nothing_is_saved(train, tmp_path):
    run = train(tmp_path, *SHORT, "checkpoint.enabled=false", fault="term:2", code=ExitCode.STOPPED_UNSAVED)
    assert "checkpoints are off" in run.output


def test_a_rank_that_raises_takes_the_other_along_and_is_named_first(train, tmp_path):
    run = train(tmp_path, *SHORT, *TWO_RANKS, fault="crash@1:3", code=1)
    first, second = read_exits(tmp_path / "exits")
    assert (first.rank, first.step, first.reason) == (1, 3, "RuntimeError: injected crash")
    assert (second.rank, second.cause) == (0, False)
    assert second.time - first.time < 18, "silence alone would tell it after 20 s"
    assert run.output.index("injected crash") < run.output.index("rank 0 leaves")
    assert "rank 1 on" in run.output.splitlines()[-1]
    assert "BrokenProcessPool" not in run.output


@pytest.mark.slow
def test_rank_0_says_why_it_raises_before_it_tidies_up(train, tmp_path):
    run = train(tmp_path, *SHORT, *TWO_RANKS, fault="crash@0:3", code=1)
    first, second = read_exits(tmp_path / "exits")
    assert (first.rank, first.step, first.reason) == (0, 3, "RuntimeError: injected crash")
    assert (second.rank, second.cause) == (1, False)
    assert run.output.index("injected crash") < run.output.index("rank 1 leaves")
    assert run.summary["outcome"] == "failed"


@pytest.mark.slow
def test_a_last_save_that_fails_is_no_rank_s_success(train, tmp_path, monkeypatch):
    monkeypatch.setenv("VANISH", str(tmp_path / "checkpoints"))
    run = train(tmp_path, *SHORT, *TWO_RANKS, fault=f"vanish@0:{STEPS - 1}", code=ExitCode.STORAGE)
    assert {record.code for record in read_exits(tmp_path / "exits")} == {ExitCode.STORAGE}
    assert len(read_exits(tmp_path / "exits")) == 2
    assert "its last checkpoint is not saved" in run.output


@pytest.mark.slow  # tests/runtime/test_child_watch.py has the sentence
def test_a_rank_that_is_killed_is_named_with_its_signal_and_memory(train, tmp_path):
    run = train(tmp_path, *SHORT, *TWO_RANKS, fault="kill@1:3", code=1)
    assert "was killed by signal 9 (SIGKILL)" in run.output
    assert "GiB resident; host memory" in run.output


@pytest.mark.parametrize("ranks", [(), pytest.param(TWO_RANKS, marks=pytest.mark.slow)], ids=["one rank", "two ranks"])
def test_a_hang_ends_with_the_stacks_of_every_rank(train, tmp_path, ranks):
    limits = ("runtime.watchdog.stall_s=8", "runtime.watchdog.compile_s=200")
    run = train(tmp_path, *SHORT, *limits, *ranks, fault="hang@0:3", code=ExitCode.NO_PROGRESS)
    records = read_exits(tmp_path / "exits")
    assert {record.code for record in records} == {ExitCode.NO_PROGRESS}
    assert len(records) == (2 if ranks else 1)
    assert "never_come_back" in run.output, "the line where it hangs"
    assert run.output.count("most recent call first") >= 2 * len(records)


@pytest.mark.slow
def test_a_second_run_into_the_same_place_stops_and_harms_nothing(train, tmp_path, prepared_cache):
    long = ("train.max_steps=100000", "train.epochs=100000", "checkpoint.every_steps=2", "wandb.mode=disabled")
    command = [sys.executable, "-m", "pretraining.train", str(SMOKE), "--device", "cpu", f"output_dir={tmp_path}",
               f"data.cache_dir={prepared_cache}", *long]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(command, cwd=PROJECT, env=environment, **silent)
    try:
        _wait_for(tmp_path / "checkpoints" / "latest.json", first)
        second = train(tmp_path / "elsewhere", *long[:3], f"checkpoint.ckpt_dir={tmp_path}/checkpoints",
                       code=ExitCode.TAKEN_OVER)  # fmt: skip
        assert "is being written by" in second.output
        assert str(first.pid) in second.output
        assert first.poll() is None
    finally:
        first.terminate()
    assert first.wait(120) == ExitCode.STOPPED


def _wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, "it ended before it saved"
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow  # test_full_disk_run.py has a place that fails, and ends alike
def test_a_place_that_vanishes_ends_the_run_after_three_failures(train, tmp_path, monkeypatch):
    monkeypatch.setenv("VANISH", str(tmp_path / "checkpoints"))
    run = train(
        tmp_path, *SHORT[2:], "checkpoint.every_steps=2", "train.max_steps=100", "train.epochs=100",
        fault="vanish:5", code=ExitCode.STORAGE,
    )  # fmt: skip
    assert run.summary["checkpoints"]["failed"] >= 3
    assert run.summary["steps"] < 100
    assert "Traceback" not in run.output


def test_a_place_that_cannot_be_written_is_refused_before_the_model_is_built(train, tmp_path):
    (tmp_path / "file").write_text("")
    run = train(tmp_path / "run", *SHORT, f"checkpoint.ckpt_dir={tmp_path}/file/below", code=ExitCode.REFUSED)
    assert "checkpoint.ckpt_dir" in run.output
    assert "Traceback" not in run.output
