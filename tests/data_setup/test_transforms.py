import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from data_setup.collate import collate
from data_setup.masking import MaskGenerator, MaskSettings
from data_setup.sampler import SampleKey
from data_setup.transforms import JEPAMaskGeneratord, TrainingTransform, TwoViewTransform, ValidationTransform
from data_setup.views import ViewSettings
from oct_foundation.geometry import PatchGrid

SHAPE = (8, 32, 48)
GRID = PatchGrid(image_size=SHAPE, patch_size=(4, 16, 16))
NO_INTENSITY = {"intensity_prob": 0.0, "noise_prob": 0.0, "blur_prob": 0.0}


def masks() -> MaskGenerator:
    return MaskGenerator(GRID, MaskSettings())


def smooth_volume() -> np.ndarray:
    """Grey levels that name their place: smooth along each axis and different along all."""
    d, h, w = np.meshgrid(*(np.linspace(0, 1, side) for side in SHAPE), indexing="ij")
    return (255 * (0.2 * d + 0.5 * h + 0.3 * w)).astype(np.uint8)


def views(settings: ViewSettings, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    sample = TwoViewTransform(settings, SHAPE).set_random_state(seed=seed)({"image": smooth_volume()[None]})
    return sample["context_view"], sample["target_view"]


@pytest.mark.parametrize("seed", range(8))
def test_views_share_every_spatial_transform_voxel_by_voxel(seed):
    spatial_only = ViewSettings(flip_prob=0.5, affine_prob=1.0, **NO_INTENSITY)
    context, target = views(spatial_only, seed)
    assert torch.equal(context, target)
    assert context.shape == (1, *SHAPE)


def test_spatial_transforms_do_happen():
    spatial_only = ViewSettings(flip_prob=0.5, affine_prob=1.0, **NO_INTENSITY)
    seen = {views(spatial_only, seed)[0].numpy().tobytes() for seed in range(8)}
    assert len(seen) == 8
    assert smooth_volume().tobytes() not in seen


def test_flips_are_along_b_scans_and_across_never_upside_down():
    only_flips = ViewSettings(flip_prob=0.5, affine_prob=0.0, **NO_INTENSITY)
    volume = smooth_volume()
    allowed = {volume[::d, :, ::w].tobytes() for d in (1, -1) for w in (1, -1)}
    seen = {views(only_flips, seed)[0].numpy().tobytes() for seed in range(40)}
    assert seen == allowed


def test_intensities_differ_between_views_and_leave_places_alone():
    only_gain = ViewSettings(flip_prob=0.0, affine_prob=0.0, intensity_prob=1.0, noise_prob=0.0, blur_prob=0.0)
    context, target = views(only_gain, 3)
    assert not torch.equal(context, target)
    for view in (context, target):  # a monotone change of grey levels keeps their order
        along_depth = view[0, 4, :, 24].int()
        assert (along_depth.diff() >= 0).all()


def test_a_sample_depends_on_seed_epoch_and_index_alone():
    volume, transform = smooth_volume(), TrainingTransform(ViewSettings(), masks(), seed=5)
    first = transform(volume, SampleKey(1, 2))
    transform(volume, SampleKey(0, 9))  # another sample in between
    again = TrainingTransform(ViewSettings(), masks(), seed=5)(volume, SampleKey(1, 2))
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    other = transform(volume, SampleKey(2, 2))
    assert not torch.equal(first["mask"], other["mask"])


def test_a_training_sample_holds_plain_tensors_of_fixed_shapes():
    sample = TrainingTransform(ViewSettings(), masks(), seed=0)(smooth_volume(), SampleKey(0, 0))
    assert {name: (type(value), value.dtype, tuple(value.shape)) for name, value in sample.items()} == {
        "context_view": (torch.Tensor, torch.uint8, (1, *SHAPE)),
        "target_view": (torch.Tensor, torch.uint8, (1, *SHAPE)),
        "mask": (torch.Tensor, torch.bool, (12,)),
        "context_idx": (torch.Tensor, torch.int64, (5,)),
        "target_idx": (torch.Tensor, torch.int64, (7,)),
    }


def test_validation_neither_changes_the_volume_nor_its_mask():
    volume, transform = smooth_volume(), ValidationTransform(masks(), seed=0)
    first, later = transform(volume, SampleKey(0, 4)), transform(volume, SampleKey(3, 4))
    np.testing.assert_array_equal(first["context_view"][0].numpy(), volume)
    assert torch.equal(first["target_view"], first["context_view"])
    assert torch.equal(first["mask"], later["mask"])


def test_the_mask_transform_leaves_the_rest_of_a_sample_alone():
    sample = JEPAMaskGeneratord(masks())({"image": torch.ones(1, 2), "id": "x"})
    assert sample["id"] == "x"
    assert sample["mask"].sum() == 7


def test_collate_makes_plain_contiguous_tensors_of_what_monai_leaves():
    tracked = MetaTensor(torch.rand(1, 4, 6), meta={"filename": "secret"}).permute(0, 2, 1)
    batch = collate([{"image": tracked, "path": "secret"}, {"image": tracked, "path": "secret"}])
    assert set(batch) == {"image"}
    assert type(batch["image"]) is torch.Tensor
    assert batch["image"].is_contiguous()
    assert batch["image"].shape == (2, 1, 6, 4)


@pytest.mark.parametrize(
    ("samples", "match"),
    [
        ([{"image": torch.ones(2)}, {"image": torch.ones(3)}], "shape of image"),
        ([{"image": torch.ones(2)}, {"mask": torch.ones(2)}], "differ in their entries"),
        ([{"path": "x"}], "at least one tensor"),
        ([], "at least one sample"),
    ],
)
def test_samples_that_make_no_batch_are_refused_by_name(samples, match):
    with pytest.raises(ValueError, match=match):
        collate(samples)


@pytest.mark.parametrize("wrong", [{"flip_prob": 1.5}, {"max_gain": -0.1}, {"max_gamma": 0.5}])
def test_impossible_augmentation_is_refused_by_key(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ViewSettings(**wrong)
