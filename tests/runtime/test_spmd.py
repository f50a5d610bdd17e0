import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("torch_xla", reason="torch-xla exists for Linux x86-64 only: sharding on XLA was NOT tested")

from oct_foundation.runtime.spmd import joined, partition, split_dimension

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def oracle() -> dict:
    """25 s of one core, most of it the compilation of the step."""
    command = [sys.executable, "-m", "tests.runtime.spmd_oracle"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_four_sharded_devices_take_the_steps_of_one_plain_cpu_on_the_union_of_their_batches(oracle):
    assert (oracle["cores"], oracle["world_size"]) == (4, 1)
    assert oracle["loss"] < 1e-4
    assert oracle["norm"] < 1e-4
    assert oracle["weights"] < 1e-4  # student, predictor and teacher, after 4 steps of up to 4e-4


def test_weights_and_moments_stay_split_in_one_train_graph(oracle):
    assert oracle["not_split"] == []
    assert oracle["train_graphs"] == 1


def test_a_sharded_checkpoint_holds_whole_tensors_and_goes_on_unsharded_and_back(oracle):
    assert oracle["devices_in_checkpoint"] == ["cpu"]
    assert oracle["resumed_unsharded"] == 0.0
    assert oracle["resumed_sharded"] == 0.0
    assert oracle["not_split_after_resume"] == []
    assert oracle["train_graphs_after_resume"] == 0
    assert oracle["norm_after_resume"] < 1e-4
    assert oracle["weights_after_resume"] < 1e-4


def test_a_kernel_gets_each_devices_heads_where_they_divide_and_all_of_them_else(oracle):
    divides, does_not = oracle["split_by_hand"]
    assert divides["heads"] == 8 // 4
    assert does_not["heads"] == 6
    assert max(divides["difference"], does_not["difference"]) < 1e-6


def test_devices_drop_out_other_parts_and_the_same_again_after_a_resume(oracle):
    mask, of_next_step, again = oracle["dropped"]
    assert mask == again != of_next_step
    assert len({tuple(row) for row in mask}) == len(mask)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((384, 1536), 1),
        ((1536, 384), 0),
        ((384, 384), 0),  # the first of equals
        ((1000, 16), 1),  # 1000 does not divide by 16
        ((384, 1, 4, 16, 16), 0),
        ((6, 7), None),
        ((), None),
    ],
)
def test_the_largest_dimension_that_divides_is_split(shape: tuple[int, ...], expected: int | None):
    assert split_dimension(shape, 16) == expected
    named = [number for number, name in enumerate(partition(shape, 16)) if name is not None]
    assert named == ([] if expected is None else [expected])


def test_pieces_are_joined_by_their_places_and_not_by_their_order():
    whole = torch.arange(24.0).reshape(4, 6)
    pieces = [([slice(0, 4), slice(start, start + 2)], whole[:, start : start + 2].clone()) for start in (4, 0, 2)]
    assert torch.equal(joined(pieces, whole.shape), whole)
    assert torch.equal(joined([([], whole)], whole.shape), whole)
