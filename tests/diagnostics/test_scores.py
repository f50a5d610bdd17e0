"""Scores against scikit-learn, and intervals against a population whose true score is known."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn import metrics

from oct_foundation.diagnostics import scores
from oct_foundation.diagnostics.intervals import interval, patient_weights

RNG = np.random.default_rng(0)
NUM_VOLUMES, NUM_CLASSES = 60, 3
TRUTH, SAID = RNG.normal(50, 3, NUM_VOLUMES), RNG.normal(50, 3, NUM_VOLUMES)
CODES = RNG.integers(0, NUM_CLASSES, NUM_VOLUMES)
SHARES = RNG.dirichlet(np.ones(NUM_CLASSES), NUM_VOLUMES).round(1)  # rounded: ties must count half
GROUPS = RNG.integers(0, 25, NUM_VOLUMES)
WEIGHTS = patient_weights(GROUPS, 20, seed=1)
ONE_FOLD = np.zeros(NUM_VOLUMES, dtype=int)


@pytest.mark.parametrize(
    ("score", "oracle"),
    [(scores.r2, metrics.r2_score), (scores.mae, metrics.mean_absolute_error)],
)
def test_scores_of_values_are_those_of_scikit_learn_for_every_resample(score, oracle):
    expected = [oracle(TRUTH, SAID, sample_weight=row) for row in WEIGHTS]
    np.testing.assert_allclose(score(TRUTH, SAID, WEIGHTS), expected)


@pytest.mark.parametrize("value", [0.1, 300.7, 1e6])
def test_a_resample_of_equal_values_has_no_r2(value):
    """Of their total sum of squares rounding is left: it made an R2 of -4e16."""
    alike = WEIGHTS * (np.arange(NUM_VOLUMES) < 7)
    truth = np.where(np.arange(NUM_VOLUMES) < 7, value, TRUTH)
    found = scores.r2(truth, SAID, np.vstack([np.ones((1, NUM_VOLUMES)), alike]))
    assert np.isnan(found).tolist() == [False] + [True] * len(alike)
    assert np.isnan(scores.r2(np.full(NUM_VOLUMES, value), SAID, WEIGHTS)).all()
    close = value + 1e-6 * value * RNG.normal(size=NUM_VOLUMES)  # as alike as values that differ get
    assert scores.r2(close, np.full(NUM_VOLUMES, value), WEIGHTS) == pytest.approx(
        [metrics.r2_score(close - value, np.zeros(NUM_VOLUMES), sample_weight=row) for row in WEIGHTS], rel=1e-6
    )


def test_auroc_in_one_fold_is_one_against_the_rest_averaged():
    expected = [
        np.mean([metrics.roc_auc_score(code == CODES, SHARES[:, code], sample_weight=row) for code in range(3)])
        for row in WEIGHTS
    ]
    np.testing.assert_allclose(scores.auroc(CODES, SHARES, ONE_FOLD, WEIGHTS), expected)


def test_auroc_over_folds_compares_inside_each_fold_only():
    positive, share = CODES == 1, np.stack([1 - SHARES[:, 1], SHARES[:, 1]], axis=1)
    fold = np.arange(NUM_VOLUMES) % 4
    won = pairs = 0.0
    for first in np.flatnonzero(positive):
        for second in np.flatnonzero(~positive & (fold == fold[first])):
            won += float(share[first, 1] > share[second, 1]) + 0.5 * float(share[first, 1] == share[second, 1])
            pairs += 1
    shifted = share + 10 * fold[:, None]  # what is added to a fold as a whole changes nothing
    once = np.ones((1, NUM_VOLUMES))
    assert scores.auroc(positive.astype(int), share, fold, once)[0] == pytest.approx(won / pairs)
    assert scores.auroc(positive.astype(int), shifted, fold, once)[0] == pytest.approx(won / pairs)


def test_balanced_accuracy_is_that_of_scikit_learn_for_every_resample():
    decided = SHARES.argmax(axis=1)
    expected = [metrics.balanced_accuracy_score(CODES, decided, sample_weight=row) for row in WEIGHTS]
    np.testing.assert_allclose(scores.balanced_accuracy(CODES, decided, WEIGHTS), expected)


def test_a_resample_without_one_of_two_classes_has_no_auroc():
    weights = np.stack([np.ones(NUM_VOLUMES), (CODES == 0).astype(float)])
    two = np.stack([SHARES[:, 0], 1 - SHARES[:, 0]], axis=1)
    found = scores.auroc((CODES != 0).astype(int), two, ONE_FOLD, weights)
    assert np.isnan(found).tolist() == [False, True]


def test_patients_are_drawn_with_all_their_volumes():
    assert (WEIGHTS[0] == 1).all()
    patients, first = np.unique(GROUPS, return_index=True)
    for row in WEIGHTS[1:]:
        assert row[first].sum() == len(patients)
        assert all(len(set(row[patient == GROUPS])) == 1 for patient in patients)
    np.testing.assert_array_equal(WEIGHTS, patient_weights(GROUPS, 20, seed=1))
    assert (patient_weights(GROUPS, 20, seed=2) != WEIGHTS).any()


def test_intervals_hold_the_true_auroc_about_as_often_as_they_say():
    # Scores of two normal classes 1 apart: the population's AUROC is Phi(1 / sqrt 2).
    truth, repeats, held = norm.cdf(1 / np.sqrt(2)), 150, 0
    rng = np.random.default_rng(5)
    for seed in range(repeats):
        codes = np.repeat([0, 1], 50)
        ranking = rng.normal(size=100) + codes
        shares = np.stack([-ranking, ranking], axis=1)
        found = interval(scores.auroc(codes, shares, np.zeros(100), patient_weights(np.arange(100), 300, seed)))
        held += found.low <= truth <= found.high
        assert found.low < found.value < found.high
    assert 0.88 <= held / repeats <= 0.99


def test_two_eyes_that_say_the_same_make_an_interval_no_narrower():
    rng = np.random.default_rng(2)
    truth, said = rng.normal(size=40), rng.normal(size=40)

    def width(truth, said, groups):
        found = interval(scores.mae(truth, said, patient_weights(groups, 500, seed=0)))
        return found.high - found.low

    alone = width(truth, said, np.arange(40))
    as_people = width(np.repeat(truth, 2), np.repeat(said, 2), np.repeat(np.arange(40), 2))
    as_volumes = width(np.repeat(truth, 2), np.repeat(said, 2), np.arange(80))
    assert as_people == pytest.approx(alone)
    assert as_volumes < 0.85 * alone  # 1 / sqrt 2 of it: the error that folds by volume would make
