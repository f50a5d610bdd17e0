"""Layer-wise learning rates: the scale of every parameter by hand, and one update against plain AdamW per layer."""

import pytest
import torch

from oct_foundation.models.head import FineTuned, LinearHead
from oct_foundation.models.vjepa3d import VJEPA3D, VJEPA3DConfig
from oct_foundation.optim.adamw import AdamW
from oct_foundation.optim.clipping import GradientGuard
from oct_foundation.optim.layer_decay import layer_groups, layer_scale

DEPTH = 4


def model():
    torch.manual_seed(0)
    encoder = VJEPA3D(VJEPA3DConfig(preset="vit_tiny", image_size=(8, 32, 32))).context_encoder
    return FineTuned(encoder, LinearHead(96, 2))


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("encoder.patch_embed.proj.weight", 0.5**5),
        ("encoder.blocks.0.norm1.bias", 0.5**4),
        ("encoder.blocks.3.mlp.fc2.weight", 0.5),
        ("blocks.2.attention.qkv.weight", 0.5**2),
        ("encoder.norm.weight", 1.0),
        ("head.linear.weight", 1.0),
    ],
)
def test_each_layer_learns_half_as_fast_as_the_one_above(name, scale):
    assert layer_scale(name, DEPTH, 0.5) == scale


def test_a_block_too_many_is_an_error():
    with pytest.raises(ValueError, match="is of block 4; an encoder of 4 blocks has 0 to 3"):
        layer_scale("encoder.blocks.4.norm1.weight", DEPTH, 0.5)


def test_groups_hold_every_parameter_once_under_its_own_scale():
    network = model()
    groups = layer_groups(network, DEPTH, 0.5)
    names = {id(p): name for name, p in network.named_parameters()}
    found = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(found) == sorted(names.values())
    for group in groups:
        for parameter in group["params"]:
            assert group["scale"] == layer_scale(names[id(parameter)], DEPTH, 0.5)
            assert group["decay"] == (sum(side > 1 for side in parameter.shape) >= 2)


def test_updates_are_those_of_torchs_adamw_with_a_rate_per_group():
    ours, plain = model(), model()
    settings = {"betas": (0.9, 0.999), "eps": 1e-3}  # keys' biases have no gradient but rounding, which Adam blows up
    optimizer = AdamW(layer_groups(ours, DEPTH, 0.5), guard=GradientGuard(None), **settings)
    oracle = torch.optim.AdamW(
        [
            {"params": group["params"], "lr": 1e-2 * group["scale"], "weight_decay": 0.1 if group["decay"] else 0.0}
            for group in layer_groups(plain, DEPTH, 0.5)
        ],
        **settings,
    )
    volume = torch.randn(2, 1, 8, 32, 32, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        optimizer.set_scalars(1e-2, 0.1)
        for network, steps in ((ours, optimizer), (plain, oracle)):
            network(volume).square().sum().backward()
            steps.step()
            steps.zero_grad()
    for (name, found), expected in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=name)


def test_the_norm_and_the_clip_are_over_all_groups():
    network, guard = model(), GradientGuard(1e-3)
    optimizer = AdamW(layer_groups(network, DEPTH, 0.5), guard=guard)
    network(torch.randn(1, 1, 8, 32, 32)).sum().backward()
    gradients = [p.grad.clone() for p in network.parameters()]
    optimizer.set_scalars(1e-3, 0.0)
    optimizer.step()
    expected = torch.cat([g.flatten() for g in gradients]).norm()
    assert guard.norm.item() == pytest.approx(expected.item(), rel=1e-4)
    clipped = torch.cat([p.grad.flatten() for p in network.parameters()]).norm()
    assert clipped.item() == pytest.approx(1e-3, rel=1e-2)
