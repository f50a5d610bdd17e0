import numpy as np
import pytest

from oct_foundation.diagnostics import noise_ceiling as module
from oct_foundation.diagnostics.noise_ceiling import agreement, noise_ceiling


def subjects_of(num_subjects: int, num_trs: int, num_voxels: int, shared: float, seed: int = 0) -> np.ndarray:
    """Each: a common signal with a share of the variance, and own noise."""
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((1, num_trs, num_voxels))
    noise = rng.standard_normal((num_subjects, num_trs, num_voxels))
    return np.sqrt(shared) * signal + np.sqrt(1 - shared) * noise


def test_the_pairwise_correlation_is_a_loop_over_pairs():
    subjects = subjects_of(4, 30, 3, 0.3)
    pairs = [
        np.corrcoef(subjects[one, :, voxel], subjects[other, :, voxel])[0, 1]
        for one in range(4)
        for other in range(one)
        for voxel in range(3)
    ]
    ceiling, _ = noise_ceiling(subjects)
    assert ceiling.pairwise == pytest.approx(np.mean(pairs))
    left_out = [
        np.corrcoef(subjects[one, :, voxel], np.delete(subjects, one, axis=0).mean(axis=0)[:, voxel])[0, 1]
        for one in range(4)
        for voxel in range(3)
    ]
    assert ceiling.leave_one_out == pytest.approx(np.mean(left_out))


@pytest.mark.parametrize("num_subjects", [2, 5, 10])
def test_no_model_does_better_than_the_ceiling_and_the_true_signal_reaches_it(num_subjects):
    """The signal itself is the best prediction: its correlation with the mean is sqrt(q), its FVU 1 - q."""
    shared = 0.2
    rng = np.random.default_rng(1)
    signal = rng.standard_normal((4000, 10))
    subjects = np.sqrt(shared) * signal + np.sqrt(1 - shared) * rng.standard_normal((num_subjects, 4000, 10))
    mean = subjects.mean(axis=0)
    ceiling, said = noise_ceiling(subjects)
    reached = np.mean([np.corrcoef(signal[:, v], mean[:, v])[0, 1] for v in range(10)])
    left = ((mean - np.sqrt(shared) * signal) ** 2).mean() / mean.var()
    q = num_subjects * shared / (1 + (num_subjects - 1) * shared)
    assert ceiling.reliability == pytest.approx(q, abs=0.02)
    assert ceiling.best_r == pytest.approx(reached, abs=0.02)
    assert ceiling.best_fvu == pytest.approx(left, abs=0.02)
    assert ceiling.split_half == pytest.approx(q, abs=0.03)
    assert f"{num_subjects} subjects" in said


def test_the_ceiling_of_one_subject_is_the_pairwise_correlation():
    subjects = subjects_of(6, 2000, 5, 0.4)
    ceiling, _ = noise_ceiling(subjects, target="subject")
    assert ceiling.reliability == ceiling.pairwise
    assert ceiling.best_r == pytest.approx(np.sqrt(0.4), abs=0.02)


def test_where_few_voxels_follow_the_film_the_best_r_is_far_below_that_of_the_mean_agreement():
    """The root of a mean is above the mean of the roots: with one group the ceiling would be .52."""
    shared, rng = np.where(np.arange(400) < 80, 0.3, 0.0), np.random.default_rng(4)
    signal, noise = rng.standard_normal((1, 600, 400)), rng.standard_normal((6, 600, 400))
    subjects = np.sqrt(shared) * signal + np.sqrt(1 - shared) * noise
    held = subjects[:, 400:]
    alike = agreement(subjects[:, :400])
    ceiling, _ = noise_ceiling(held, agreed_elsewhere=alike)
    mean = held.mean(axis=0)
    reached = np.mean([np.corrcoef(signal[0, 400:, v], mean[:, v])[0, 1] if v < 80 else 0.0 for v in range(400)])
    assert reached == pytest.approx(0.17, abs=0.01)
    assert ceiling.best_r == pytest.approx(reached, abs=0.04)
    upper, _ = noise_ceiling(held)
    assert upper.best_r > 0.45
    assert ceiling.best_fvu == upper.best_fvu
    assert alike[:80].mean() == pytest.approx(0.3, abs=0.02)


def test_one_subject_has_none_and_it_is_said():
    ceiling, said = noise_ceiling(subjects_of(1, 30, 3, 0.3))
    assert ceiling is None
    assert "one subject" in said


def test_subjects_who_share_nothing_leave_nothing_to_reach():
    ceiling, _ = noise_ceiling(np.stack([np.sin(np.arange(60.0)), -np.sin(np.arange(60.0))])[:, :, None])
    assert (ceiling.pairwise, ceiling.best_r, ceiling.best_fvu) == (pytest.approx(-1.0), 0.0, 1.0)


def test_constant_voxels_are_left_out():
    subjects = subjects_of(3, 100, 4, 0.5)
    whole, _ = noise_ceiling(subjects[:, :, 1:])
    subjects[1, :, 0] = 7.3
    ceiling, _ = noise_ceiling(subjects)
    assert ceiling.num_voxels == 3
    assert ceiling.pairwise == pytest.approx(whole.pairwise)
    none, said = noise_ceiling(np.ones((2, 10, 3)))
    assert none is None
    assert "constant" in said


def test_slices_and_random_halves_agree_with_the_whole(monkeypatch):
    subjects = subjects_of(12, 200, 9, 0.3)
    whole, _ = noise_ceiling(subjects)
    monkeypatch.setattr(module, "_SLICE", 2)
    sliced, _ = noise_ceiling(subjects)
    assert sliced.pairwise == pytest.approx(whole.pairwise)
    assert sliced.split_half == pytest.approx(whole.reliability, abs=0.02)


def test_series_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="subjects must be"):
        noise_ceiling(np.zeros((3, 4)))
