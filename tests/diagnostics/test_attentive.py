"""The attentive probe: finds what sits in one patch, is no worse than the mean where the mean says it all, repeats."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from oct_foundation.diagnostics.attentive import _START, _learn, _Part, _predict, attentive_predictions
from oct_foundation.diagnostics.folds import inner_folds, patient_folds
from oct_foundation.diagnostics.labels import read_label
from oct_foundation.diagnostics.out_of_fold import Contestant, predict_out_of_fold

M, N, E = 120, 16, 8
PEOPLE = np.arange(M) // 2


def out_of_fold(tokens, column, probe):
    """Predictions [M], or probabilities of the second class, by three folds."""
    label = read_label("x", column)
    folds = patient_folds(label, PEOPLE, 3, seed=0)
    found = predict_out_of_fold(Contestant(pooled=tokens.mean(axis=1), tokens=tokens), probe, label, PEOPLE, folds, 0)
    return found.said if label.kind == "values" else found.said[:, 1]


@pytest.fixture(scope="module")
def hidden():
    """A lesion in one patch of each volume, somewhere: channel 0 marks it, channel 1 there says how bad it is."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(M, N, E)).astype(np.float32)
    severity, place = rng.normal(size=M), rng.integers(0, N, M)
    tokens[np.arange(M), place, 0] += 8
    tokens[np.arange(M), place, 1] = severity
    return tokens, severity


def test_what_sits_in_one_patch_is_found_though_the_mean_hides_it(hidden):
    tokens, severity = hidden
    attentive = np.corrcoef(out_of_fold(tokens, severity, "attentive"), severity)[0, 1]
    linear = np.corrcoef(out_of_fold(tokens, severity, "ridge"), severity)[0, 1]
    assert attentive > 0.85
    assert linear < 0.4


def test_classes_are_found_too(hidden):
    tokens, severity = hidden
    shares = out_of_fold(tokens, severity > 0, "attentive")
    assert np.mean((shares > 0.5) == (severity > 0)) > 0.8


def test_where_the_mean_says_it_all_it_does_as_well_as_ridge():
    rng = np.random.default_rng(1)
    tokens = rng.normal(size=(M, N, E)).astype(np.float32)
    label = rng.normal(size=M)
    tokens[:, :, 2] += label[:, None]
    attentive, linear = (np.mean((out_of_fold(tokens, label, kind) - label) ** 2) for kind in ("attentive", "ridge"))
    assert attentive < 1.3 * linear < 0.2


def test_noise_is_answered_with_about_the_mean():
    rng = np.random.default_rng(2)
    label = rng.normal(5, 1, M)
    said = out_of_fold(rng.normal(size=(M, N, E)).astype(np.float32), label, "attentive")
    assert np.mean((said - label) ** 2) < 1.15 * label.var()


def test_equal_calls_give_equal_predictions_and_the_seed_counts(hidden):
    tokens, severity = hidden
    label = read_label("x", severity)
    fold = patient_folds(label, PEOPLE, 3, seed=0)[0]
    inner = inner_folds(label, PEOPLE, fold.train, 2, seed=0)
    first, again, other = (attentive_predictions(tokens, label, fold, inner, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_what_is_scored_is_never_looked_at(hidden):
    tokens, severity = hidden
    label = read_label("x", severity)
    fold = patient_folds(label, PEOPLE, 3, seed=0)[0]
    inner = inner_folds(label, PEOPLE, fold.train, 2, seed=0)
    lied = severity.copy()
    lied[fold.test] = 1e3
    honest = attentive_predictions(tokens, label, fold, inner, 0)
    np.testing.assert_array_equal(honest, attentive_predictions(tokens, read_label("x", lied), fold, inner, 0))


def test_the_linear_layer_is_ridge_on_standardised_features():
    rng = np.random.default_rng(3)
    part = _Part(torch.from_numpy(rng.normal(size=(30, 4, 5))), torch.from_numpy(rng.normal(size=(30, 2))))
    train, others = part.of(np.arange(20)), part.of(np.arange(20, 30))
    query, alpha = torch.from_numpy(rng.normal(size=5)), 0.3
    pooled, targets = train.pool(query).numpy(), train.targets.numpy()
    mean, deviation = pooled.mean(axis=0), pooled.std(axis=0, ddof=1)
    features, width = (pooled - mean) / deviation, pooled.shape[1]
    weights = np.linalg.solve(
        features.T @ features + alpha * width * np.eye(width), features.T @ (targets - targets.mean(axis=0))
    )
    expected = (others.pool(query).numpy() - mean) / deviation @ weights + targets.mean(axis=0)
    found = _predict(train, others, query, torch.tensor([alpha, 9.0], dtype=torch.float64))
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-8)


def test_the_query_pays_attention_as_the_formula_says():
    part = _Part(torch.tensor([[[0.0, 2.0], [4.0, 6.0]]]), torch.zeros(1, 1))
    query = torch.tensor([np.sqrt(2.0), 0.0], dtype=torch.float32)  # scores 0 and 4 after the division by sqrt 2
    share = np.exp(4) / (1 + np.exp(4))
    np.testing.assert_allclose(part.pool(query).numpy(), [[2, 4, 4 * share, 2 + 4 * share]], rtol=1e-6)


def test_learning_begins_with_the_start_and_takes_the_steps_that_were_asked_for():
    rng = np.random.default_rng(4)
    part = _Part(torch.from_numpy(rng.normal(size=(12, 4, 3))), torch.from_numpy(rng.normal(size=(12, 1))))
    start = _START * torch.ones(3, dtype=torch.float64)
    queries = list(_learn(part, start, 3))
    assert len(queries) == 4
    torch.testing.assert_close(queries[0], start)
    assert all((one != other).all() for one, other in pairwise(queries))
