import numpy as np
import pytest
from scipy.signal import lfilter

from oct_foundation.diagnostics.naive_predictors import (
    autoregressive,
    fit_autoregression,
    persistence,
    ridge,
    shifted,
    training_mean,
)


def autoregressive_field(coefficients, num_trs: int, num_voxels: int, seed: int = 0) -> np.ndarray:
    white = np.random.default_rng(seed).standard_normal((num_trs + 200, num_voxels))
    return lfilter([1.0], [1.0, *(-np.array(coefficients))], white, axis=0)[200:]


def test_the_training_mean_is_over_all_segments():
    segments = [np.ones((3, 2)), np.full((1, 2), 5.0)]
    assert training_mean(segments).tolist() == [2.0, 2.0]
    with pytest.raises(ValueError, match="no TR"):
        training_mean([np.zeros((0, 2))])


def test_persistence_is_the_tr_before_and_the_mean_where_there_is_none():
    held = [np.array([[1.0], [2.0], [4.0]]), np.array([[7.0], [8.0]])]
    assert persistence([np.full((2, 1), 3.0)], held).ravel().tolist() == [3, 1, 2, 3, 7]
    assert persistence([np.full((2, 1), 3.0)], held, horizon=2).ravel().tolist() == [3, 3, 1, 3, 3]


@pytest.mark.parametrize("coefficients", [(0.8,), (1.6, -0.8), (0.4, 0.2, -0.5)])
def test_the_coefficients_of_a_known_autoregression_are_found_with_their_order(coefficients):
    train = [autoregressive_field(coefficients, 400, 30) + 5, autoregressive_field(coefficients, 300, 30, seed=1) + 5]
    assert fit_autoregression(train, len(coefficients)) == pytest.approx(coefficients, abs=0.02)
    found = fit_autoregression(train)
    assert len(coefficients) <= len(found) <= 8
    assert found[: len(coefficients)] == pytest.approx(coefficients, abs=0.05)


def test_least_squares_agrees_with_a_design_matrix():
    field = autoregressive_field((1.2, -0.5), 60, 4)
    centred = field - field.mean(axis=0)
    design = np.stack([centred[2 - lag : 60 - lag].ravel() for lag in (1, 2)], axis=1)
    expected = np.linalg.lstsq(design, centred[2:].ravel(), rcond=None)[0]
    assert fit_autoregression([field], 2) == pytest.approx(expected)


def test_many_steps_ahead_are_steps_one_after_the_other():
    coefficients, mean = np.array([1.3, -0.5]), np.array([2.0])
    held = autoregressive_field(coefficients, 50, 1) + 2
    ahead = autoregressive(coefficients, mean, [held], horizon=3)
    history = (held - mean)[:20]
    for _ in range(3):
        history = np.concatenate([history, [history[-1] * 1.3 - history[-2] * 0.5]])
    assert ahead[22] == pytest.approx(history[-1] + mean)


def test_a_tr_without_a_past_gets_the_mean_and_one_with_too_little_persists():
    coefficients, held = np.array([1.98, -0.99]), [np.array([[2.0], [3.0], [4.0]])]
    assert autoregressive(coefficients, np.zeros(1), held).ravel() == pytest.approx([0, 2, 3 * 1.98 - 2 * 0.99])
    before = [np.array([[5.0], [1.0]])]
    said = autoregressive(coefficients, np.zeros(1), held, before=before)
    assert said.ravel() == pytest.approx([1.98 - 0.99 * 5, 2 * 1.98 - 0.99, 3 * 1.98 - 2 * 0.99])
    assert persistence([np.zeros((1, 1))], held, before=before).ravel().tolist() == [1, 2, 3]


def test_an_autoregression_of_white_noise_is_the_mean():
    noise = np.random.default_rng(3).standard_normal((500, 20))
    said = autoregressive(fit_autoregression([noise]), training_mean([noise]), [noise[:50]])
    assert said.shape == (50, 20)
    assert np.abs(said[8:]).max() < 0.5


def test_ridge_finds_a_linear_map_and_refuses_noise():
    rng = np.random.default_rng(4)
    features, weights = rng.standard_normal((400, 12)), rng.standard_normal((12, 6))
    target = features @ weights + 0.1 * rng.standard_normal((400, 6)) + 3
    good = ridge(features[:300], target[:300], features[300:])
    assert ((good - target[300:]) ** 2).mean() < 0.05 * target.var()
    nothing = ridge(rng.standard_normal((300, 12)), target[:300], features[300:])
    assert ((nothing - target[300:]) ** 2).mean() < 1.1 * target[300:].var()


def test_smooth_features_do_not_give_neighbours_in_time_away():
    """Unrelated smooth series: on folds of shuffled TRs a map between them looks good (here 1.53 on other TRs)."""
    features, target = autoregressive_field((0.9,), 400, 60), autoregressive_field((0.9,), 400, 10, seed=1)
    said = ridge(features[:300], target[:300], features[300:])
    assert ((said - target[300:]) ** 2).mean() < 1.2 * ((target[300:] - target[:300].mean(axis=0)) ** 2).mean()


def test_wide_features_go_through_their_components():
    rng = np.random.default_rng(5)
    hidden = rng.standard_normal((200, 3))
    features = hidden @ rng.standard_normal((3, 500)) + 0.1 * rng.standard_normal((200, 500))
    target = hidden @ rng.standard_normal((3, 4))
    said = ridge(features[:150], target[:150], features[150:], components=5)
    assert ((said - target[150:]) ** 2).mean() < 0.05 * target.var()


def test_a_shifted_copy_is_a_quarter_of_the_run_away():
    assert shifted(np.arange(8)[:, None]).ravel().tolist() == [6, 7, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: autoregressive(np.ones(1), np.zeros(1), [np.ones((3, 1))], horizon=0), "horizon"),
        (lambda: fit_autoregression([np.ones((4, 1))], 4), r"AR\(4\) needs"),
        (lambda: fit_autoregression([np.ones((4, 1))]), "10 TRs or more"),
        (lambda: ridge(np.ones((5, 2)), np.ones((5, 1)), np.ones((1, 2))), "10 training TRs"),
    ],
)
def test_too_little_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
