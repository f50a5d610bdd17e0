"""The latent loss against hand values, and its targets against the law of layer norm."""

import math

import pytest
import torch

from oct_foundation.losses.latent import latent_loss, normalize_targets

# Differences 0, 0.5, -1, 3.
PREDICTIONS = torch.tensor([[[1.0, 2.5], [0.0, 7.0]]])
TARGETS = torch.tensor([[[1.0, 2.0], [1.0, 4.0]]])


@pytest.mark.parametrize(
    ("kind", "by_hand"),
    [
        ("mse", (0 + 0.25 + 1 + 9) / 4),
        ("smooth_l1", (0 + 0.125 + 0.5 + 2.5) / 4),
        ("l1", (0 + 0.5 + 1 + 3) / 4),
    ],
)
def test_each_loss_has_its_hand_value(kind, by_hand):
    assert latent_loss(PREDICTIONS, TARGETS, kind).item() == pytest.approx(by_hand, abs=1e-7)


@pytest.mark.parametrize(("kind", "expected"), [("mse", 1.0), ("smooth_l1", 0.4245), ("l1", 0.7979)])
def test_predicting_zero_costs_the_published_baseline_on_gaussian_features(kind, expected):
    features = torch.randn(64, 128, 96, generator=torch.Generator().manual_seed(0))
    targets = normalize_targets(features)
    assert latent_loss(torch.zeros_like(targets), targets, kind).item() == pytest.approx(expected, abs=3e-3)


def test_bfloat16_predictions_are_compared_in_float32():
    predictions = torch.full((1, 1, 4), 1.0, dtype=torch.bfloat16, requires_grad=True)
    loss = latent_loss(predictions, torch.full((1, 1, 4), 1.001), "l1")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.001, rel=1e-3)  # in bfloat16 it would be 0


def test_normalized_targets_equal_the_formula_and_are_float32():
    features = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 5 + 2
    centred = features - features.mean(-1, keepdim=True)
    expected = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)
    found = normalize_targets(features)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)


def test_scale_and_offset_of_the_features_do_not_reach_the_targets():
    features = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(normalize_targets(7 * features + 3), normalize_targets(features), rtol=1e-4, atol=1e-4)
    assert normalize_targets(features).pow(2).mean().sqrt().item() == pytest.approx(1.0, abs=1e-4)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"\[1, 2, 4\] and targets \[1, 1, 4\]"):
        latent_loss(torch.zeros(1, 2, 4), torch.zeros(1, 1, 4), "mse")


def test_an_unknown_loss_is_refused_by_name():
    with pytest.raises(ValueError, match="'l3' is unknown; allowed: mse, smooth_l1, l1"):
        latent_loss(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), "l3")


def test_gradient_of_mse_is_two_over_n_times_the_difference():
    predictions = PREDICTIONS.clone().requires_grad_()
    latent_loss(predictions, TARGETS, "mse").backward()
    torch.testing.assert_close(predictions.grad, 2 / 4 * (PREDICTIONS - TARGETS))
    assert math.isclose(predictions.grad[0, 1, 1].item(), 1.5)
