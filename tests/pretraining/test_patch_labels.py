"""Patches of phantoms as rows of a probe: labels and features are those of the place, volumes stay together."""

import numpy as np
import pytest
import torch

from data_setup.phantom_anatomy import TISSUES
from data_setup.phantom_benchmark import BenchmarkSettings, PhantomBenchmark
from pretraining.encoder_file import load_encoder
from pretraining.patch_labels import sample_patches
from pretraining.probe_data import LabelChoice, phantom_benchmark, phantom_data
from pretraining.probe_features import Looking, features_of

SMALL = PhantomBenchmark(BenchmarkSettings(num_volumes=30, image_size=(8, 64, 64)))  # 2 x 4 x 4 patches


def test_labels_are_those_of_the_sampled_places():
    found = sample_patches(SMALL, folds=2)
    assert found.positions.shape == (30, 32)
    assert found.groups == [name for name in SMALL.ids for _ in range(32)]
    for row in range(0, 30 * 32, 37):
        volume, place = divmod(row, 32)
        truth = SMALL.patch_labels(volume)
        position = found.positions[volume, place]
        assert found.labels["patch/layer"][row] in (None, TISSUES[truth["layer"][position]])
        assert found.labels["patch/fluid"][row] == ("present" if truth["fluid"][position] else "absent")


def test_places_are_sampled_without_repetition_by_the_seed():
    found, again, other = (sample_patches(phantom_set(), folds=2, seed=seed).positions for seed in (0, 0, 1))
    assert found.shape == (3, 32)
    assert all(len(set(row)) == 32 for row in found.tolist())
    assert np.array_equal(found, again)
    assert not np.array_equal(found, other)


def phantom_set():
    """144 patches a volume."""
    return PhantomBenchmark(BenchmarkSettings(num_volumes=3))


def test_a_class_that_few_volumes_show_is_left_out_and_told_of():
    rare = sample_patches(SMALL, folds=16)  # no class is seen in 32 of 30 volumes
    assert set(rare.labels["patch/fluid"]) == {None}
    assert any("patch/fluid: present is seen in" in note for note in rare.notes)
    assert "32 of 32 patches of each volume, 960 in all" in rare.notes[0]


@pytest.mark.parametrize("num_volumes", [1, 7])
def test_features_are_the_tokens_and_the_voxels_of_the_places(save_run, tmp_path, num_volumes):
    save_run(tmp_path)
    saved = load_encoder(str(tmp_path))
    data = phantom_data(saved, LabelChoice(), num_volumes)
    patches = sample_patches(phantom_benchmark(saved, num_volumes), folds=2)
    looking = Looking(positions=patches.positions, tokens=True, deviation=True, batch_size=3)
    found = features_of(saved, data, looking)
    volumes = torch.from_numpy(np.stack([data.volumes[number] for number in range(num_volumes)]))[:, None]
    with torch.no_grad():
        tokens = saved.encoder(volumes).numpy()
    expected = np.concatenate([tokens[number, chosen] for number, chosen in enumerate(patches.positions)])
    np.testing.assert_allclose(found.patches["encoder"].pooled, expected, atol=1e-5)
    np.testing.assert_allclose(found.volumes["encoder"].tokens, tokens, atol=1e-5)
    whole = np.hstack([tokens.mean(axis=1), tokens.std(axis=1)])
    np.testing.assert_allclose(found.volumes["encoder"].pooled, whole, atol=1e-5)
    d, h, w = saved.config.grid.coordinates()[patches.positions[-1, -1]] * saved.config.patch_size
    pd, ph, pw = saved.config.patch_size
    voxels = volumes[-1, 0, d : d + pd, h : h + ph, w : w + pw].numpy().astype(float)
    assert np.array_equal(found.patches["pca"].pooled[-1], voxels.ravel())
    np.testing.assert_allclose(found.patches["intensity"].pooled[-1], [voxels.mean(), voxels.std()], rtol=1e-4)
