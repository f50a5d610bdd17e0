"""Short runs on phantoms: the verdict knows a live encoder from a dead one, whose loss is lower.

The spread and the error of the average scan are computed here once more, from the networks, so that the readings that
decide are not their own witnesses.
"""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.recipes import MILD, Outcome, Recipe, run_recipe
from data_setup.phantom_benchmark import BenchmarkSettings, PhantomBenchmark, write_benchmark
from oct_foundation.diagnostics.verdicts import judge

STEPS, WARMUP = 250, 50
EYES = BenchmarkSettings(num_volumes=224, image_size=(16, 64, 64), seed=1, ranges=MILD)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learning")
    prepared = write_benchmark(folder, EYES, num_train=160, num_val=64)

    def train(recipe: Recipe) -> Outcome:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums differ with two
        try:
            return run_recipe(recipe, prepared, folder, steps=STEPS, every_steps=50)
        finally:
            torch.set_num_threads(threads)

    return train


@torch.no_grad()
def spread(outcome: Outcome) -> float:
    """Standard deviation of mean features over the validation eyes, last teacher over first."""
    eyes = PhantomBenchmark(EYES)
    volumes = torch.stack([torch.from_numpy(eyes[number]) for number in range(160, 224)])[:, None]
    first, last = (network(volumes).mean(dim=1).std(dim=0).mean() for network in (outcome.first, outcome.last))
    return (last / first).item()


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_that_learns_is_called_so(run, seed):
    outcome = run(Recipe(name="alive", seed=seed))
    said = judge(outcome.readings, warmup_steps=WARMUP, total_steps=STEPS)
    assert said.verdict == "LEARNING", said
    last = outcome.readings[-1].values
    assert last["pos_ratio"] < 0.9
    assert spread(outcome) == pytest.approx(last["pooled_std"] / outcome.readings[0].values["pooled_std"], rel=1e-3)


def test_a_run_without_stop_gradient_is_called_collapsed_though_its_loss_is_low(run):
    outcome = run(Recipe(name="dead", breakage="no_stop_gradient"))
    said = judge(outcome.readings, warmup_steps=WARMUP, total_steps=STEPS)
    assert said.verdict == "COLLAPSED", said
    assert "collapse" in {finding.name for finding in said.findings}
    assert spread(outcome) < 1 / 3
    assert outcome.loss < F.smooth_l1_loss(torch.zeros(1000), torch.randn(1000)).item() / 100
