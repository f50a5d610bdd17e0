"""Balances against their closed forms, and against autograd where a paper defines them by a derivative."""

import math

import pytest
import torch
from torch import nn

from oct_foundation.losses.balance import (
    FixedWeights,
    GradNorm,
    UncertaintyWeighting,
    build_balance,
    gradient_norms,
    shares,
)

EQUAL = dict.fromkeys(("video", "audio", "fmri"), 1.0)


def losses_of(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def test_fixed_weights_are_the_weighted_sum():
    found = FixedWeights({"video": 2.0, "fmri": 0.5})(losses_of(video=3, fmri=4))
    assert found.total.item() == 8
    assert {name: part.item() for name, part in found.parts.items()} == {"video": 6, "fmri": 2}


def test_learned_uncertainties_settle_at_the_logarithm_of_each_loss():
    values = {"video": 0.5, "audio": 40.0, "fmri": 1.0}
    balance = UncertaintyWeighting({**EQUAL, "fmri": 2.0}).double()
    assert balance(losses_of(**values)).total.item() == pytest.approx(0.5 + 40 + 2), "at first all weights are 1"
    optimizer = torch.optim.LBFGS(balance.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        total = balance(losses_of(**values)).total
        total.backward()
        return total

    optimizer.step(closure)
    expected = [math.log(0.5), math.log(40), math.log(2 * 1)]
    assert balance.log_variances.tolist() == pytest.approx(expected, abs=1e-4)
    found = balance(losses_of(**values))
    assert [part.item() for part in found.parts.values()] == pytest.approx([1, 1, 1], abs=1e-4)
    assert found.total.item() == pytest.approx(3 + sum(expected), abs=1e-6)


def test_the_gradient_of_uncertainty_is_its_derivative():
    torch.manual_seed(0)
    balance = UncertaintyWeighting(EQUAL).double()
    nn.init.normal_(balance.log_variances)
    values = torch.rand(3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, x: (
            torch.func.functional_call(
                balance, {"log_variances": s}, (dict(zip(EQUAL, x.unbind(), strict=True)),)
            ).total
        ),
        (balance.log_variances, values),
    )


def test_gradnorm_rests_where_the_loss_of_the_paper_is_zero():
    """Sum of |norm of w L - mean norm x (relative inverse rate)^alpha|, weights adding up to their number."""
    loss, norm = torch.tensor([0.9, 0.2, 1.5]), torch.tensor([5.0, 0.2, 1.0])
    first, alpha = torch.tensor([1.0, 1.0, 2.0]), 1.5
    balance = GradNorm(EQUAL, alpha=alpha)
    balance.first.copy_(first)
    given = [dict(zip(EQUAL, values.unbind(), strict=True)) for values in (loss, norm)]
    for _ in range(400):
        balance.update(*given)
    pace = (loss / first) / (loss / first).mean()
    weighted = balance.learned * norm
    expected = pace**alpha / (pace**alpha / norm).sum() * 3  # norms as the powers are, weights adding up to 3
    torch.testing.assert_close(weighted, expected, rtol=1e-3, atol=0)
    assert balance.learned.sum().item() == pytest.approx(3)


def test_a_step_of_gradnorm_goes_its_part_of_the_way_in_logarithms():
    balance = GradNorm({"video": 1.0, "fmri": 1.0}, rate=0.5)
    balance.update(losses_of(video=1, fmri=1), losses_of(video=7, fmri=1))
    video, fmri = (4 / 7) ** 0.5, 4**0.5  # targets: the mean norm, 4
    assert balance.learned.tolist() == pytest.approx([2 * video / (video + fmri), 2 * fmri / (video + fmri)])


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_a_step_that_is_not_finite_leaves_gradnorm_as_it_was(bad):
    balance = GradNorm(EQUAL)
    balance.update(losses_of(video=1, audio=1, fmri=1), losses_of(video=bad, audio=2, fmri=3))
    assert balance.learned.tolist() == [1, 1, 1]
    assert balance.first.tolist() == [0, 0, 0]


def test_gradnorm_gives_more_to_what_learns_more_slowly():
    balance, norms = GradNorm(EQUAL), losses_of(video=1.0, audio=1.0, fmri=1.0)
    balance.update(losses_of(video=1, audio=1, fmri=1), norms)
    assert balance.learned.tolist() == [1, 1, 1]
    for _ in range(100):
        balance.update(losses_of(video=0.2, audio=0.5, fmri=1), norms)
    video, audio, fmri = balance.learned.tolist()
    assert fmri > audio > video > 0


def test_gradnorm_keeps_its_first_losses_and_weights_in_the_state_and_out_of_the_optimizer():
    balance = GradNorm(EQUAL)
    balance.update(losses_of(video=2, audio=3, fmri=4), losses_of(video=1, audio=2, fmri=3))
    balance.update(losses_of(video=1, audio=1, fmri=1), losses_of(video=1, audio=2, fmri=3))
    assert balance.first.tolist() == [2, 3, 4]
    other = GradNorm(EQUAL)
    other.load_state_dict(balance.state_dict())
    assert torch.equal(other.learned, balance.learned)
    assert not list(balance.parameters())


def test_an_update_between_forward_and_backward_leaves_the_backward_alone():
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    losses, balance = dict(zip(EQUAL, values.unbind(), strict=True)), GradNorm(EQUAL)
    total = balance(losses).total
    balance.update(losses, losses_of(video=1, audio=2, fmri=3))
    total.backward()
    assert values.grad.tolist() == [1, 1, 1]


def test_shares_add_up_to_one_and_zeros_have_none():
    assert {name: share.item() for name, share in shares(losses_of(video=1, audio=3)).items()} == {
        "video": 0.25,
        "audio": 0.75,
    }
    assert [share.item() for share in shares(losses_of(video=0, audio=0)).values()] == [0, 0]


def test_gradient_norms_are_those_of_separate_backwards_and_leave_no_trace():
    torch.manual_seed(0)
    trunk, heads = nn.Linear(6, 5), {name: nn.Linear(5, 2) for name in ("video", "fmri")}
    features = torch.tanh(trunk(torch.randn(4, 6)))
    losses = {name: head(features).square().mean() * (9 if name == "video" else 1) for name, head in heads.items()}
    by_trunk = gradient_norms(losses, list(trunk.parameters()))
    by_features = gradient_norms(losses, [features])
    assert all(p.grad is None for module in (trunk, *heads.values()) for p in module.parameters())
    for name, loss in losses.items():
        trunk.zero_grad()
        features.retain_grad()
        features.grad = None
        loss.backward(retain_graph=True)
        expected = torch.cat([p.grad.flatten() for p in trunk.parameters()]).norm()
        torch.testing.assert_close(by_trunk[name], expected)
        torch.testing.assert_close(by_features[name], features.grad.norm())
    assert shares(by_features)["video"] > 0.5


def test_a_loss_that_does_not_reach_the_trunk_has_a_norm_of_zero():
    shared, own = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    norms = gradient_norms({"video": shared.sum(), "fmri": own.sum()}, [shared])
    assert norms["video"].item() == pytest.approx(math.sqrt(2))
    assert norms["fmri"].item() == 0


@pytest.mark.parametrize(
    ("kind", "expected"), [("fixed", FixedWeights), ("uncertainty", UncertaintyWeighting), ("gradnorm", GradNorm)]
)
def test_a_balance_is_built_by_its_word_and_begins_as_the_weighted_sum(kind, expected):
    balance = build_balance(kind, {"video": 2.0, "fmri": 0.5})
    assert isinstance(balance, expected)
    assert balance(losses_of(video=3, fmri=4)).total.item() == 8


def test_unknown_words_and_rates_are_refused():
    with pytest.raises(ValueError, match="'pcgrad'; allowed: fixed, uncertainty, gradnorm"):
        build_balance("pcgrad", EQUAL)
    with pytest.raises(ValueError, match=r"gradnorm\.rate must be above 0 and at most 1; found -1"):
        GradNorm(EQUAL, rate=-1)
