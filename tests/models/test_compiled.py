"""Compiled blocks: the mathematics of the plain ones, no graph breaks, one compilation for each shape."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from oct_foundation.models.blocks import Block
from oct_foundation.models.positions import RotaryPositions
from oct_foundation.models.vjepa3d import VJEPA3D, VJEPA3DConfig

IDX = torch.tensor([[3, 0, 7, 12], [15, 2, 4, 9]])


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    # A compilation that was killed leaves half a library in the cache of all: "invalid ELF header" ever after.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def block_and_tokens():
    torch.manual_seed(0)
    block = Block(48, 2).double()
    torch.nn.init.normal_(block.mlp.fc1.bias)
    torch.nn.init.normal_(block.attention.qkv.bias)
    return block, torch.randn(2, 16, 48, dtype=torch.float64, requires_grad=True)


def rotation(idx=None):
    return RotaryPositions((1, 4, 4), 24, "interleaved")(idx, torch.float64)


@pytest.mark.parametrize("asked", [None, 5, IDX], ids=["all", "last", "index"])
@pytest.mark.parametrize("rotated", [True, False])
def test_a_block_is_one_graph(asked, rotated):
    block, tokens = block_and_tokens()
    found = torch._dynamo.explain(block)(tokens, rotation() if rotated else None, asked)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found


@pytest.mark.slow
def test_output_and_gradients_of_a_compiled_block_are_those_of_the_plain_one_in_float64():
    """float32 is compiled: torch 2.9.1 compiles no attention in float64 on a CPU ("expected scalar type Double")."""
    plain, tokens = block_and_tokens()
    weight = torch.randn(2, 5, 48, dtype=torch.float64)

    def results(block, dtype):
        inputs = tokens.detach().to(dtype).requires_grad_()
        turned = RotaryPositions((1, 4, 4), 24, "interleaved")(None, dtype)
        output = block(inputs, turned, 5)
        return [output.detach(), *torch.autograd.grad((output * weight.to(dtype)).sum(), [inputs, *block.parameters()])]

    compiled = copy.deepcopy(plain).float()
    compiled.compile(dynamic=False, fullgraph=True)
    for found, wanted in zip(results(compiled, torch.float32), results(plain, torch.float64), strict=True):
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert counters["stats"]["unique_graphs"] == 1


def build():
    torch.manual_seed(0)
    size = {"image_size": (8, 64, 32), "patch_size": (4, 16, 8)}
    return VJEPA3D(VJEPA3DConfig(preset="vit_tiny", positions="rotary", **size))


def loss_of(model):
    generator = torch.Generator().manual_seed(1)
    views = torch.randn(2, 2, 1, 8, 64, 32, generator=generator)
    order = torch.stack([torch.randperm(32, generator=generator) for _ in range(2)])
    return model(*views, context_idx=order[:, 19:], target_idx=order[:, :19])[0]


def test_compiling_changes_no_name_of_a_weight():
    model, plain = build(), build()
    model.compile_blocks()
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in plain.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "alternate"])
def test_a_compiled_model_computes_what_the_plain_one_does_and_compiles_each_shape_once(remat):
    model, plain = build(), build()
    model.compile_blocks()
    model.recompute(remat)
    losses = [loss_of(each) for each in (plain, model)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    for wanted, found in zip(plain.trainable_parameters(), model.trainable_parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-7)
    # The residual stream is fp32 by design, so float64 is for the block alone (above).
    # Teacher, context encoder and predictor; the last blocks of teacher and predictor, which compute less.
    assert counters["stats"]["unique_graphs"] == 5
    loss_of(model).backward()
    assert counters["stats"]["unique_graphs"] == 5
