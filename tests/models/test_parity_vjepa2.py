"""VJEPA3D against V-JEPA 2 of `transformers`: outputs, gradients and a short training run, with loud weights.

At the default initialisation nearly every error hides in the fourth digit; with weights of 1.5 / sqrt(fan_in),
random norms and biases each mutation below moves the result by far more than the tolerance of 1e-5.
"""

import math

import pytest
import torch
from torch import nn

from benchmarks.vjepa2_peer import VJEPA2Peer, copy_weights, encode, predict
from oct_foundation.models import blocks
from oct_foundation.models.positions import RotaryPositions
from oct_foundation.models.vjepa2_weights import to_vjepa2_names
from oct_foundation.models.vjepa3d import VJEPA3D, VJEPA3DConfig

TOLERANCE = 1e-5
NUM_TARGETS = 86  # of 4 x 6 x 6 = 144 tokens


def build(preset, rope_layout="vjepa2"):
    torch.manual_seed(0)
    return VJEPA3D(
        VJEPA3DConfig(preset=preset, image_size=(16, 96, 96), positions="rotary", rope_layout=rope_layout, loss="l1")
    ).eval()


@torch.no_grad()
def make_loud(model):
    generator = torch.Generator().manual_seed(7)
    for module in (model.context_encoder, model.predictor):
        for name, parameter in module.named_parameters():
            if "norm" in name:
                mean, std = (1.0, 0.3) if name.endswith("weight") else (0.0, 0.3)
            elif parameter.ndim > 1 and name != "mask_token":
                mean, std = 0.0, 1.5 / math.sqrt(parameter[0].numel())
            else:
                mean, std = 0.0, 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + mean)
    model.target_encoder.load_state_dict(model.context_encoder.state_dict())


def batch(num_volumes=2):
    generator = torch.Generator().manual_seed(3)
    volume = torch.randn(num_volumes, 1, 16, 96, 96, generator=generator)
    order = torch.stack([torch.randperm(144, generator=generator) for _ in range(num_volumes)])
    return volume, order[:, NUM_TARGETS:].sort(1).values, order[:, :NUM_TARGETS].sort(1).values


@pytest.fixture(scope="module")
def peer():
    """V-JEPA 2 with loud weights, made of one of ours, and its three outputs."""
    model = build("vit_small")
    make_loud(model)
    peer = VJEPA2Peer(model.config).eval()
    copy_weights(model, peer)
    return peer


@pytest.fixture(scope="module")
def expected(peer):
    volume, context_idx, target_idx = batch()
    with torch.no_grad():
        context = encode(peer.context_encoder, volume, context_idx)
        return {
            "all tokens": encode(peer.context_encoder, volume),
            "visible tokens": context,
            "predictions": predict(peer.predictor, context, context_idx, target_idx),
        }


def outputs(model):
    volume, context_idx, target_idx = batch()
    with torch.no_grad():
        context = model.context_encoder(volume, context_idx)
        return {
            "all tokens": model.encode(volume),
            "visible tokens": context,
            "predictions": model.predictor(context, context_idx, target_idx),
        }


def loud_model(rope_layout="vjepa2"):
    model = build("vit_small", rope_layout)
    make_loud(model)
    return model


def deviations(found, expected):
    return {name: (found[name] - expected[name]).abs().max().item() for name in expected}


def test_encoder_masked_encoder_and_predictor_agree(expected):
    found = deviations(outputs(loud_model()), expected)
    print(found)
    assert max(found.values()) <= TOLERANCE


def test_the_predictor_agrees_with_the_forward_of_transformers_itself(peer, expected):
    """Through its own, sorting forward, which wants a full-length buffer to gather the context from."""
    _, context_idx, target_idx = batch()
    context = expected["visible tokens"]
    buffer = context.new_zeros(2, 144, 384).scatter_(1, context_idx.unsqueeze(-1).expand(-1, -1, 384), context)
    with torch.no_grad():
        theirs = peer.predictor(buffer, [context_idx], [target_idx]).last_hidden_state
    found = (outputs(loud_model())["predictions"] - theirs).abs().max().item()
    assert found <= TOLERANCE


