import numpy as np
import pytest

from pretraining.pictures import principal_colours


def test_colours_follow_the_direction_in_which_features_differ_most():
    place = np.linspace(0, 1, 200)
    rng = np.random.default_rng(0)
    features = (10 * place[None, :, None] * np.array([1.0, 2.0, 0.5, 0.0]) + rng.normal(0, 0.1, (1, 200, 4))).astype(
        np.float32
    )
    colours = principal_colours(features)
    assert colours.shape == (1, 200, 3)
    assert np.corrcoef(colours[0, :, 0], place)[0, 1] > 0.99  # rising: the largest weight is positive


def test_signs_do_not_flip_between_equal_features_in_another_order():
    features = np.random.default_rng(1).normal(size=(2, 50, 8)) * np.arange(1, 9)
    order = np.random.default_rng(2).permutation(50)
    assert np.array_equal(principal_colours(features)[:, order], principal_colours(features[:, order]))


@pytest.mark.parametrize("width", [1, 2])
def test_narrow_features_leave_colours_dark(width):
    colours = principal_colours(np.random.default_rng(0).normal(size=(1, 9, width)))
    assert (colours[..., width:] == 0).all()


def test_equal_features_are_no_division_by_zero():
    assert np.isfinite(principal_colours(np.ones((1, 5, 4)))).all()
