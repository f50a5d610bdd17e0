import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_setup.datasets import BadVolume, VolumeDataset
from data_setup.epoch_order import Shuffled
from data_setup.loaders import LoaderError, LoaderSettings, TrainBatches, validation_batches
from data_setup.masking import MaskGenerator, MaskSettings
from data_setup.sampler import ShardedBatchSampler
from data_setup.transforms import TrainingTransform, ValidationTransform
from data_setup.views import ViewSettings
from oct_foundation.batch import JEPABatch
from oct_foundation.geometry import PatchGrid

GRID = PatchGrid(image_size=(4, 16, 32), patch_size=(4, 16, 16))
PATIENCE_S = 240  # the first worker imports torch: 10 s on a quiet machine, a minute on a busy one


class Volumes:
    """Volume i is all i; those in `bad` cannot be read."""

    def __init__(self, count: int, bad: tuple[int, ...] = ()) -> None:
        self.count, self.bad = count, bad

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        if index == 99:
            raise OSError("volume 99 cannot be read")
        if index in self.bad:
            raise BadVolume(f"id-{index}", "FileNotFoundError")
        return np.full(GRID.image_size, index, np.uint8)

    def name(self, index: int) -> str:
        return f"id-{index}"

    def fingerprint(self) -> str:
        return str(self.count)


def masks() -> MaskGenerator:
    return MaskGenerator(GRID, MaskSettings(ratio=0.5))


def batches(num_workers: int, count: int = 12, start_step: int = 0, num_steps: int = 4) -> list[JEPABatch]:
    dataset = VolumeDataset(Volumes(count), TrainingTransform(ViewSettings(), masks(), seed=1))
    sampler = ShardedBatchSampler(
        order=Shuffled(count, seed=1), rank=1, world_size=2, micro_batch_size=2, grad_accum_steps=1, drop_last=True
    )
    settings = LoaderSettings(num_workers=num_workers, timeout_s=PATIENCE_S)
    return list(TrainBatches(dataset, sampler, settings, start_step=start_step, num_steps=num_steps))


def test_batches_are_equal_with_and_without_workers():
    alone, helped = batches(0), batches(2)
    assert len(alone) == len(helped) == 4
    for one, other in zip(alone, helped, strict=True):
        for name, tensor in one.tensors().items():
            assert torch.equal(tensor, other.tensors()[name]), name


def test_a_later_start_gives_the_later_batches():
    whole, later = batches(0), batches(0, start_step=2, num_steps=2)
    for one, other in zip(whole[2:], later, strict=True):
        assert torch.equal(one.context_view, other.context_view)
        assert torch.equal(one.target_idx, other.target_idx)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_volume_that_cannot_be_read_is_an_error_not_an_early_end(num_workers):
    with pytest.raises(OSError, match="volume 99"):
        batches(num_workers, count=100, num_steps=25)


def validation(count: int, rank: int, world_size: int) -> list[JEPABatch]:
    dataset = VolumeDataset(Volumes(count), ValidationTransform(masks(), seed=1))
    return list(validation_batches(dataset, rank=rank, world_size=world_size, micro_batch_size=2))


def shown(batches: list[JEPABatch]) -> list[int]:
    return [int(view.max()) for batch in batches for view in batch.context_view]


def test_validation_is_shared_by_ranks_in_whole_batches():
    ranks = [validation(11, rank, 2) for rank in (0, 1)]
    assert [len(batches) for batches in ranks] == [2, 2]
    assert sorted(shown(ranks[0]) + shown(ranks[1])) == list(range(8))


def test_too_few_validation_volumes_fill_one_batch_by_repeating():
    assert shown(validation(3, 0, 2)) + shown(validation(3, 1, 2)) == [0, 1, 2, 0]
    assert validation(0, 0, 1) == []


@pytest.mark.parametrize("wrong", [{"num_workers": -1}, {"prefetch_factor": 0}, {"timeout_s": 0}])
def test_impossible_settings_are_refused_by_key(wrong):
    with pytest.raises(ValueError, match=f"data.loader.{next(iter(wrong))}"):
        LoaderSettings(**wrong)


def loader(volumes: Volumes, num_steps: int = 6, transform: Any = None, **settings: Any) -> TrainBatches:
    order = Shuffled(len(volumes), seed=1)
    dataset = VolumeDataset(volumes, transform or ValidationTransform(masks(), seed=1), order)
    sampler = ShardedBatchSampler(
        order=order, rank=0, world_size=1, micro_batch_size=2, grad_accum_steps=1, drop_last=True
    )
    return TrainBatches(
        dataset, sampler, LoaderSettings(timeout_s=PATIENCE_S, **settings), start_step=0, num_steps=num_steps
    )


def numbers(batches: TrainBatches) -> list[int]:
    """Which volumes came, in their order: volume i is all i."""
    return [int(value) for batch in batches for value in batch.context_view[:, 0, 0, 0, 0]]


def test_a_volume_found_bad_late_gives_its_place_to_the_next_of_the_same_order(caplog: pytest.LogCaptureFixture):
    order = Shuffled(12, seed=1).order(0).tolist()
    bad = tuple(order[4:6])  # two in a row
    batches = loader(Volumes(12, bad))
    assert numbers(batches) == [order[6] if index in bad else index for index in order]
    assert batches.num_replaced == 2
    assert f"id-{bad[0]}" in caplog.text
    assert numbers(loader(Volumes(12, bad), num_workers=1)) == numbers(loader(Volumes(12, bad)))


def test_many_bad_volumes_end_the_run_with_their_number():
    with pytest.raises(LoaderError, match=r"1[12] of 2\d samples .*max_replaced_fraction=0\.01"):
        numbers(loader(Volumes(12, bad=(0, 2, 4, 6, 8)), num_steps=60))


def test_a_disk_that_fails_altogether_is_an_error_that_names_a_volume():
    with pytest.raises(BadVolume, match=r"id-\d+ cannot be read \(FileNotFoundError\): prepare it again"):
        numbers(loader(Volumes(12, bad=tuple(range(12)))))


class Deadly:
    """A transform that kills its process over volume 5: once, if there is a marker to leave behind."""

    def __init__(self, marker: Path | None) -> None:
        self.marker, self.transform = marker, ValidationTransform(masks(), seed=1)

    def __call__(self, volume: np.ndarray, key: Any) -> dict[str, Any]:
        if key.index == 5 and not (self.marker and self.marker.exists()):
            if self.marker:
                self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.transform(volume, key)


def test_a_worker_that_is_killed_is_named_and_replaced_and_no_sample_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    batches = loader(Volumes(12), transform=Deadly(tmp_path / "marker"), num_workers=2)
    assert numbers(batches) == Shuffled(12, seed=1).order(0).tolist()
    assert batches.num_restarts == 1
    assert "by signal SIGKILL at volume id-5 in epoch 0, peak memory" in caplog.text


@pytest.mark.slow  # four starts of workers for one sentence
def test_a_worker_that_dies_again_and_again_ends_the_run_with_a_remedy():
    with pytest.raises(
        LoaderError, match=r"SIGKILL at volume id-5 in epoch 0.* more often than .*lower data\.loader\.num_workers"
    ):
        numbers(loader(Volumes(12), transform=Deadly(None), num_workers=1, max_restarts=1))
