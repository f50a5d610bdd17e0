"""Generated brains: the answer is in the image, a right look finds it, and shortcuts do not."""

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool3d

from data_setup.neuro.brain_phantom import (
    QUESTIONS,
    BrainPhantomSettings,
    PhantomImages,
    answer_of,
    phantom_records,
    render,
)
from data_setup.neuro.conversations import ImageRef
from data_setup.neuro.dataset import FileImages
from data_setup.neuro.errors import NeuroFileError
from data_setup.neuro.modalities import MODALITIES
from data_setup.neuro.volumes import VolumeSettings

SETTINGS = BrainPhantomSettings(num_per_modality=200, volume_size=24, functional_size=16)
NUM_FIT = 120


@pytest.fixture(scope="module", params=MODALITIES)
def brains(request) -> tuple[str, torch.Tensor, torch.Tensor]:
    """A modality, its 200 images as the model gets them, and which answer each has."""
    source = PhantomImages(settings=SETTINGS)
    images = torch.stack([source.read(ImageRef(request.param, f"phantom:{n}"), None) for n in range(200)])
    second = torch.tensor([answer_of(request.param, n) == QUESTIONS[request.param][1][1] for n in range(200)])
    return request.param, images[:, 0], second


def held_out_accuracy(features: torch.Tensor, second: torch.Tensor) -> float:
    """Of the best of the features [N, K] with a threshold at its median: chosen on 120 brains, tried on 80."""
    middle = features[:NUM_FIT].median(dim=0).values
    above = features > middle
    fitted = (above[:NUM_FIT] == second[:NUM_FIT, None]).float().mean(dim=0)
    best = int((fitted - 0.5).abs().argmax())
    tried = float((above[NUM_FIT:, best] == second[NUM_FIT:]).float().mean())
    return tried if fitted[best] >= 0.5 else 1 - tried


def right_look(modality: str, images: torch.Tensor) -> torch.Tensor:
    """One number a brain: where the brightest tissue lies in the head; how jerky the mean signal is; along which axis
    the map changes least.
    """
    if modality == "rsfMRI":
        signal = images.mean(dim=(1, 2, 3))
        signal = signal - signal.mean(dim=1, keepdim=True)
        return (signal.diff(dim=1) ** 2).sum(dim=1) / (signal**2).sum(dim=1)
    smooth = avg_pool3d(images[:, None], 3, 1)[:, 0]
    if modality == "dMRI":
        changes = [(smooth.diff(dim=axis) ** 2).mean(dim=(1, 2, 3)) for axis in (1, 2)]
        return changes[0] / changes[1]
    side = torch.linspace(-1, 1, smooth.shape[1])[:, None, None]
    bright = torch.relu(smooth - torch.quantile(smooth.flatten(1), 0.995, dim=1)[:, None, None, None])
    head = (smooth > 0).float()
    centres = [(part * side).sum(dim=(1, 2, 3)) / part.sum(dim=(1, 2, 3)) for part in (bright, head)]
    return centres[0] - centres[1]


def test_a_right_look_finds_the_answer(brains) -> None:
    modality, images, second = brains
    assert held_out_accuracy(right_look(modality, images)[:, None], second) > 0.95


def test_neither_mean_nor_spread_nor_brightest_value_tells(brains) -> None:
    modality, images, second = brains
    raw = torch.tensor(np.stack([render(modality, n, SETTINGS).mean() for n in range(200)]))
    extremes = torch.stack([raw, images.flatten(1).amax(dim=1), images.flatten(1).amin(dim=1)], dim=1)
    for feature in extremes.T:
        assert held_out_accuracy(feature[:, None], second) < 0.67  # chance .5, 3 standard errors of 80 brains


def test_no_single_voxel_tells(brains) -> None:
    _, images, second = brains
    assert held_out_accuracy(images.flatten(1), second) < 0.8


def test_half_of_the_brains_have_either_answer(brains) -> None:
    assert int(brains[2].sum()) == 100


def test_samples_are_normalised_as_files_are(brains) -> None:
    modality, images, _ = brains
    if modality == "rsfMRI":
        assert (images[:, 0, 0, 0] == 0).all()
        inside = images[0][images[0] != 0]
        assert (float(inside.mean()), float(inside.std())) == pytest.approx((0, 1), abs=1e-3)
    else:
        assert float(images[0].mean()) == pytest.approx(0, abs=1e-4)
        assert float(images[0].std()) == pytest.approx(1, abs=1e-3)


def test_records_take_turns_and_questions_do_not_tell() -> None:
    records = phantom_records(BrainPhantomSettings(num_per_modality=4, modalities=["dMRI", "T1"]))
    assert [record.kind for record in records] == ["T1", "dMRI"] * 4
    assert len({record.prompt for record in records}) == 2
    assert len({record.subject_id for record in records}) == 8
    assert not any(record.answer in record.prompt for record in records)


def test_a_brain_is_a_function_of_seed_kind_and_number() -> None:
    small = BrainPhantomSettings(num_per_modality=4, volume_size=16)
    other = BrainPhantomSettings(num_per_modality=9, volume_size=16)
    assert np.array_equal(render("T1", 2, small), render("T1", 2, other))
    changed = BrainPhantomSettings(num_per_modality=4, volume_size=16, seed=1)
    assert not np.array_equal(render("T1", 2, small), render("T1", 2, changed))
    assert not np.array_equal(render("T1", 2, small), render("T1", 0, small))


def test_a_brain_written_to_a_file_is_read_as_the_same_sample(tmp_path) -> None:
    small = BrainPhantomSettings(num_per_modality=2, volume_size=16)
    nib.save(nib.Nifti1Image(render("T1", 1, small), np.diag([10, 10, 10, 1])), tmp_path / "a.nii.gz")
    source = PhantomImages(settings=small)
    from_file = FileImages(data_root=tmp_path, settings={"T1": VolumeSettings(size=16)}).read(
        ImageRef("T1", "a.nii.gz"), None
    )
    np.testing.assert_allclose(from_file, source.read(ImageRef("T1", "phantom:1"), None), atol=1e-5)


def test_shapes_are_the_settings(brains) -> None:
    shapes = {spec.name: spec.shape for spec in PhantomImages(settings=SETTINGS).specs}
    assert shapes == {"T1": (1, 24, 24, 24), "rsfMRI": (1, 16, 16, 16, 8), "dMRI": (1, 24, 24, 24)}
    assert brains[1].shape[1:] == shapes[brains[0]][1:]


@pytest.mark.parametrize("path", ["phantom:200", "phantom:-1", "a.nii.gz", "phantom:"])
def test_an_unknown_brain_is_missing(path: str) -> None:
    with pytest.raises(NeuroFileError, match="missing"):
        PhantomImages(settings=SETTINGS).check(ImageRef("T1", path))


@pytest.mark.parametrize(
    "values",
    [{"modalities": ["CT"]}, {"modalities": []}, {"volume_size": 8}, {"num_frames": 2}, {"num_per_modality": 1}],
)
def test_wrong_settings_name_their_key(values) -> None:
    with pytest.raises(ValueError, match=f"phantom.{next(iter(values))}"):
        BrainPhantomSettings(**values)
