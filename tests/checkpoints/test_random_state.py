"""After a restore every generator repeats itself bit for bit, through a file."""

import io
import random

import numpy as np
import pytest
import torch

from oct_foundation.checkpoints.host_state import check_on_host
from oct_foundation.checkpoints.random_state import capture_random_state, restore_random_state, seed_host


def draws() -> list[float]:
    """Uniform and normal draws of each generator; the odd number of normals leaves a cached one behind."""
    python = [random.random(), random.gauss(0, 1), float(random.getrandbits(40))]
    numpy = [np.random.rand(), *np.random.randn(3), float(np.random.randint(1 << 30))]
    return [
        *python,
        *(float(value) for value in numpy),
        *torch.randn(5).tolist(),
        *torch.randperm(9).tolist(),
    ]


@pytest.fixture(autouse=True)
def _same_state_for_later_tests():
    before = capture_random_state()
    yield
    restore_random_state(before)


@pytest.mark.parametrize("seed", [0, 1, 2**31])
def test_every_draw_repeats_after_a_round_trip_through_a_file(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    draws()  # a normal is cached now in python and numpy
    file = io.BytesIO()
    torch.save(capture_random_state(), file)
    expected = [draws() for _ in range(3)]
    file.seek(0)
    restore_random_state(torch.load(file, weights_only=True))
    assert [draws() for _ in range(3)] == expected


def test_capturing_draws_nothing():
    first = capture_random_state()
    second = capture_random_state()
    assert torch.equal(first["torch"], second["torch"])
    assert torch.equal(first["python"]["words"], second["python"]["words"])
    assert torch.equal(first["numpy"]["key"], second["numpy"]["key"])


def test_the_state_is_what_a_checkpoint_takes():
    check_on_host(capture_random_state())


def test_a_state_with_a_generator_missing_sets_none():
    state = capture_random_state()
    expected = draws()
    restore_random_state(state)
    with pytest.raises(ValueError, match=r"lacks \['numpy'\]"):
        restore_random_state({name: value for name, value in state.items() if name != "numpy"})
    assert draws() == expected


def test_equal_seeds_draw_alike_from_every_generator_and_others_do_not():
    drawn = []
    for seed in (7, 7, 8):
        seed_host(seed)
        drawn.append(draws())
    assert drawn[0] == drawn[1]
    assert not set(drawn[0][:6]) & set(drawn[2][:6])
