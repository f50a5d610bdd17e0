"""What VJEPA3D promises: what each network may see, who gets gradients, which inputs are refused."""

import copy
import math

import pytest
import torch

from oct_foundation.models.encoder import VOXEL_MEAN, VOXEL_STD, PatchEmbed
from oct_foundation.models.vjepa3d import PRESETS, VJEPA3D, VJEPA3DConfig, mask_to_indices

NUM_TARGETS = 19


def config(**changes):
    return VJEPA3DConfig(**{"preset": "vit_tiny", "image_size": (8, 64, 32), "patch_size": (4, 16, 8), **changes})


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return VJEPA3D(config(**changes))


def views(num_volumes=2, size=(8, 64, 32), seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(num_volumes, 1, *size, generator=generator) for _ in range(2)]


def indices(num_volumes=2, num_tokens=32, seed=2):
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(num_tokens, generator=generator) for _ in range(num_volumes)])
    context, target = order[:, NUM_TARGETS:].sort(1).values, order[:, :NUM_TARGETS].sort(1).values
    return {"context_idx": context, "target_idx": target}


def tokens(*shape):
    return torch.zeros(shape, dtype=torch.long)


def voxels_of(grid, patches):
    """bool [D, H, W], True inside the patches."""
    inside = torch.zeros(grid.image_size, dtype=torch.bool)
    for d, h, w in grid.coordinates()[patches.numpy()]:
        pd, ph, pw = grid.patch_size
        inside[d * pd : (d + 1) * pd, h * ph : (h + 1) * ph, w * pw : (w + 1) * pw] = True
    return inside


@pytest.mark.parametrize(
    ("preset", "positions", "count"),
    [("vit_small", "sincos", 29_082_624), ("vit_small", "rotary", 29_082_624), ("vit_base", "sincos", None)],
)
def test_number_of_trainable_parameters_is_the_formula(preset, positions, count):
    with torch.device("meta"):
        model = VJEPA3D(VJEPA3DConfig(image_size=(64, 384, 384), preset=preset, positions=positions))
    sizes = {"vit_small": (384, 12, 384, 4), "vit_base": (768, 12, 384, 12)}
    width, depth, predictor_width, predictor_depth = sizes[preset]

    def blocks(number, size):
        return number * (12 * size**2 + 13 * size)

    encoder = 1024 * width + width + blocks(depth, width) + 2 * width
    predictor = width * predictor_width + predictor_width + predictor_width + blocks(predictor_depth, predictor_width)
    predictor += 2 * predictor_width + predictor_width * width + width
    print(f"{preset}: {model.num_trainable_parameters:,} trainable parameters")
    assert model.num_trainable_parameters == encoder + predictor
    assert count is None or model.num_trainable_parameters == count


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_loss_predictions_and_targets_have_their_shapes(positions):
    loss, predictions, targets = build(positions=positions)(*views(), **indices())
    assert loss.shape == ()
    assert loss.dtype == targets.dtype == torch.float32
    assert predictions.shape == targets.shape == (2, NUM_TARGETS, 96)
    assert not targets.requires_grad
    torch.testing.assert_close(loss, (predictions - targets).pow(2).mean())


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_hidden_voxels_of_the_context_view_change_nothing(positions):
    model, (context_view, target_view), idx = build(positions=positions), views(1), indices(1)
    before = model(context_view, target_view, **idx)[1]
    hidden = voxels_of(model.grid, idx["target_idx"][0])
    changed = torch.where(hidden, torch.full_like(context_view, torch.nan), context_view)  # NaN would spread at once
    assert torch.equal(model(changed, target_view, **idx)[1], before)


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_each_visible_patch_reaches_the_predictions(positions):
    model, (context_view, target_view), idx = build(positions=positions), views(1), indices(1)
    context_view.requires_grad_()
    model(context_view, target_view, **idx)[1].square().sum().backward()
    visible = voxels_of(model.grid, idx["context_idx"][0])
    assert torch.equal(context_view.grad[0, 0] != 0, visible)


def test_targets_are_the_layer_normed_features_of_the_teacher_at_the_hidden_patches():
    model, (context_view, target_view), idx = build(), views(), indices()
    features = model.encode(target_view)
    targets = model(context_view, target_view, **idx)[2]
    for volume in range(2):
        for place, token in enumerate(idx["target_idx"][volume]):
            row = features[volume, token]
            expected = (row - row.mean()) / torch.sqrt(row.var(unbiased=False) + 1e-5)
            torch.testing.assert_close(targets[volume, place], expected, rtol=1e-5, atol=1e-5)


