"""Ours against transformers' VJEPA2, with loud weights: at the default start most mistakes hide below rounding."""

import copy

import pytest
import torch
from torch.nn import functional

from oct_foundation.models import transformer
from oct_foundation.models.vjepa3d import VJEPA3D, VJEPA3DConfig, normalize_targets
from tests.models.vjepa2 import build_peer, peer_encode, peer_predict

TOLERANCE = 1e-5
IMAGE, NUM_TOKENS, NUM_TARGET = (16, 96, 96), 144, 86


def build(rope_layout="vjepa2", preset="vit_tiny") -> VJEPA3D:
    config = VJEPA3DConfig(image_size=IMAGE, preset=preset, positions="rotary", rope_layout=rope_layout)
    torch.manual_seed(0)
    return VJEPA3D(config)


@torch.no_grad()
def make_loud(model: VJEPA3D) -> VJEPA3D:
    """Weights of 1.5 / sqrt(fan in), random norms, biases and mask token."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 and not name.endswith("mask_token"):
            parameter.copy_(1.5 * noise / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_((1.0 if ".norm" in name and name.endswith("weight") else 0.0) + 0.3 * noise)
    model.target_encoder.load_state_dict(model.context_encoder.state_dict())
    return model


@pytest.fixture(scope="module")
def sample():
    generator = torch.Generator().manual_seed(2)
    volumes = torch.randn(2, 1, *IMAGE, generator=generator)
    order = torch.stack([torch.randperm(NUM_TOKENS, generator=generator) for _ in range(2)])
    context_idx, target_idx = order[:, NUM_TARGET:].sort().values, order[:, :NUM_TARGET].sort().values
    return volumes, context_idx, target_idx


def differences(model: VJEPA3D, peer, sample) -> dict[str, float]:
    volumes, context_idx, target_idx = sample
    with torch.no_grad():
        context = model.context_encoder(volumes, context_idx)
        return {
            "encoder": (model.context_encoder(volumes) - peer_encode(peer.encoder, volumes)).abs().max().item(),
            "context": (context - peer_encode(peer.encoder, volumes, context_idx)).abs().max().item(),
            "predictor": (
                model.predictor(context, context_idx, target_idx)
                - peer_predict(peer.predictor, context, context_idx, target_idx)
            )
            .abs()
            .max()
            .item(),
        }


@pytest.mark.parametrize("preset", ["vit_tiny", "vit_small"])
def test_encoder_masked_encoder_and_predictor_equal_vjepa2(preset, sample):
    model = make_loud(build(preset=preset))
    found = differences(model, build_peer(model), sample)
    assert max(found.values()) <= TOLERANCE, found


def test_the_peers_own_predictor_with_its_sorting_agrees(sample):
    volumes, context_idx, target_idx = sample
    model = make_loud(build())
    peer = build_peer(model)
    with torch.no_grad():
        context = model.context_encoder(volumes, context_idx)
        full = torch.zeros(2, NUM_TOKENS, model.embed_dim)
        full.scatter_(1, context_idx.unsqueeze(-1).expand(-1, -1, model.embed_dim), context)
        theirs = peer.predictor(full, [context_idx], [target_idx]).last_hidden_state
        ours = model.predictor(context, context_idx, target_idx)
    assert (ours - theirs).abs().max().item() <= TOLERANCE


def tanh_gelu(model, monkeypatch):
    exact = functional.gelu
    monkeypatch.setattr(transformer.functional, "gelu", lambda x: exact(x, approximate="tanh"))


def other_layout(model, monkeypatch):
    other = build(rope_layout="interleaved")
    for name in ("context_encoder", "predictor"):
        getattr(model, name).positions.rotary.copy_(getattr(other, name).positions.rotary)


def swapped_axes(model, monkeypatch):
    for part in (model.context_encoder, model.predictor):
        table = part.positions.rotary.view(2, *part_grid(model), -1)
        part.positions.rotary.copy_(table.transpose(2, 3).reshape(part.positions.rotary.shape))


def part_grid(model):
    return model.config.grid.grid


def positions_from_zero(model, monkeypatch):
    for part in (model.context_encoder, model.predictor):
        healthy = part.positions.forward

        def shifted(tokens, indices, healthy=healthy):
            counted = torch.arange(tokens.shape[1]).expand(tokens.shape[0], -1)
            return healthy(tokens, None if indices is None else counted)

        monkeypatch.setattr(part.positions, "forward", shifted)


def queries_and_keys_swapped(model, monkeypatch):
    with torch.no_grad():
        for part in (model.context_encoder, model.predictor):
            for block in part.transformer.blocks:
                for tensor in (block.attn.qkv.weight, block.attn.qkv.bias):
                    queries, keys, values = tensor.clone().chunk(3)
                    tensor.copy_(torch.cat([keys, queries, values]))


def coarse_epsilon(model, monkeypatch):
    for module in model.predictor.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5


@pytest.mark.parametrize(
    "mutate",
    [tanh_gelu, other_layout, swapped_axes, positions_from_zero, queries_and_keys_swapped, coarse_epsilon],
)
def test_the_tolerance_catches(mutate, sample, monkeypatch):
    model = make_loud(build())
    peer = build_peer(model)
    with torch.no_grad():
        mutate(model, monkeypatch)
    assert max(differences(model, peer, sample).values()) > TOLERANCE


def test_ten_steps_of_adamw_and_ema_follow_the_peer(sample):
    volumes, context_idx, target_idx = sample
    model = build()
    with torch.no_grad():
        model.predictor.mask_token.normal_(std=0.02)
    peer = build_peer(model)
    peer_target = copy.deepcopy(peer.encoder).requires_grad_(False)
    ours = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizers = [torch.optim.AdamW(params, lr=1e-4) for params in (ours, list(peer.parameters()))]
    for step in range(10):
        loss = model(volumes, volumes, context_idx=context_idx, target_idx=target_idx)[0]
        with torch.no_grad():
            targets = normalize_targets(peer_encode(peer_target, volumes))
            targets = targets.gather(1, target_idx.unsqueeze(-1).expand(-1, -1, model.embed_dim))
        context = peer_encode(peer.encoder, volumes, context_idx)
        expected = functional.mse_loss(peer_predict(peer.predictor, context, context_idx, target_idx), targets)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4), f"step {step}"
        for optimizer, value in zip(optimizers, (loss, expected), strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        model.update_teacher(0.9)
        torch._foreach_lerp_(list(peer_target.parameters()), list(peer.encoder.parameters()), 0.1)


def test_gradients_of_one_step_equal_the_peers(sample):
    volumes, context_idx, target_idx = sample
    model = build()
    peer = build_peer(model)
    weights = torch.randn(2, NUM_TARGET, model.embed_dim, generator=torch.Generator().manual_seed(3))
    context = model.context_encoder(volumes, context_idx)
    (model.predictor(context, context_idx, target_idx) * weights).mean().backward()
    context = peer_encode(peer.encoder, volumes, context_idx)
    (peer_predict(peer.predictor, context, context_idx, target_idx) * weights).mean().backward()
    theirs = peer.encoder.embeddings.patch_embeddings.proj.weight.grad
    torch.testing.assert_close(model.context_encoder.patch_embed.weight.grad, theirs, rtol=1e-3, atol=1e-8)
    theirs = torch.cat([getattr(peer.encoder.layer[0].attention, p).weight.grad for p in ("query", "key", "value")])
    ours = model.context_encoder.transformer.blocks[0].attn.qkv.weight.grad
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-8)
