"""Samples of a film: TRs of a split, one brain or the mean of all, through the sampler and the loader of a run."""

import math

import numpy as np
import pytest
import torch

from data_setup.epoch_order import Shuffled
from data_setup.loaders import LoaderSettings, TrainBatches
from data_setup.neuro.film_data import Film, open_film
from data_setup.neuro.film_dataset import FilmDataset, film_batch
from data_setup.neuro.film_phantom import FilmPhantomSettings
from data_setup.neuro.film_settings import FilmDataSettings
from data_setup.neuro.film_statistics import training_statistics
from data_setup.sampler import SampleKey, ShardedBatchSampler

PHANTOM = FilmPhantomSettings(num_trs=120, num_subjects=3, voxels=10, codes_per_tr=3)


def opened(**others) -> Film:
    return open_film(FilmDataSettings(phantom=PHANTOM, gap_trs=10, **others))


@pytest.fixture(scope="module")
def film() -> Film:
    return opened()


def test_a_sample_is_its_tr(film: Film) -> None:
    for split, trs in (("train", film.train), ("val", film.val)):
        dataset = FilmDataset(film, split)
        assert len(dataset) == len(trs)
        sample = dataset[SampleKey(0, 5)]
        tr = int(trs[5])
        assert dataset.name(5) == f"TR {tr}"
        assert dataset.place(5) == (None, tr)
        for name in ("video", "video_target", "audio", "text", "fmri"):
            found = getattr(sample, name)
            np.testing.assert_array_equal(found[0].numpy(), getattr(film, name)[tr].astype(found.numpy().dtype))
        assert (sample.video.dtype, sample.audio.dtype, sample.fmri.dtype) == (
            torch.float32,
            torch.int64,
            torch.float32,
        )


def test_per_subject_every_brain_is_a_sample() -> None:
    film = opened(mode="per_subject")
    dataset = FilmDataset(film, "val")
    assert len(dataset) == 3 * len(film.val)
    seen = {dataset.place(index) for index in range(len(dataset))}
    assert seen == {(subject, int(tr)) for subject in range(3) for tr in film.val}
    index = len(film.val) + 4
    assert dataset.name(index) == f"phantom_s2 TR {film.val[4]}"
    np.testing.assert_array_equal(dataset[SampleKey(0, index)].fmri[0].numpy(), film.subject_series[1, film.val[4]])
    np.testing.assert_array_equal(dataset.batch([4, index]).text[0], dataset.batch([4, index]).text[1])


def test_codes_of_a_book_stand_together(film: Film) -> None:
    from data_setup.neuro.film_phantom import phantom_film

    raw = phantom_film(PHANTOM, 1.5)
    np.testing.assert_array_equal(film.audio[:, :3], raw.audio[:, 0])
    np.testing.assert_array_equal(film.audio[:, 3:], raw.audio[:, 1])


@pytest.mark.parametrize("mode", ["cross_subject", "per_subject"])
def test_a_run_sees_every_training_sample_once_an_epoch(mode) -> None:
    film = opened(mode=mode)
    dataset = FilmDataset(film, "train")
    sampler = ShardedBatchSampler(
        order=Shuffled(len(dataset), seed=1),
        rank=0,
        world_size=1,
        micro_batch_size=16,
        grad_accum_steps=1,
        drop_last=False,
    )
    steps = sampler.steps_per_epoch
    batches = TrainBatches(dataset, sampler, LoaderSettings(), start_step=0, num_steps=steps, make_batch=film_batch)
    made = list(batches)
    assert [batch.num_samples for batch in made] == [16] * steps
    assert batches.num_samples == 16 * steps
    assert batches.num_replaced == 0
    rows = torch.cat([batch.fmri for batch in made])[: len(dataset)]
    wanted = dataset.batch(range(len(dataset))).fmri
    assert torch.equal(rows.sort(dim=0).values, wanted.sort(dim=0).values)


@pytest.mark.slow
def test_workers_make_the_same_batches(film: Film) -> None:
    dataset = FilmDataset(film, "train")
    made = []
    for workers in (0, 2):
        sampler = ShardedBatchSampler(
            order=Shuffled(len(dataset), 1),
            rank=0,
            world_size=1,
            micro_batch_size=8,
            grad_accum_steps=1,
            drop_last=True,
        )
        loader = LoaderSettings(num_workers=workers)
        made.append(list(TrainBatches(dataset, sampler, loader, start_step=0, num_steps=6, make_batch=film_batch)))
    for one, other in zip(*made, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def test_fingerprints_change_with_what_is_learnt_from(film: Film) -> None:
    assert opened().fingerprint() == film.fingerprint()
    others = [opened(alignment="aligned", train_split=0.7), opened(mode="per_subject"), opened(apply_hrf=False)]
    assert len({film.fingerprint(), *(other.fingerprint() for other in others)}) == 4
    prints = {FilmDataset(one, split).fingerprint() for one in (film, *others) for split in ("train", "val")}
    assert len(prints) == 8
    assert FilmDataset(opened(), "train").fingerprint() == FilmDataset(film, "train").fingerprint()


def test_statistics_are_those_of_the_training_samples(film: Film) -> None:
    statistics = film.statistics
    assert statistics.num_trs == len(film.train)
    for name, values in (("video", film.video_target), ("text", film.text), ("fmri", film.fmri)):
        trained = values[film.train].astype(np.float64)
        np.testing.assert_allclose(statistics.mean[name], trained.mean(axis=0), rtol=1e-5, atol=1e-7)
        assert statistics.variance[name] == pytest.approx(trained.var(axis=0).mean())
        assert statistics.std[name] == pytest.approx(trained.std())
    alone = opened(mode="per_subject")
    brains = alone.subject_series[:, alone.train].astype(np.float64)
    assert (
        alone.statistics.variance["fmri"] == pytest.approx(brains.var(axis=(0, 1)).mean()) == pytest.approx(1, abs=1e-3)
    )
    assert statistics.variance["fmri"] < 0.8  # the mean of brains varies by what they share


def test_the_unigram_counts_one_more_than_seen(film: Film) -> None:
    unigram = film.statistics.unigram
    codes = film.audio[film.train].reshape(len(film.train), 2, 3)
    assert unigram.shape == (2, 16)
    assert unigram.sum(dim=1).tolist() == pytest.approx([1, 1])
    seen = int((codes[:, 1] == 7).sum())
    assert unigram[1, 7].item() == pytest.approx((seen + 1) / (3 * len(film.train) + 16))
    assert unigram.min() > 0


def test_a_target_that_does_not_vary_is_refused(film: Film) -> None:
    targets = {"text": np.ones((120, 4), np.float32), "audio": film.audio}
    with pytest.raises(ValueError, match="text does not vary over the 96 training TRs"):
        training_statistics(targets, film.train, film.shape)


def test_facts_say_what_was_opened() -> None:
    facts = opened(max_trs=100, subjects=2).facts()
    assert facts["trs"] == {"all": 100, "train": 80, "gap": 10, "val": 10}
    assert facts["subjects"] == ["phantom_s2"]
    assert facts["ceiling"] == pytest.approx({"fvu": 0.7, "r": math.sqrt(0.3)})
    assert facts["hrf"] is True


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frame_skip", 0),
        ("tr", 0.0),
        ("train_split", 1.0),
        ("gap_trs", -1),
        ("max_trs", 1),
        ("alignment", "true"),
        ("mode", "all"),
        ("subjects", True),
        ("subjects", []),
    ],
)
def test_settings_name_the_wrong_key(name: str, value) -> None:
    with pytest.raises(ValueError, match=rf"data\.{name}"):
        FilmDataSettings(**{name: value})
