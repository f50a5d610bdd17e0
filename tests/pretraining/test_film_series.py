"""Held-out series: on file and back, subjects side by side, and what is no such file."""

from dataclasses import replace

import numpy as np
import pytest

from oct_foundation.diagnostics.film_verdict import as_values, judge_film
from oct_foundation.diagnostics.noise_ceiling import noise_ceiling
from pretraining.film_series import FilmSeries

NUM_TRS = 400


def series(num_subjects: int = 1, skill: float = 0.6, seed: int = 0) -> FilmSeries:
    """Independent TRs of 5 voxels, of which the prediction knows the share `skill`."""
    rng = np.random.default_rng(seed)
    known = rng.normal(size=(NUM_TRS, 5)) * skill**0.5
    brains = known + rng.normal(size=(num_subjects, NUM_TRS, 5)) * (1 - skill) ** 0.5
    flat = brains.reshape(-1, 5).astype(np.float32)
    costs = np.full(num_subjects * NUM_TRS, 1.0) + 0.01 * rng.normal(size=num_subjects * NUM_TRS)
    ceiling, _ = noise_ceiling(np.stack([known, known + 1e-3 * rng.normal(size=known.shape)]))
    return FilmSeries(
        step=7,
        trs=np.tile(np.arange(NUM_TRS), num_subjects),
        runs=np.repeat(np.arange(num_subjects), NUM_TRS),
        truth={"fmri": flat},
        prediction={"fmri": np.tile(known, (num_subjects, 1)).astype(np.float32)},
        costs={"model": costs, "unigram": costs + 1, "shifted": costs + 0.5},
        mean={"fmri": np.zeros(5, np.float32)},
        variance={"fmri": 1.0},
        baselines={"ridge on stimuli": np.zeros_like(flat)},
        beside={"persistence": np.roll(flat, 1, axis=0)},
        ceiling=ceiling,
        complete=True,
        leak_free=True,
    )


def test_what_is_read_is_what_was_written(tmp_path):
    written = series()
    written.save(tmp_path / "evaluation" / "last.npz")
    read = FilmSeries.load(tmp_path / "evaluation" / "last.npz")
    assert as_values(read.verdicts()) == as_values(written.verdicts())
    assert (read.step, read.ceiling, read.complete) == (7, written.ceiling, True)
    np.testing.assert_array_equal(read.truth["fmri"], written.truth["fmri"])
    assert [path.name for path in (tmp_path / "evaluation").iterdir()] == ["last.npz"]


def test_known_skill_is_found_and_learned():
    values = as_values(series(skill=0.6).verdicts())
    assert values["skill/fmri"] == pytest.approx(0.6, abs=0.06)
    assert values["skill_low/fmri"] < 0.6 < values["skill_high/fmri"]
    assert (values["verdict/fmri"], values["verdict/audio"]) == (1.0, 1.0)
    assert judge_film(values).verdict == "LEARNING"


def test_one_modality_that_has_not_learned_decides():
    good = series()
    noise = np.random.default_rng(9).normal(size=(NUM_TRS, 5)).astype(np.float32)
    found = judge_film(as_values(replace(good, prediction={"fmri": noise}).verdicts()))
    assert found.verdict == "NOT LEARNING"
    assert "fmri NOT LEARNED" in " ".join(found.reasons)
    assert "audio LEARNED" in " ".join(found.reasons)


def test_six_subjects_are_not_six_times_as_many_trs():
    values = as_values(series(num_subjects=6).verdicts())
    assert values["num_trs/fmri"] == values["num_trs/audio"] == NUM_TRS


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"no archive"])
def test_another_file_is_refused_in_words(tmp_path, content):
    path = tmp_path / "last.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="holds no series of held-out TRs"):
        FilmSeries.load(path)


def test_a_torn_file_of_ours_is_refused_in_words(tmp_path):
    path = tmp_path / "last.npz"
    series().save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ValueError, match="holds no series"):
        FilmSeries.load(path)


def test_without_a_reading_nobody_can_tell():
    assert judge_film({}).verdict == "CANNOT TELL"
    unlucky = as_values(replace(series(), complete=False).verdicts())
    assert judge_film(unlucky).verdict == "CANNOT TELL"
