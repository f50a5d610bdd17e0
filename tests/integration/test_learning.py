"""A tiny model on phantoms learns, and the thresholds that say so refuse a run that collapsed.

The loss alone cannot tell: the dead run's is several times lower than the good ones'. Thresholds, from the diagnostics
of collapse that the design notes give: position_ratio below 1 (better than each position's mean target) and spread
above 1/3 of the start's.
"""

from pathlib import Path

import pytest
import torch

from tests.integration.learning import Verdict, learn, learning_task

STEPS = 300
MAX_POSITION_RATIO, MIN_SPREAD = 1.0, 1 / 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("learning")

    def train(momentum: float, seed: int) -> Verdict:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the seeds below were chosen with one thread; sums differ with two
        try:
            task = learning_task(folder, momentum=momentum, seed=seed, steps=STEPS)
            return learn(task, task.config)
        finally:
            torch.set_num_threads(threads)

    return train


def learned(verdict: Verdict) -> bool:
    return verdict.position_ratio < MAX_POSITION_RATIO and verdict.spread > MIN_SPREAD


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_a_tiny_model_learns_on_phantoms_in_300_steps(run, seed):
    verdict = run(momentum=0.996, seed=seed)
    assert learned(verdict), verdict


def test_a_run_without_a_teacher_collapses_and_fails_both_thresholds(run):
    dead = run(momentum=0.0, seed=1)
    assert dead.position_ratio > MAX_POSITION_RATIO, dead
    assert dead.spread < MIN_SPREAD, dead
    assert dead.loss < 0.01, "a collapsed run is one with a low loss; this one only failed"