def swap_height_and_width(model):
    for tables in (m for m in model.modules() if isinstance(m, RotaryPositions)):
        for table in (tables.cos, tables.sin):
            table[:, 20:60] = torch.cat([table[:, 40:60], table[:, 20:40]], dim=1)


def drop_rotation(model):
    for tables in (m for m in model.modules() if isinstance(m, RotaryPositions)):
        tables.cos.fill_(1.0)
        tables.sin.fill_(0.0)


class CountingPositions(nn.Module):
    """Gives tokens the positions 0 .. n-1 instead of their own."""

    def __init__(self, tables):
        super().__init__()
        self.tables = tables

    def forward(self, idx, dtype):
        wrong = None if idx is None else torch.arange(idx.shape[1]).expand(idx.shape)
        return self.tables(wrong, dtype)


def count_context_positions(model):
    model.context_encoder.rotary = CountingPositions(model.context_encoder.rotary)


def count_predictor_positions(model):
    model.predictor.rotary = CountingPositions(model.predictor.rotary)


def swap_query_and_key(model):
    for block in [*model.context_encoder.blocks, *model.predictor.blocks]:
        for tensor in (block.attention.qkv.weight.data, block.attention.qkv.bias.data):
            query, key, value = tensor.clone().chunk(3)
            tensor.copy_(torch.cat([key, query, value]))


def loosen_layer_norm(model):
    for norm in (m for m in model.modules() if isinstance(m, nn.LayerNorm)):
        norm.eps = 1e-5


MUTATIONS = [
    swap_height_and_width,
    drop_rotation,
    count_context_positions,
    count_predictor_positions,
    swap_query_and_key,
    loosen_layer_norm,
]


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_parity_would_notice(mutate, expected):
    model = loud_model()
    mutate(model)
    assert deviations(outputs(model), expected)["predictions"] > 2 * TOLERANCE


def test_parity_would_notice_the_interleaved_layout(expected):
    assert deviations(outputs(loud_model("interleaved")), expected)["predictions"] > 0.1


def test_parity_would_notice_tanh_gelu(expected, monkeypatch):
    exact = blocks.F.gelu
    monkeypatch.setattr(blocks.F, "gelu", lambda x: exact(x, approximate="tanh"))
    assert deviations(outputs(loud_model()), expected)["predictions"] > 10 * TOLERANCE


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def largest_relative(ours, peers):
    """Largest deviation of a gradient tensor, as a share of that tensor's largest entry."""
    renamed = to_vjepa2_names(ours)
    assert renamed.keys() == peers.keys()
    return max(((renamed[name] - peers[name]).abs().max() / peers[name].abs().max()).item() for name in peers)


def pair(preset, loud):
    model = build(preset)
    if loud:
        make_loud(model)
    peer = VJEPA2Peer(model.config).eval()
    copy_weights(model, peer)
    return model, peer


def test_gradients_of_one_step_agree():
    model, peer = pair("vit_small", loud=True)
    volume, context_idx, target_idx = batch()
    losses = []
    for side in (model, peer):
        loss, _, _ = side(volume, volume, context_idx=context_idx, target_idx=target_idx)
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name in ("context_encoder", "predictor"):
        found = largest_relative(gradients(getattr(model, name)), gradients(getattr(peer, name)))
        print(name, found)
        assert found < 1e-4


def test_ten_updates_with_adamw_and_moving_average_agree():
    model, peer = pair("vit_tiny", loud=False)
    volume, context_idx, target_idx = batch()
    curves = []
    for side in (model, peer):
        optimizer = torch.optim.AdamW((p for p in side.parameters() if p.requires_grad), lr=1e-3, weight_decay=0.05)
        curve = []
        for step in range(10):
            loss, _, _ = side(volume, volume, context_idx=context_idx, target_idx=target_idx)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            side.update_teacher(0.9 + 0.005 * step)
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    assert curves[0][-1] < 0.99 * curves[0][0]
    teacher = to_vjepa2_names(model.target_encoder.state_dict())
    deviation = max((teacher[n] - t).abs().max().item() for n, t in peer.target_encoder.state_dict().items())
    moved = max(
        (teacher[n] - t).abs().max().item()
        for n, t in pair("vit_tiny", loud=False)[1].target_encoder.state_dict().items()
    )
    print(curves, deviation, moved)
    assert deviation < 0.002 * moved
