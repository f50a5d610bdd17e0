"""The generated film: its ceiling is true, and what it shows predicts the brain up to that ceiling."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from data_setup.neuro.film_data import Film, open_film
from data_setup.neuro.film_phantom import FilmPhantomSettings, latent_courses, phantom_film, shared_signal
from data_setup.neuro.film_settings import FilmDataSettings
from data_setup.neuro.hrf import glover_kernel

SMALL = FilmPhantomSettings(num_trs=300, voxels=8)
LONG = FilmPhantomSettings(num_trs=6000, voxels=8, frames=1, height=2, width=2, text_dim=2)


class Score(NamedTuple):
    """Of held-out TRs. fvu: error / training variance; skill: how much less than the error of the training mean, by
    the same variance; r: correlation over time, mean over voxels.
    """

    fvu: float
    skill: float
    r: float


def ridge(film: Film) -> Score:
    """How well a ridge predicts the brain from text and pictures."""
    features = np.concatenate([film.text, film.video.astype(np.float32)], axis=1)
    truth, variance = film.fmri[film.val], film.statistics.variance["fmri"]
    predicted = Ridge(alpha=30).fit(features[film.train], film.fmri[film.train]).predict(features[film.val])
    error = ((predicted - truth) ** 2).mean() / variance
    guessed = ((film.statistics.mean["fmri"].numpy() - truth) ** 2).mean() / variance
    centred = [one - one.mean(axis=0) for one in (predicted, truth)]
    r = (centred[0] * centred[1]).mean(axis=0) / (predicted.std(axis=0) * truth.std(axis=0))
    return Score(float(error), float(guessed - error), float(r.mean()))


@pytest.fixture(scope="module")
def film() -> Film:
    return open_film(FilmDataSettings())


def test_the_ceiling_by_hand() -> None:
    settings = FilmPhantomSettings(signal_share=0.3, num_subjects=6)
    assert settings.ceiling_fvu == pytest.approx((0.7 / 6) / (0.3 + 0.7 / 6))
    assert settings.ceiling_r == pytest.approx(math.sqrt(0.3 / (0.3 + 0.7 / 6)))


@pytest.mark.parametrize(("subjects", "share"), [(6, 0.3), (1, 0.5), (3, 0.1)])
def test_the_ceiling_is_the_simulated_one(subjects: int, share: float) -> None:
    phantom = replace(LONG, num_trs=12_000, voxels=32, num_subjects=subjects, signal_share=share)
    film = open_film(FilmDataSettings(phantom=phantom))
    signal = shared_signal(phantom, latent_courses(phantom), glover_kernel(1.5))
    signal = (signal - signal.mean(axis=0)) / signal.std(axis=0)
    target = film.fmri - film.fmri.mean(axis=0)
    r = (signal * target).mean(axis=0) / target.std(axis=0)
    unexplained = ((target - signal * (signal * target).mean(axis=0)) ** 2).mean() / target.var(axis=0).mean()
    assert film.ceiling is not None
    assert r.mean() == pytest.approx(film.ceiling.r, abs=0.015)
    assert unexplained == pytest.approx(film.ceiling.fvu, abs=0.02)
    assert (film.ceiling.fvu, film.ceiling.r) == (phantom.ceiling_fvu, phantom.ceiling_r)


def test_subjects_share_what_the_settings_say() -> None:
    raw = phantom_film(replace(LONG, signal_share=0.4), 1.5)
    pairs = np.corrcoef(np.stack([brain[:, 0] for brain in raw.series]))[np.triu_indices(6, 1)]
    assert pairs.mean() == pytest.approx(0.4, abs=0.04)
    alone = phantom_film(replace(LONG, signal_share=0.0), 1.5)
    pairs = np.corrcoef(np.stack([brain[:, 0] for brain in alone.series]))[np.triu_indices(6, 1)]
    assert abs(pairs.mean()) < 0.03


def test_a_linear_map_predicts_a_brain_without_interactions_up_to_the_ceiling() -> None:
    film = open_film(FilmDataSettings(phantom=FilmPhantomSettings(interaction=0.0)))
    assert film.ceiling is not None
    score = ridge(film)
    assert score.fvu == pytest.approx(film.ceiling.fvu, abs=0.03)
    assert score.r == pytest.approx(film.ceiling.r, abs=0.03)


def test_interactions_are_beyond_a_linear_map(film: Film) -> None:
    score, reliability = ridge(film), film.ceiling.r**2 if film.ceiling else 0.0
    assert score.skill == pytest.approx(reliability / 2, abs=0.12)  # half of what subjects share is products
    assert score.r < 0.75 * reliability**0.5


def test_nothing_is_predicted_where_the_brain_is_turned_away(film: Film) -> None:
    shuffled = open_film(FilmDataSettings(alignment="shuffled"))
    score = ridge(shuffled)
    assert score.skill < 0
    assert abs(score.r) < 0.05
    np.testing.assert_array_equal(shuffled.text, film.text)
    np.testing.assert_array_equal(np.sort(shuffled.fmri[film.val], axis=0), np.sort(film.fmri[film.val], axis=0))
    assert shuffled.statistics.variance["fmri"] == pytest.approx(film.statistics.variance["fmri"])


def test_one_subject_has_a_lower_ceiling_than_the_mean_of_all(film: Film) -> None:
    alone = open_film(FilmDataSettings(mode="per_subject"))
    assert alone.ceiling is not None
    assert film.ceiling is not None
    assert (alone.ceiling.fvu, alone.ceiling.r) == pytest.approx((0.7, math.sqrt(0.3)))
    assert alone.ceiling.fvu > film.ceiling.fvu
    two = open_film(FilmDataSettings(subjects=[1, "phantom_s4"]))
    assert two.subject_ids == ("phantom_s1", "phantom_s4")
    assert two.ceiling is not None
    assert two.ceiling.fvu == pytest.approx(0.35 / 0.65)
    np.testing.assert_array_equal(two.subject_series, film.subject_series[[0, 3]])


def test_codes_follow_the_film_and_are_all_in_use(film: Film) -> None:
    """A code tells one mix of the courses nearly whole, and of the others nothing."""
    settings = FilmPhantomSettings()
    courses = latent_courses(settings)
    codes = film.audio[:, 0]
    centres = np.stack([courses[codes == code].mean(axis=0) for code in range(settings.num_codes)])
    told = np.linalg.eigvalsh(np.cov(centres[codes].T))  # variance of the courses that the code tells, by direction
    assert told[-1] > 0.85
    assert told[-2] < 0.15
    counts = np.bincount(film.audio.ravel(), minlength=settings.num_codes)
    assert counts.min() > 0
    assert counts.max() < 3 * counts.mean()


def test_pictures_move_and_stay_within_their_range(film: Film) -> None:
    assert film.video_target.min() >= 0
    assert film.video_target.max() <= 1
    raw = phantom_film(SMALL, 1.5)
    assert (raw.pictures[:, 0] != raw.pictures[:, 1]).any(axis=(1, 2, 3)).mean() > 0.9
    assert (raw.pictures == 255).mean() < 0.02


def test_an_equal_seed_gives_an_equal_film_and_another_another() -> None:
    first, again = phantom_film(SMALL, 1.5), phantom_film(SMALL, 1.5)
    other = phantom_film(replace(SMALL, seed=1), 1.5)
    for name in ("pictures", "audio", "text"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert (getattr(first, name) != getattr(other, name)).any()
    assert not np.array_equal(first.series[0], first.series[1])
    assert not np.array_equal(first.series[0], other.series[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_trs", 1),
        ("voxels", 0),
        ("tau_trs", 0.0),
        ("signal_share", 1.0),
        ("num_codes", 1),
        ("latents", 2),
        ("interaction", 1.5),
    ],
)
def test_settings_name_the_wrong_key(name: str, value) -> None:
    with pytest.raises(ValueError, match=rf"data.phantom.{name}"):
        FilmPhantomSettings(**{name: value})
