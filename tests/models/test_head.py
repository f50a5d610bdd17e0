"""Heads for fine-tuning, against the same written as loops."""

import pytest
import torch

from oct_foundation.models.head import AttentiveHead, FineTuned, LinearHead, build_head


def tokens():
    return torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(0))


def head(kind):
    torch.manual_seed(1)
    found = build_head(kind, width=12, num_heads=3, num_outputs=2)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return found


def test_the_linear_head_looks_at_the_mean_patch():
    found = head("linear")
    assert isinstance(found, LinearHead)
    expected = found.linear(found.norm(torch.stack([sum(volume) / 7 for volume in tokens()])))
    torch.testing.assert_close(found(tokens()), expected)


def test_each_query_of_the_attentive_head_averages_patches_by_its_own_softmax():
    found = head("attentive")
    assert isinstance(found, AttentiveHead)
    key, value = found.key_value(found.norm(tokens())).chunk(2, dim=-1)
    rows = []
    for volume in range(3):
        pooled = []
        for number in range(3):
            channels = slice(4 * number, 4 * number + 4)
            query = found.query[0, number, 0]
            weights = torch.softmax(torch.stack([query @ k / 2 for k in key[volume][:, channels]]), dim=0)
            pooled.append(sum(w * v for w, v in zip(weights, value[volume][:, channels], strict=True)))
        rows.append(torch.cat(pooled))
    torch.testing.assert_close(found(tokens()), found.linear(torch.stack(rows)))


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_the_order_of_patches_does_not_matter_and_every_weight_learns(kind):
    found = head(kind)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(found(tokens()[:, order]), found(tokens()), rtol=1e-5, atol=1e-6)
    found(tokens()).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in found.parameters())


def test_a_fine_tuned_network_is_the_head_of_the_encoders_features():
    network = FineTuned(torch.nn.Linear(5, 12), head("linear"))
    features = torch.randn(2, 7, 5)
    assert torch.equal(network(features), network.head(network.encoder(features)))
