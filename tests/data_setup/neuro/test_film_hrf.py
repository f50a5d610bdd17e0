"""The blood's response: its sum, its shape against nilearn's, and that it never looks ahead."""

import numpy as np
import pytest

from data_setup.neuro.hrf import convolved, glover_kernel


@pytest.mark.parametrize("tr", [0.5, 0.8, 1.5, 2.0])
def test_a_kernel_sums_to_one_and_peaks_after_five_seconds(tr: float) -> None:
    kernel = glover_kernel(tr)
    assert kernel.sum() == pytest.approx(1)
    assert kernel[0] == 0
    assert abs(np.argmax(kernel) * tr - 5) <= max(tr / 2, 0.5)


def test_with_a_peak_of_one_a_white_picture_would_be_twice_as_bright() -> None:
    kernel = glover_kernel(1.5)
    assert (kernel / kernel.max()).sum() == pytest.approx(1.99, abs=0.01)


def test_the_kernel_is_nilearns_at_the_trs() -> None:
    glover_hrf = pytest.importorskip(
        "nilearn.glm.first_level", reason="NILEARN ABSENT (octfm[neuro]): the response was NOT compared with its own"
    ).glover_hrf
    fine = glover_hrf(1.5, oversampling=150, time_length=32)[::150]
    ours = glover_kernel(1.5)
    assert np.corrcoef(ours, fine[: len(ours)])[0, 1] > 0.9999


def test_an_impulse_becomes_the_kernel_and_nothing_before_it_moves() -> None:
    kernel = glover_kernel(1.5)
    features = np.zeros((60, 3), np.float32)
    features[10, 1] = 1
    answer = convolved(features, kernel)
    np.testing.assert_allclose(answer[10 : 10 + len(kernel), 1], kernel, atol=1e-7)
    assert not answer[:10].any()
    assert not answer[:, [0, 2]].any()


def test_it_equals_a_slow_loop_at_every_width() -> None:
    features = np.random.default_rng(0).normal(size=(30, 2050))  # more columns than are taken at once
    kernel = glover_kernel(2.0)
    slow = [sum(weight * features[max(t - lag, 0)] for lag, weight in enumerate(kernel)) for t in range(30)]
    np.testing.assert_allclose(convolved(features, kernel), slow, atol=1e-5)


def test_what_comes_later_changes_nothing() -> None:
    features = np.random.default_rng(0).normal(size=(50, 4))
    changed = features.copy()
    changed[30:] += 5
    kernel = glover_kernel(1.5)
    np.testing.assert_array_equal(convolved(features, kernel)[:30], convolved(changed, kernel)[:30])


def test_a_still_picture_keeps_its_brightness_from_the_first_tr_on() -> None:
    white = np.full((40, 2), 255, np.uint8)
    np.testing.assert_allclose(convolved(white, glover_kernel(1.5) / 255, np.float16), 1, atol=1e-3)


def test_how_far_the_undershoot_carries_a_picture_out_of_its_range() -> None:
    film = np.zeros((80, 1), np.uint8)
    film[40:50] = 255  # white for 15 s: over before the undershoot of its start
    answer = convolved(film, glover_kernel(1.5) / 255)
    assert -0.56 < answer.min() < -0.4
    assert 1.4 < answer.max() < 1.56
