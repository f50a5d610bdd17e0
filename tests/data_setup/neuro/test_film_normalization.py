"""Brains are normalised by their own training TRs; voxels that do not vary become 0; the file is used again."""

from pathlib import Path

import numpy as np
import pytest

from data_setup.neuro.brain_mask import varying, vote
from data_setup.neuro.fmri_normalization import STATS_FILE, FmriNormalization

TRAIN = np.arange(60)


def brains(num_trs: int = 100, voxels: int = 5, count: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    level, gain = rng.uniform(500, 1500, (count, voxels)), rng.uniform(1, 30, (count, voxels))
    made = [one + many * rng.normal(size=(num_trs, voxels)) for one, many in zip(level, gain, strict=True)]
    return [brain.astype(np.float32) for brain in made]


def fit(series, runs=(100,), train=TRAIN) -> FmriNormalization:
    return FmriNormalization.fit(series, tuple(f"s{n}" for n in range(len(series))), runs, train)


def test_z_scores_by_training_trs_with_ddof_0() -> None:
    series = brains()
    normalization = fit(series)
    for number, brain in enumerate(series):
        wanted = (brain - brain[:60].mean(axis=0)) / brain[:60].std(axis=0, ddof=0)
        np.testing.assert_allclose(normalization.apply(brain, number), wanted, atol=2e-3)
    assert normalization.trs_used == (60,)


def test_what_validates_changes_no_statistic() -> None:
    series, changed = brains(), brains()
    for brain in changed:
        brain[60:] = brain[60:] * 7 - 3000
    np.testing.assert_array_equal(fit(series).mean, fit(changed).mean)
    np.testing.assert_array_equal(fit(series).std, fit(changed).std)
    seen = fit([np.concatenate([brain[:59], brain[60:61] + 999, brain[60:]]) for brain in series])
    assert (seen.mean != fit(series).mean).all(), "a training TR does change them"


def test_a_voxel_that_does_not_vary_becomes_0_and_is_counted() -> None:
    series = brains()
    series[0][:, 2] = 1234.567
    series[1][:60, 3] = 0.1  # varies after training only
    normalization = fit(series)
    assert normalization.num_constant == 2
    first, second = normalization.apply(series[0], 0), normalization.apply(series[1], 1)
    assert not first[:, 2].any()
    assert not second[:, 3].any()
    assert np.isfinite(first).all()
    np.testing.assert_allclose(first[:60, 0].std(), 1, atol=1e-4)


def test_each_run_has_a_level_of_its_own() -> None:
    (brain,) = brains(count=1)
    brain[40:] = brain[40:] * 3 + 500
    train = np.arange(80)
    normalized = fit([brain], runs=(40, 60), train=train).apply(brain, 0)
    for span in (slice(0, 40), slice(40, 80)):
        np.testing.assert_allclose(normalized[span].mean(axis=0), 0, atol=1e-3)
        np.testing.assert_allclose(normalized[span].std(axis=0), 1, atol=1e-3)


def test_a_run_that_hardly_trains_takes_the_subjects_other_runs() -> None:
    (brain,) = brains(count=1)
    normalization = fit([brain], runs=(55, 45))  # 5 training TRs in the second
    assert normalization.trs_used == (55, 5)
    np.testing.assert_allclose(normalization.mean[0, 1], brain[:60].mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("runs", [(100,), (40, 60)])
def test_the_file_has_the_documented_keys_and_is_used_again(tmp_path: Path, runs) -> None:
    series = brains()
    normalization = fit(series, runs)
    normalization.save(tmp_path / STATS_FILE)
    with np.load(tmp_path / STATS_FILE, allow_pickle=False) as file:
        assert {"subject_s0_mean", "subject_s0_std", "subject_s1_mean", "subject_ids", "version"} <= set(file.files)
        assert {"runs", "trs_used", "std_floor"} <= set(file.files)
        assert file["subject_s1_mean"].shape == ((5,) if len(runs) == 1 else (2, 5))
    again = FmriNormalization.load(tmp_path / STATS_FILE).of(("s1",), runs, 5)
    np.testing.assert_array_equal(again.apply(series[1], 0), normalization.apply(series[1], 1))


def test_statistics_of_others_are_refused(tmp_path: Path) -> None:
    normalization = fit(brains())
    with pytest.raises(ValueError, match="no statistics of s7; there are: s0, s1"):
        normalization.of(("s0", "s7"), (100,), 5)
    with pytest.raises(ValueError, match="5 voxels for brains of 6"):
        normalization.of(("s0",), (100,), 6)
    with pytest.raises(ValueError, match=r"runs of \[100\] TRs for runs of \[50, 50\]"):
        normalization.of(("s0",), (50, 50), 5)
    assert normalization.of(("s0",), (30,), 5).runs == (30,)
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no statistics"):
        FmriNormalization.load(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", version=np.array(9))
    with pytest.raises(ValueError, match="version 9"):
        FmriNormalization.load(tmp_path / "b.npz")


def test_what_varies_is_above_the_tenth_percentile_of_what_varies_at_all() -> None:
    voxels = np.zeros((2, 10, 2, 50), np.float32)
    noise = np.random.default_rng(0).normal(size=50)
    voxels[0, :, 0] = np.arange(1, 11)[:, None] * noise  # ten voxels of std 1 to 10, the others still
    voxels[1] = 700
    found = varying(voxels)
    assert found.sum() == 9
    assert found[0, 1:, 0].all()


@pytest.mark.parametrize(
    ("ballots", "elected"),
    [([[1, 0, 1]], [1, 0, 1]), ([[1, 0], [0, 0]], [1, 0]), ([[1, 1, 0], [1, 0, 0], [1, 1, 1]], [1, 1, 0])],
)
def test_half_of_the_subjects_rounded_up_elect_a_voxel(ballots, elected) -> None:
    masks = [np.array(ballot, bool).reshape(1, 1, -1) for ballot in ballots]
    np.testing.assert_array_equal(vote(masks).ravel(), np.array(elected, bool))


def test_blank_runs_elect_nothing() -> None:
    with pytest.raises(ValueError, match="no voxel varies in half of the 2 subjects"):
        vote([varying(np.ones((2, 2, 2, 9), np.float32))] * 2)