def test_bool_mask_and_indices_give_the_same():
    model, (context_view, target_view), idx = build(), views(), indices()
    mask = torch.zeros(2, 32, dtype=torch.bool).scatter_(1, idx["target_idx"], True)
    by_mask = model(context_view, target_view, mask)
    for found, expected in zip(by_mask, model(context_view, target_view, **idx), strict=True):
        assert torch.equal(found, expected)


def test_mask_to_indices_by_hand():
    context, target = mask_to_indices(torch.tensor([[True, False, False, True], [False, True, True, False]]))
    assert context.tolist() == [[1, 2], [0, 3]]
    assert target.tolist() == [[0, 3], [1, 2]]


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_features_follow_their_tokens_when_the_order_changes(positions):
    encoder, (volume, _) = build(positions=positions).context_encoder, views()
    order = torch.stack([torch.randperm(32, generator=torch.Generator().manual_seed(n)) for n in range(2)])
    expected = torch.stack([row[tokens] for row, tokens in zip(encoder(volume), order, strict=True)])
    torch.testing.assert_close(encoder(volume, order), expected, rtol=1e-4, atol=1e-5)


def test_patch_embedding_equals_the_convolution_that_holds_its_weights():
    grid = config(in_channels=2).grid
    embed = PatchEmbed(grid, 2, 24)
    volume = torch.randn(2, 2, *grid.image_size, generator=torch.Generator().manual_seed(0))
    expected = embed.proj(volume).flatten(2).transpose(1, 2)
    idx = torch.tensor([[5, 0, 31], [2, 9, 4]])
    torch.testing.assert_close(embed(volume, None), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        embed(volume, idx), torch.stack([e[i] for e, i in zip(expected, idx, strict=True)]), rtol=1e-5, atol=1e-5
    )


def test_uint8_views_equal_float_views_standardised_with_the_constants():
    model, idx = build(), indices()
    raw = torch.randint(0, 256, (2, 1, 8, 64, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    floats = (raw.double() / 255 - VOXEL_MEAN) / VOXEL_STD
    for found, expected in zip(model(raw, raw, **idx), model(floats.float(), floats.float(), **idx), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_teacher_starts_as_the_student_and_gets_no_gradient():
    model = build()
    student, teacher = model.context_encoder.state_dict(), model.target_encoder.state_dict()
    assert all(torch.equal(student[name], teacher[name]) for name in teacher)
    model(*views(), **indices())[0].backward()
    assert all(parameter.grad is None for parameter in model.target_encoder.parameters())
    trainable = model.trainable_parameters()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trainable)
    assert not {id(p) for p in trainable} & {id(p) for p in model.target_encoder.parameters()}


def test_the_teacher_stays_in_eval_mode():
    model = build().train()
    assert model.context_encoder.training
    assert not model.target_encoder.training


@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_teacher_follows_the_moving_average(as_tensor):
    model = build()
    with torch.no_grad():
        for parameter in model.context_encoder.parameters():
            parameter.add_(1.0)
    for momentum in (0.9, 0.996):
        old = copy.deepcopy(model.target_encoder.state_dict())
        student = copy.deepcopy(model.context_encoder.state_dict())
        model.update_teacher(torch.tensor(momentum) if as_tensor else momentum)
        assert float(model.momentum) == pytest.approx(momentum)
        for name, tensor in model.target_encoder.state_dict().items():
            expected = momentum * old[name].double() + (1 - momentum) * student[name].double()
            torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-6)
        for name, tensor in model.context_encoder.state_dict().items():
            assert torch.equal(tensor, student[name])


def test_the_moving_average_follows_modules_whose_parameters_were_replaced():
    """What moving to XLA does; a list of pairs made at construction would update tensors that nobody uses."""
    model = build()
    for module in (model.target_encoder, model.context_encoder):
        module.norm.weight = torch.nn.Parameter(torch.full((96,), 3.0 if module is model.context_encoder else 1.0))
    model.update_teacher(0.5)
    assert torch.equal(model.target_encoder.norm.weight, torch.full((96,), 2.0))


def test_a_bfloat16_teacher_is_refused():
    model = build().to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"must be float32; found torch\.bfloat16"):
        model.update_teacher(0.99)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, second, other = build(3).state_dict(), build(3).state_dict(), build(4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["predictor.mask_token"], other["predictor.mask_token"])


