"""Absent branches on two ranks: no hang, and no gradient that one process on the union batch would not have."""

import json

import pytest

from oct_foundation.runtime.select import launch
from tests.integration.inactive_cases import ALIGNED, CASES, PATTERNS, Case, run_all

ROUNDING = 2e-7  # of the largest gradient
NOT_FINISHED = "Expected to have finished reduction in the prior iteration"
READY_TWICE = "Expected to mark a variable ready only once"
GRAPH_CHANGED = "Your training graph has changed in this iteration"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each rank has found; one start for all cases, since a start is what takes time."""
    folder = tmp_path_factory.mktemp("ranks")
    assert launch("cpu", run_all, folder, num_processes=2) == 0
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def expected_to_raise(case: Case) -> tuple[int, str] | None:
    """The step and the words with which DDP refuses what it cannot do; None where it must work."""
    changes = any(steps.count(steps[0]) < len(steps) for steps in PATTERNS[case.pattern])
    match case.policy, case.wrapping:
        case "outside", "find_unused":
            return 0, READY_TWICE
        case "find_unused", "plain":
            return 1, NOT_FINISHED  # it fails a step late: the replicas have parted by then
        case "find_unused", "static" if case.pattern == "text alone everywhere":
            return 2, NOT_FINISHED
        case "find_unused", "static" if changes:
            return 1, GRAPH_CHANGED
    return None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ddp_gives_the_gradients_of_the_union_batch_or_raises_where_it_is_known_to(found, case):
    results = [rank["matrix"][case.name] for rank in found]
    refusal = expected_to_raise(case)
    if refusal is None:
        assert all(result.get("error", float("inf")) <= ROUNDING for result in results), results
    else:
        step, words = refusal
        assert [result.get("raised") for result in results] == [step, step], results
        assert any(result["message"].startswith(words) for result in results), results


def test_the_default_policy_works_with_every_pattern_and_wrapping():
    assert not [case.name for case in CASES if case.policy == "skip" and expected_to_raise(case)]


@pytest.mark.parametrize("micro_steps", ["1", "3"])
def test_sixty_steps_with_decay_and_clip_equal_one_process_and_leave_the_absent_branch_exactly(found, micro_steps):
    for rank in found:
        result = rank["training"][micro_steps]
        assert result["absent moved"] == 0.0
        assert result["absent steps"] == 0.0, "the optimizer has never touched it"
        assert result["error"] < 1e-6
        assert result["present moved"] > 0.1


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_vision_language_model_trains_on_any_mix_of_ranks_under_ddp(found, pattern):
    assert all(rank["brain, ddp"][pattern] <= ROUNDING for rank in found)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_fsdp2_is_exact_on_any_mix_of_ranks_when_absent_branches_run_on_an_empty_token(found, pattern):
    for rank in found:
        assert rank["brain, fsdp"][pattern]["loss"] <= 1e-6
        assert rank["brain, fsdp"][pattern]["gradient"] <= ROUNDING


@pytest.mark.parametrize("pattern", ALIGNED)
def test_fsdp2_needs_no_empty_token_where_ranks_hold_the_same_modalities(found, pattern):
    for rank in found:
        assert rank["brain, fsdp, aligned"][pattern]["loss"] <= 1e-6
        assert rank["brain, fsdp, aligned"][pattern]["gradient"] <= ROUNDING


def test_fsdp2_is_silently_wrong_without_it_so_these_tests_would_notice(found):
    for rank in found:
        result = rank["brain, fsdp, mixed up"]["one each"]
        assert result["loss"] > 1e-4
        assert result["gradient"] > 1e-3
