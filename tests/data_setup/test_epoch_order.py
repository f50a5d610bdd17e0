"""Shares of the makers, and that every volume has its turn."""

from collections import Counter

import pytest
import torch

from data_setup.epoch_order import Balanced, Shuffled

DOMAINS = ["H"] * 70 + ["T"] * 20 + ["Z"] * 10


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"H": 1, "T": 1, "Z": 1}, {"H": 34, "T": 33, "Z": 33}),
        ({"H": 2, "T": 1, "Z": 1}, {"H": 50, "T": 25, "Z": 25}),
        ({"H": 0, "T": 1, "Z": 3}, {"T": 25, "Z": 75}),
        ({"T": 5}, {"T": 100}),
    ],
)
def test_every_epoch_has_the_shares_of_the_weights(weights: dict, expected: dict) -> None:
    order = Balanced(DOMAINS, weights, seed=1)
    for epoch in range(4):
        assert Counter(DOMAINS[index] for index in order.order(epoch).tolist()) == expected


def test_no_volume_comes_twice_before_all_of_its_domain_have_come() -> None:
    order = Balanced(DOMAINS, {"H": 1, "T": 1, "Z": 1}, seed=2)
    drawn: Counter[int] = Counter()
    for epoch in range(25):
        drawn.update(order.order(epoch).tolist())
        for domain in "HTZ":
            counts = [drawn[index] for index, found in enumerate(DOMAINS) if found == domain]
            assert max(counts) - min(counts) <= 1


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    one, same, other = (Balanced(DOMAINS, {"H": 1, "Z": 1}, seed=seed) for seed in (3, 3, 4))
    torch.manual_seed(9)
    assert torch.equal(one.order(5), same.order(5))
    assert not torch.equal(one.order(5), one.order(6))
    assert not torch.equal(one.order(5), other.order(5))


def test_a_weight_for_nobody_names_who_is_there() -> None:
    with pytest.raises(ValueError, match=r"names Optovue; the training volumes come from: H, T, Z"):
        Balanced(DOMAINS, {"Optovue": 1.0}, seed=0)
    with pytest.raises(ValueError, match="leaves no training sample"):
        Balanced(DOMAINS, {"H": 0.0}, seed=0)
    with pytest.raises(ValueError, match="no training sample"):
        Shuffled(0, seed=0)