def test_output_layers_start_smaller_with_depth():
    model = build()
    for network in (model.context_encoder, model.predictor):
        for number, block in enumerate(network.blocks, start=1):
            for layer in (block.attention.proj, block.mlp.fc2):
                assert layer.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.05)
            assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert not block.attention.qkv.bias.any()


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_autocast_runs_in_bfloat16_near_the_float32_result(positions):
    model, idx = build(positions=positions), indices()
    dtypes = []
    model.context_encoder.blocks[0].attention.proj.register_forward_pre_hook(
        lambda _m, args: dtypes.append(args[0].dtype)
    )
    exact = model(*views(), **idx)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, predictions, targets = model(*views(), **idx)
    loss.backward()
    assert dtypes == [torch.float32, torch.bfloat16]
    assert targets.dtype == loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.trainable_parameters())
    assert predictions.isfinite().all()


def test_a_few_updates_lower_the_loss():
    model, (view, _), idx = build(), views(), indices()
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        loss = model(view, view, **idx)[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_teacher(0.99)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give mask, or both"),
        ({"context_idx": indices()["context_idx"]}, "give mask, or both"),
        ({"mask": torch.zeros(2, 32, dtype=torch.bool), **indices()}, "found both"),
        ({"mask": torch.zeros(2, 32, dtype=torch.bool)}, r"at least 1 and below N = 32; found \[0\]"),
        ({"mask": torch.ones(2, 32, dtype=torch.bool)}, r"found \[32\]"),
        ({"mask": torch.tensor([[True] * 2 + [False] * 30, [True] * 3 + [False] * 29])}, r"found \[2, 3\]"),
        ({"mask": torch.zeros(2, 32)}, "mask must be bool"),
        ({"context_idx": tokens(2, 20), "target_idx": tokens(2, 13)}, "cannot be disjoint"),
        ({"context_idx": tokens(1, 5), "target_idx": tokens(2, 5)}, "context_idx must be"),
        ({"context_idx": tokens(2, 5), "target_idx": tokens(2, 0)}, "target_idx must be"),
    ],
)
def test_masks_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build()(*views(), **arguments)


def test_views_that_do_not_fit_are_refused():
    model, (view, _), idx = build(), views(), indices()
    with pytest.raises(
        ValueError, match=r"target_view must be \[B, C, D, H, W\] = \[B, 1, 8, 64, 32\]; found \[2, 1, 8, 32, 64\]"
    ):
        model(view, view.transpose(3, 4), **idx)
    with pytest.raises(ValueError, match="same volumes; found 2 and 1"):
        model(view, view[:1], **idx)
    with pytest.raises(ValueError, match="volume must be"):
        model.encode(view[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "vit_huge"}, "model.preset is 'vit_huge'; allowed: vit_tiny, vit_small, vit_base"),
        ({"positions": "learned"}, "model.positions is 'learned'"),
        ({"rope_layout": "half"}, "model.rope_layout is 'half'"),
        ({"loss": "l2"}, "model.loss is 'l2'"),
        ({"in_channels": 0}, "model.in_channels must be at least 1"),
        ({"image_size": (8, 64, 33)}, "axis W has 33 voxels"),
    ],
)
def test_a_bad_config_names_key_value_and_choices(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_the_predictor_leaves_out_only_what_nobody_reads(positions):
    """Its last block computes target tokens only; the result is that of computing all and dropping the context."""
    predictor, idx = build(positions=positions).predictor, indices()
    context = torch.randn(2, 13, 96, generator=torch.Generator().manual_seed(0))
    expected = predictor(context, **idx)
    last = predictor.blocks[-1]
    whole = type(last).forward
    predictor.blocks[-1].forward = lambda x, rotation, asked: whole(last, x, rotation)[:, -asked:]
    torch.testing.assert_close(predictor(context, **idx), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_the_teacher_leaves_out_only_what_nobody_reads(positions):
    """Its last block computes the targets only; the result is that of computing all and dropping the rest."""
    encoder, (view, _), idx = build(positions=positions).target_encoder, views(), indices()["target_idx"]
    expected = torch.stack([features[tokens] for features, tokens in zip(encoder(view), idx, strict=True)])
    torch.testing.assert_close(encoder(view, asked=idx), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["vit_small", "vit_base", "vit_large"])
def test_presets_for_the_matrix_unit_differ_in_their_heads_only(name):
    usual, wide = PRESETS[name], PRESETS[f"{name}_h128"]
    assert wide.width // wide.num_heads == wide.predictor_width // wide.predictor_heads == 128
    assert wide._replace(num_heads=usual.num_heads, predictor_heads=usual.predictor_heads) == usual
