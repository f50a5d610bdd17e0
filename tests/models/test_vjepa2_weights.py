"""V-JEPA 2 weights in and out, with VJEPA2 of `transformers` itself as the oracle, small and at random."""

import json

import numpy as np
import pytest
import torch

from oct_foundation.models.vjepa2_weights import (
    RGB_MEAN,
    RGB_STD,
    from_vjepa2_names,
    load_vjepa2,
    obstacles,
    resized_kernel,
    start_from_vjepa2,
    to_vjepa2_names,
)
from oct_foundation.models.vjepa3d import VJEPA3D, VJEPA3DConfig

transformers = pytest.importorskip("transformers", reason="TRANSFORMERS ABSENT (octfm[dev]): parity was NOT tested")

TINY = {
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "pred_hidden_size": 96,
    "pred_num_hidden_layers": 2,
    "pred_num_attention_heads": 3,
}


def peer_config(*, depth=8, tubelet=2, **changes):
    sides = {"crop_size": 32, "frames_per_clip": depth, "tubelet_size": tubelet, "patch_size": 16}
    return transformers.VJEPA2Config(**sides, **(TINY | changes))


def saved_vjepa2(folder, **changes):
    """A random VJEPA2 on disk, loud enough that every error shows, and the model."""
    torch.manual_seed(0)
    model = transformers.VJEPA2Model(peer_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def config(**changes):
    return VJEPA3DConfig(
        **{
            "preset": "vit_tiny",
            "image_size": (16, 32, 32),
            "patch_size": (4, 16, 16),
            "positions": "rotary",
            "rope_layout": "vjepa2",
        }
        | changes
    )


def started(folder, **changes):
    torch.manual_seed(1)
    model = VJEPA3D(config(**changes)).eval()
    return model, start_from_vjepa2(model, folder)


def grey(depth, side=32):
    return np.random.default_rng(0).integers(0, 256, (2, depth, side, side), dtype=np.uint8)


def their_features(model, video):
    """Of a grey uint8 video [B, D, H, W], shown in three equal colours, standardised as V-JEPA 2 is."""
    colours = torch.from_numpy(video).float().div(255).unsqueeze(2).expand(-1, -1, 3, -1, -1)
    mean, std = (torch.tensor(values).view(1, 1, 3, 1, 1) for values in (RGB_MEAN, RGB_STD))
    with torch.no_grad():
        return model((colours - mean) / std, skip_predictor=True).last_hidden_state


def our_features(model, volume):
    return model.encode(torch.from_numpy(volume).unsqueeze(1))


def test_a_grey_volume_gives_the_features_of_the_rgb_video(tmp_path):
    peer = saved_vjepa2(tmp_path, depth=16, tubelet=4)
    model, _ = started(tmp_path)
    difference = (our_features(model, grey(16)) - their_features(peer, grey(16))).abs().max().item()
    print(difference)
    assert difference <= 1e-5


def test_a_tubelet_of_two_becomes_four_slices_that_see_each_frame_twice(tmp_path):
    peer = saved_vjepa2(tmp_path, depth=8, tubelet=2)
    model, _ = started(tmp_path)
    video = grey(8)
    difference = (our_features(model, video.repeat(2, axis=1)) - their_features(peer, video)).abs().max().item()
    print(difference)
    assert difference <= 1e-5
    wrong = (our_features(model, np.tile(video, (1, 2, 1, 1))) - their_features(peer, video)).abs().max().item()
    assert wrong > 1e-2


def test_the_folders_own_standardisation_counts(tmp_path):
    saved_vjepa2(tmp_path, depth=16, tubelet=4)
    before = our_features(started(tmp_path)[0], grey(16))
    (tmp_path / "video_preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    assert (our_features(started(tmp_path)[0], grey(16)) - before).abs().max() > 1e-3


def test_student_teacher_and_predictor_start_from_the_video_weights(tmp_path):
    peer = saved_vjepa2(tmp_path, depth=8, tubelet=2)
    model, left = started(tmp_path)
    assert left == []
    teacher, student = model.target_encoder.state_dict(), model.context_encoder.state_dict()
    assert all(torch.equal(teacher[name], student[name]) for name in teacher)
    assert torch.equal(model.predictor.proj.weight, peer.predictor.proj.weight)
    assert torch.equal(model.predictor.mask_token[0, 0], peer.predictor.embeddings.mask_tokens[1, 0, 0])


def test_a_predictor_of_other_sizes_keeps_its_random_start(tmp_path):
    saved_vjepa2(tmp_path, depth=8, tubelet=2, pred_num_hidden_layers=3)
    torch.manual_seed(1)
    fresh = VJEPA3D(config()).predictor.state_dict()
    model, left = started(tmp_path)
    assert left == ["predictor"]
    assert all(torch.equal(fresh[name], tensor) for name, tensor in model.predictor.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "ours", "message"),
    [
        ({"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12}, {}, "set model.preset=vit_small"),
        ({"num_hidden_layers": 5}, {}, "no preset has these sizes"),
        ({"mlp_ratio": 2.0}, {}, "'mlp_ratio': 2.0"),
        ({}, {"positions": "sincos"}, "set model.positions=rotary and model.rope_layout=vjepa2"),
        ({}, {"rope_layout": "interleaved"}, "found rotary, interleaved"),
        ({}, {"in_channels": 3}, "set model.in_channels=1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_a_remedy(tmp_path, changes, ours, message):
    peer_config(**changes).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_vjepa2(tmp_path, config(**ours))


def test_two_channels_are_refused(tmp_path):
    saved_vjepa2(tmp_path, in_chans=2)
    with pytest.raises(ValueError, match="2 channels"):
        load_vjepa2(tmp_path, config())


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config.json cannot be read"):
        load_vjepa2(tmp_path, config())
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="model_type 'vit'"):
        load_vjepa2(tmp_path, config())


def test_names_there_and_back_are_the_same():
    model = VJEPA3D(config())
    for network in (model.target_encoder, model.predictor):
        weights = network.state_dict()
        back = from_vjepa2_names(to_vjepa2_names(weights))
        assert back.keys() == weights.keys()
        assert all(torch.equal(back[name], weights[name]) for name in weights)


def resized_by_hand(patch, new):
    """Mean of each cell of `new` over the area that it covers: a slow loop over a fine common grid."""
    fine = patch
    for axis, side in enumerate(new):
        fine = fine.repeat_interleave(side, dim=axis)
        fine = torch.stack([part.mean(axis) for part in fine.chunk(side, dim=axis)], dim=axis)
    return fine


@pytest.mark.parametrize(("old", "new"), [((2, 4, 4), (4, 4, 4)), ((2, 6, 6), (3, 4, 8)), ((4, 3, 3), (1, 5, 2))])
def test_a_resized_kernel_answers_as_the_old_one_to_the_resized_patch(old, new):
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(5, 1, *old, generator=generator)
    patch = torch.randn(*new, generator=generator)
    expected = (kernel * resized_by_hand(patch, old)).sum((1, 2, 3, 4))
    found = (resized_kernel(kernel, new) * patch).sum((1, 2, 3, 4))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_obstacles_name_positions_and_sides():
    assert obstacles(config()) == []
    assert "sincos" in obstacles(config(positions="sincos"))[0]
    found = obstacles(config(rope_layout="interleaved", image_size=(16, 32, 48)))
    assert len(found) == 2
    assert "32 x 48" in found[1]
