"""Ranks agree: on being the same program at the start, and on the step at which they stop."""

import json
import time
from pathlib import Path

import pytest

from oct_foundation.runtime.exits import ExitCode
from oct_foundation.runtime.native import NativeRuntime
from oct_foundation.runtime.select import launch
from pretraining.agreement import RanksDifferError, StopAgreement, check_ranks_alike

NUM_RANKS, STEPS = 3, 400


def stop_at_different_moments(runtime, folder: Path) -> int:
    """Ranks of different speed; from step 37 on rank 1 wishes to stop, and rank 2 has lost its storage."""
    agreement = StopAgreement(runtime, 0)
    for step in range(1, STEPS):
        time.sleep(0.0005 * runtime.rank)
        wish = ExitCode.DONE
        if runtime.rank == 1 and step >= 37:
            wish = ExitCode.STOPPED
        if runtime.rank == 2 and step >= 37:
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
    assert code == ExitCode.STORAGE, "a store that was given up goes before a wish to save and stop"
    assert 37 <= step < 120, "asked at 1, 3, 7, 15, 31, 63: n doubles at most"


def test_a_lone_rank_stops_at_its_own_step():
    agreement = StopAgreement(NativeRuntime("cpu"), 0)
    assert agreement.at(1, ExitCode.DONE) == ExitCode.DONE
    assert agreement.at(2, ExitCode.STOPPED) == ExitCode.STOPPED


USUAL = {
    "git commit": "aaaa",
    "configuration": {"output_dir": "runs/x-1", "train": {"lr": 0.1, "betas": [0.9, 0.99]}},
    "versions": {"torch": "2.9.1"},
}


# What a rank has instead.
UNLIKE: dict[str, dict[int, dict[str, object]]] = {
    "code": {2: {"git commit": "bbbb"}, 1: {"versions": {"torch": "2.8.0", "numpy": "2.0"}}},
    "configuration": {1: {"configuration": {"output_dir": "runs/x-2", "train": {"lr": 0.2, "betas": [0.9, 0.99]}}}},
    "two ranks": {0: {"git commit": "bbbb"}, 2: {"git commit": "bbbb"}},
    "nothing in common": {1: {"configuration": {f"key{i:02d}": i for i in range(60)}}},
}


def complain(runtime, folder: Path) -> int:
    """What each rank has to say of each case goes into a file."""
    for case, changed in UNLIKE.items():
        try:
            check_ranks_alike(runtime, f"worker-{runtime.rank}", USUAL | changed.get(runtime.rank, {}))
        except RanksDifferError as error:
            (folder / f"{case}.{runtime.rank}").write_text(str(error))
    return 0


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By case, what all ranks say alike."""
    folder = tmp_path_factory.mktemp("complaints")
    assert launch("cpu", complain, folder, num_processes=NUM_RANKS) == 0
    said = {case: {(folder / f"{case}.{rank}").read_text() for rank in range(NUM_RANKS)} for case in UNLIKE}
    assert all(len(texts) == 1 for texts in said.values())
    return {case: texts.pop() for case, texts in said.items()}


def test_stale_code_and_another_version_are_named_by_rank_on_every_rank(complaints):
    message = complaints["code"]
    assert "git commit on rank 2 (worker-2) is bbbb, aaaa on 2 of 3" in message
    assert "versions torch on rank 1 (worker-1) is 2.8.0, 2.9.1 on 2 of 3" in message
    assert "versions numpy on rank 1 (worker-1) is 2.0, absent on 2 of 3" in message
    assert "octfm fleet deploy" in message
    assert "configuration" not in message
    assert "output_dir" not in message


def test_another_configuration_is_named_by_its_keys_and_mended_by_the_command(complaints):
    message = complaints["configuration"]
    assert "configuration output_dir on rank 1 (worker-1) is runs/x-2, runs/x-1 on 2 of 3" in message
    assert "configuration train.lr on rank 1 (worker-1) is 0.2, 0.1 on 2 of 3" in message
    assert "betas" not in message
    assert "Start all hosts with the same command" in message
    assert "deploy" not in message


def test_what_most_ranks_have_counts_as_usual_whoever_is_first(complaints):
    assert "git commit on rank 1 (worker-1) is aaaa, bbbb on 2 of 3" in complaints["two ranks"]


def test_configurations_with_nothing_in_common_do_not_fill_the_screen(complaints):
    message = complaints["nothing in common"]
    assert "configuration key09 on" in message
    assert "key10" not in message
    assert "53 more keys of the configuration" in message


def test_equal_ranks_are_no_matter():
    check_ranks_alike(NativeRuntime("cpu"), "here", USUAL)


@pytest.mark.parametrize("code", [1, 71, 75, 76, 130])
def test_what_may_end_otherwise_next_time_is_worth_a_restart(code):
    assert ExitCode(code).worth_a_restart


@pytest.mark.parametrize("code", [0, 2, 73, 74, 78])
def test_what_needs_a_person_is_not(code):
    assert not ExitCode(code).worth_a_restart
