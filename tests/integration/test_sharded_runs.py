"""Whole runs with weights in shares learn what others learn, and each kind takes up the other's checkpoint."""

import shutil

import pytest

from oct_foundation.checkpoints.manifest import CheckpointName
from tests.integration.conftest import FinishedRun, assert_states_equal

pytestmark = pytest.mark.slow  # six whole commands

STEPS = 6
SAME = (f"train.max_steps={STEPS}", "train.val_every_steps=3", "checkpoint.every_steps=3", "batch.global_batch_size=4")
WATCHED = ("diagnostics.enabled=true", "diagnostics.every_steps=3")
SHARDED = ("train.sharding=full", "runtime.num_processes=2", "batch.per_core_batch_size=1")  # accumulates 2 micro-steps
ALONE = ("batch.per_core_batch_size=2",)


@pytest.fixture(scope="module")
def sharded(train, tmp_path_factory) -> FinishedRun:
    return train(tmp_path_factory.mktemp("sharded"), *SAME, *WATCHED, *SHARDED)


@pytest.fixture(scope="module")
def alone(train, tmp_path_factory) -> FinishedRun:
    return train(tmp_path_factory.mktemp("alone"), *SAME, *WATCHED, *ALONE)


def without_last_checkpoint(run: FinishedRun, folder):
    """What a kill after the checkpoint of step 3 would have left."""
    shutil.copytree(run.folder, folder)
    later = [path for path in (folder / "checkpoints").glob("step-*") if CheckpointName.of_key(path.name).step > 3]
    assert len(later) == 1
    shutil.rmtree(later[0])
    return folder


def assert_alike(
    found: FinishedRun, expected: FinishedRun, names=("train/loss", "train/grad_norm", "val/loss")
) -> None:
    """Ranks add in another order than one process: 1e-5 of a loss after a few steps in fp32."""
    for name in names:
        assert found.curve(name) == pytest.approx(expected.curve(name), rel=2e-5), name
    assert_states_equal(found.state()["model"], expected.state()["model"], rtol=1e-4, atol=1e-5)


def test_a_sharded_run_trains_validates_reads_and_saves_as_one_process_does(sharded, alone):
    assert sharded.summary["world_size"] == 2
    assert "model in 2 shares" in sharded.summary["device"]
    assert sharded.summary["trainable_parameters"] == alone.summary["trainable_parameters"]
    assert list(sharded.curve("train/loss")) == list(range(1, STEPS + 1))
    assert list(sharded.curve("val/loss")) == [3, 6]
    assert_alike(sharded, alone)
    names = {name for row in alone.rows for name in row if name.startswith("diag/")}
    assert {"diag/ema_gap/blocks", "diag/update_ratio/encoder", "diag/grad_norm/topcon"} <= names
    for name in sorted(names - {"diag/clipped_share"}):
        found, expected = sharded.curve(name), alone.curve(name)
        assert list(found) == list(expected), name
        # Ranks of two volumes, and differences of nearly equal weights, are rounding for the most part.
        for step, value in expected.items():
            assert found[step] == pytest.approx(value, rel=2e-3, abs=2e-4), (name, step)


def test_shares_go_on_from_their_own_checkpoint_bit_for_bit(train, tmp_path, sharded):
    folder = without_last_checkpoint(sharded, tmp_path / "run")
    resumed = train(folder, *SAME, *SHARDED)
    assert resumed.summary["start_step"] == 3
    assert resumed.curve("train/loss") == sharded.curve("train/loss")
    for part in ("model", "optimizer"):
        assert_states_equal(resumed.state()[part], sharded.state()[part])


@pytest.mark.slow  # tests/runtime/test_sharded.py has both ways without the runs
def test_one_process_goes_on_from_the_checkpoint_of_shares(train, tmp_path, sharded):
    resumed = train(without_last_checkpoint(sharded, tmp_path / "run"), *SAME, *ALONE)
    assert resumed.summary["start_step"] == 3
    assert_alike(resumed, sharded)


def test_shares_go_on_from_the_checkpoint_of_one_process(train, tmp_path, alone):
    resumed = train(without_last_checkpoint(alone, tmp_path / "run"), *SAME, *SHARDED)
    assert resumed.summary["start_step"] == 3
    assert_alike(resumed, alone)
