import copy

import pytest
import torch
from torch import nn

from oct_foundation.optim.adamw import AdamW
from oct_foundation.optim.clipping import GradientGuard
from oct_foundation.optim.groups import parameter_groups, split_by_branch

LEARNING_RATES = (1e-2, 3e-3, 0.0, 1e-3, 2e-3)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3))


def backward(model: nn.Module, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    (model(scale * torch.randn(8, 6, generator=generator)) ** 2).mean().backward()


def ours(model: nn.Module, max_norm: float | None = None) -> AdamW:
    return AdamW(parameter_groups(model), guard=GradientGuard(max_norm))


class Traced(AdamW):
    """The formulas that XLA traces, run on the CPU."""

    def _update_fused(self, parameters, rate, weight_decay):
        self._update_traced(parameters, rate, weight_decay)


@pytest.mark.parametrize("kind", [AdamW, Traced])
def test_equals_torch_adamw_with_clipping(kind):
    model = small_model()
    reference = copy.deepcopy(model)
    optimizer = kind(parameter_groups(model), guard=GradientGuard(0.1))
    matrices = [p for p in reference.parameters() if p.ndim > 1]
    others = [p for p in reference.parameters() if p.ndim == 1]
    peer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}])
    for seed, learning_rate in enumerate(LEARNING_RATES):
        backward(model, seed)
        backward(reference, seed)
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.1)
        for group in peer.param_groups:
            group["lr"] = learning_rate
        peer.step()
        peer.zero_grad()
        optimizer.set_scalars(learning_rate, 0.1)
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(optimizer.guard.norm, norm)
    for found, expected in zip(model.parameters(), reference.parameters(), strict=True):
        # fp32 rounding of weights near 0.3 is 3e-8 a step; the smallest learning rate that moves them is 1e-3
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_logged_norm_is_the_float64_norm_before_the_clip():
    model = small_model()
    backward(model, 1, scale=5.0)
    exact = torch.sqrt(sum((p.grad.double() ** 2).sum() for p in model.parameters()))
    optimizer = ours(model, max_norm=0.01)
    optimizer.step()
    assert optimizer.guard.norm.item() == pytest.approx(exact.item(), rel=1e-6)
    clipped = torch.sqrt(sum((p.grad.double() ** 2).sum() for p in model.parameters()))
    assert clipped.item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("kind", [AdamW, Traced])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_gradient_changes_nothing_and_is_counted(kind, bad):
    model = small_model()
    optimizer = kind(parameter_groups(model), guard=GradientGuard(1.0))
    optimizer.set_scalars(1e-2, 0.1)
    backward(model, 0)
    optimizer.step()
    optimizer.zero_grad()
    before = copy.deepcopy([*model.state_dict().values(), optimizer.state_dict()["state"]])
    for count in (1, 2):
        backward(model, count)
        next(model.parameters()).grad[0, 0] = bad
        optimizer.step()
        optimizer.zero_grad()
        assert optimizer.guard.skipped_in_a_row.item() == count
    torch.testing.assert_close([*model.state_dict().values(), optimizer.state_dict()["state"]], before, rtol=0, atol=0)
    backward(model, 9)
    optimizer.step()
    assert optimizer.guard.skipped_in_a_row.item() == 0
    assert optimizer.guard.skipped.item() == 2
    assert not torch.equal(next(model.parameters()), before[0])


def test_state_exists_before_the_first_step():
    optimizer = ours(small_model())
    assert all(set(optimizer.state[p]) == {"step", "exp_avg", "exp_avg_sq"} for p in optimizer.parameters())


def test_a_restored_optimizer_goes_on_bit_for_bit():
    def run(model, optimizer, seeds):
        for seed in seeds:
            backward(model, seed)
            optimizer.set_scalars(1e-2, 0.1)
            optimizer.step()
            optimizer.zero_grad()

    straight = small_model()
    run(straight, ours(straight), range(6))
    first = small_model()
    optimizer = ours(first)
    run(first, optimizer, range(3))
    second = copy.deepcopy(first)
    resumed = ours(second)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(second, resumed, range(3, 6))
    torch.testing.assert_close(second.state_dict(), straight.state_dict(), rtol=0, atol=0)


def test_a_state_of_another_model_is_refused():
    other = ours(nn.Linear(2, 2)).state_dict()
    with pytest.raises(ValueError, match="2 parameters, this model 6"):
        ours(small_model()).load_state_dict(other)


def test_only_matrices_decay():
    model = small_model()
    token = nn.Parameter(torch.zeros(1, 1, 8))
    model.register_parameter("token", token)
    decayed, undecayed = parameter_groups(model)
    assert decayed["decay"]
    assert not undecayed["decay"]
    assert sorted(p.ndim for p in decayed["params"]) == [2, 2]
    assert any(p is token for p in undecayed["params"])
    assert len(decayed["params"]) + len(undecayed["params"]) == len(list(model.parameters()))


def test_a_frozen_model_is_refused():
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False))


@pytest.mark.parametrize("kind", [AdamW, Traced])
def test_a_branch_that_sat_out_steps_goes_on_as_if_they_had_not_been(kind):
    """Weights, moments and the count in the bias correction: as torch's AdamW, which counts by parameter."""
    model = small_model()
    reference = copy.deepcopy(model)
    branch = {"head": list(model[3].parameters())}
    optimizer = kind(split_by_branch(parameter_groups(model), branch), guard=GradientGuard(None))
    peer = torch.optim.AdamW(reference.parameters(), lr=1e-2, weight_decay=0.0)
    for seed in range(6):
        backward(model, seed)
        backward(reference, seed)
        if seed in (1, 2, 4):
            for parameter in (*model[3].parameters(), *reference[3].parameters()):
                parameter.grad = None
        optimizer.set_scalars(1e-2, 0.0)
        for one in (optimizer, peer):
            one.step()
            one.zero_grad()
    assert {int(optimizer.state[parameter]["step"]) for parameter in branch["head"]} == {3}
    assert int(optimizer.state[model[0].weight]["step"]) == 6
    for found, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_groups_hold_one_branch_each_and_every_parameter_once():
    model = small_model()
    split = split_by_branch(parameter_groups(model), {"first": list(model[0].parameters())})
    assert [(group["branch"], group["decay"], len(group["params"])) for group in split] == [
        (None, True, 1), ("first", True, 1), (None, False, 3), ("first", False, 1)
    ]  # fmt: skip
    found = sorted(id(parameter) for group in split for parameter in group["params"])
    assert found == sorted(id(parameter) for parameter in model.parameters())
