"""Pictures of TRs: what is drawn is what was there, what was said, and what the constant says."""

from dataclasses import replace

import numpy as np
import pytest

from pretraining.reconstruct.album import as_png
from pretraining.reconstruct.overview import overview_picture, wholes
from pretraining.reconstruct.pictures import audio_picture, fmri_picture, text_picture, video_picture
from tests.pretraining.reconstruct.film_runs import perfect


def shown(axes) -> np.ndarray:
    return np.asarray(axes.images[0].get_array())


def test_a_perfect_models_picture_is_the_truth_and_its_error_is_black(held_out):
    truth, model, mean, _, error, error_of_mean = video_picture(perfect(held_out), 4).axes
    size = (held_out.shape.height, held_out.shape.width, 3)
    np.testing.assert_array_equal(shown(truth), held_out.truth["video"][4].reshape(size))
    np.testing.assert_array_equal(shown(model), shown(truth))
    np.testing.assert_array_equal(shown(mean), held_out.mean["video"].reshape(size))
    assert shown(error).max() == 0
    np.testing.assert_allclose(shown(error_of_mean), np.abs(shown(truth) - shown(mean)).mean(2), atol=1e-6)
    assert error.images[0].get_clim() == error_of_mean.images[0].get_clim() == (0, shown(error_of_mean).max())
    assert "FVU 0.000" in model.get_title()


def test_each_panel_says_its_error(held_out):
    _, model, _, _, error, _ = video_picture(held_out, 1).axes
    off = np.sqrt(((held_out.truth["video"][1] - held_out.prediction["video"][1]) ** 2).mean())
    assert f"{off:.3f}" in error.get_title()
    assert f"FVU {held_out.fvu('video')[1]:.3f}" in model.get_title()


def test_said_codes_lie_in_the_rings_of_true_ones_where_they_are_right(held_out):
    figure = audio_picture(perfect(held_out), 2)
    books, size = held_out.shape.codebooks, held_out.shape.codes_per_tr
    assert len(figure.axes) == books
    for book, axes in enumerate(figure.axes):
        true, said, common = axes.lines
        np.testing.assert_array_equal(true.get_ydata(), held_out.codes[2, book * size : (book + 1) * size])
        np.testing.assert_array_equal(said.get_ydata(), true.get_ydata())
        assert set(common.get_ydata()) == {held_out.common_codes[book * size]}
        assert "right codes 100%" in axes.get_title(loc="left")
        assert "cross-entropy 0.000" in axes.get_title(loc="left")


def test_text_lines_and_brain_points_are_the_values(held_out):
    lines = text_picture(held_out, 0).axes[0].lines
    for line, values in zip(
        lines, (held_out.truth["text"][0], held_out.mean["text"], held_out.prediction["text"][0]), strict=True
    ):
        np.testing.assert_array_equal(line.get_ydata(), values)
    model, mean = fmri_picture(held_out, 0).axes
    truth = held_out.truth["fmri"][0]
    np.testing.assert_allclose(model.collections[0].get_offsets(), np.stack([truth, held_out.prediction["fmri"][0]], 1))
    np.testing.assert_allclose(mean.collections[0].get_offsets(), np.stack([truth, held_out.mean["fmri"]], 1))
    assert model.get_xlim() == mean.get_xlim()


def test_the_overview_shows_every_modality_every_voxel_and_the_ceiling(held_out):
    bars, histogram, course = overview_picture(held_out, 0.8, 0.36).axes
    expected = [min(value, 2.0) for whole in wholes(held_out) for value in (whole.model, whole.constant)]
    assert [bar.get_height() for bar in bars.patches] == pytest.approx(expected)
    assert sum(bar.get_height() for bar in histogram.patches) == 2 * held_out.shape.voxels
    assert [0.8, 0.8] in [list(line.get_xdata()) for line in histogram.lines]
    assert [0.36, 0.36] in [list(line.get_ydata()) for line in bars.lines]
    mean, model = course.lines
    np.testing.assert_allclose(mean.get_ydata(), held_out.mean_fvu("fmri"))
    np.testing.assert_allclose(model.get_ydata(), held_out.fvu("fmri"))


def test_a_broken_model_is_drawn_too(held_out):
    broken = {name: np.full_like(values, np.nan) for name, values in held_out.prediction.items()}
    found = replace(held_out, prediction=broken, code_costs=np.full_like(held_out.code_costs, np.nan))
    for draw in (video_picture, fmri_picture):
        assert as_png(draw, found, 0)[1:4] == b"PNG"
    assert as_png(overview_picture, found, None, None)[1:4] == b"PNG"


def test_equal_predictions_give_equal_bytes(held_out):
    assert as_png(fmri_picture, held_out, 1) == as_png(fmri_picture, held_out, 1) != as_png(fmri_picture, held_out, 2)


def test_dollars_in_a_subjects_name_are_no_formula(held_out):
    found = replace(held_out, names=("$\\bad{$ TR 3", *held_out.names[1:]))
    assert as_png(overview_picture, found, None, None)
