"""Ranks agree: on being the same program at the start, and on the step at which they stop."""

import json
import time
from pathlib import Path

import pytest

from oct_foundation.runtime.exits import ExitCode
from oct_foundation.runtime.native import NativeRuntime
from oct_foundation.runtime.select import launch
from pretraining.agreement import RanksDifferError, StopAgreement, check_ranks_alike, digest

NUM_RANKS, STEPS = 3, 400


def stop_at_different_moments(runtime, folder: Path) -> int:
    """Ranks of different speed; rank 1 wishes to stop from its step 37 on, rank 2 has lost its storage at 60."""
    agreement = StopAgreement(runtime, 0)
    for step in range(1, STEPS):
        time.sleep(0.0005 * runtime.rank)
        wish = ExitCode.DONE
        if runtime.rank == 1 and step >= 37:
            wish = ExitCode.STOPPED
        if runtime.rank == 2 and step >= 60:
            wish = ExitCode.STORAGE
        if code := agreement.at(step, wish):
            (folder / f"{runtime.rank}.json").write_text(json.dumps([step, code]))
            return 0
    return 1


def test_all_ranks_stop_after_the_same_step_for_the_same_reason(tmp_path):
    assert launch("cpu", stop_at_different_moments, tmp_path, num_processes=NUM_RANKS) == 0
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(NUM_RANKS)]
    assert found[0] == found[1] == found[2]
    step, code = found[0]
    assert code == ExitCode.STOPPED, "a wish to save and stop goes before a failed store"
    assert 37 <= step < 120, "asked at 1, 3, 7, 15, 31, 63: n doubles at most"


def test_a_lone_rank_stops_at_its_own_step():
    agreement = StopAgreement(NativeRuntime("cpu"), 0)
    assert agreement.at(1, ExitCode.DONE) == ExitCode.DONE
    assert agreement.at(2, ExitCode.STOPPED) == ExitCode.STOPPED


def one_worker_has_old_code(runtime, folder: Path) -> int:
    """Rank 2 runs another commit, and rank 1 another configuration."""
    facts = {
        "git commit": "aaaa" if runtime.rank != 2 else "bbbb",
        "configuration": digest("x" if runtime.rank != 1 else "y"),
        "versions": {"torch": "2.9.1"},
    }
    try:
        check_ranks_alike(runtime, f"worker-{runtime.rank}", facts)
    except RanksDifferError as error:
        (folder / f"{runtime.rank}.txt").write_text(str(error))
        return 0
    return 1


def test_stale_code_and_another_configuration_are_named_by_rank_on_every_rank(tmp_path):
    assert launch("cpu", one_worker_has_old_code, tmp_path, num_processes=NUM_RANKS) == 0
    messages = {(tmp_path / f"{rank}.txt").read_text() for rank in range(NUM_RANKS)}
    assert len(messages) == 1
    (message,) = messages
    assert "git commit on rank 2 (worker-2) is bbbb, aaaa on 2 others" in message
    assert f"configuration on rank 1 (worker-1) is {digest('y')}" in message
    assert "versions" not in message


def test_equal_ranks_are_no_matter(tmp_path):
    check_ranks_alike(NativeRuntime("cpu"), "here", {"git commit": "a"})


@pytest.mark.parametrize("code", [1, 71, 75, 76])
def test_what_may_end_otherwise_next_time_is_worth_a_restart(code):
    assert ExitCode(code).worth_a_restart


@pytest.mark.parametrize("code", [0, 2, 73, 74, 78])
def test_what_needs_a_person_is_not(code):
    assert not ExitCode(code).worth_a_restart
