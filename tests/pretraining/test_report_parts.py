"""Parts of the report with answers that can be known beforehand: thinning, probe groups, pictures, readings."""

import base64
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretraining.report.curves import Axis, Curve, draw, style_of, thin
from pretraining.report.gather import readings_of
from pretraining.report.page import short
from pretraining.report.pictures import show
from pretraining.report.probe_table import groups_of
from tests.pretraining.report_runs import probe_row, write_pictures


def test_thinning_keeps_every_extreme_and_both_ends() -> None:
    values = np.sin(np.arange(10_000) / 700)
    values[1234], values[8765] = 50, -50
    steps, kept = thin([(step, value) for step, value in enumerate(values)])
    assert len(steps) <= 400
    assert (np.diff(steps) > 0).all()
    assert (steps[0], steps[-1]) == (0, 9999)
    assert np.array_equal(kept, values[steps.astype(int)])
    assert {1234, 8765} <= set(steps)


def test_thinning_leaves_short_curves_and_gaps_alone() -> None:
    steps, values = thin([(0, 1.0), (5, math.inf), (9, 2.0)])
    assert steps.tolist() == [0, 5, 9]
    assert np.isnan(values[1])
    _, values = thin([(step, math.nan) for step in range(5000)])
    assert np.isnan(values).all()


def test_styles_repeat_late() -> None:
    assert len({style_of(place) for place in range(49)}) == 49
    assert style_of(0) == (0, ())


def labels_of(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_figures_follow_the_page_and_share_no_id() -> None:
    curve = Curve(label="loss", points=[(step, 1e-4 * (step + 1)) for step in range(50)])
    first, second = (draw(name, [curve], Axis()) for name in ("a", "b"))
    assert first == draw("a", [curve], Axis())
    ids = [set(re.findall(r'id="([^"]*)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert ids[1]
    assert not ids[0] & ids[1]
    assert "var(--curve-0)" in first
    assert not re.search(r"#[0-9a-f]{6}\b", first)  # a colour of its own would not follow light and dark
    assert "font-family" not in first
    assert "0.005" in labels_of(first)  # coordinates are rounded, labels are not


def test_a_logarithmic_axis_needs_positive_values_that_span_something() -> None:
    def labels(values: list[float]) -> list[str]:
        return labels_of(draw("x", [Curve(label="", points=list(enumerate(values)))], Axis(log=True)))

    assert "0.01" in labels([1, 0.1, 0.001])
    assert any(text.startswith("−") for text in labels([-0.5, 0.5]))
    assert "0.92" in labels([0.9, 1.0])


def test_a_short_axis_is_stretched_so_that_chance_makes_no_mountain() -> None:
    curve = Curve(label="", points=[(0, 0.40), (1, 0.39)])
    shown = [float(text) for text in labels_of(draw("x", [curve], Axis(min_span=0.2))) if "." in text]
    assert max(shown) - min(shown) > 0.1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.03141, "0.0314"), (12.34, "12.3"), (1240, "1,240"), (1.2e-7, "1.2e-07"), (0, "0"), (math.nan, "not a number")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_rows_of_one_step_are_one_reading() -> None:
    found = readings_of([{"step": 5, "diag/a": 1}, {"step": 0, "diag/a": 3, "train/loss": 1}, {"step": 5, "diag/b": 2}])
    assert [(one.step, one.values) for one in found] == [(0, {"a": 3}), (5, {"a": 1, "b": 2})]


def test_the_encoder_is_better_where_its_interval_clears_all_controls() -> None:
    table = [probe_row("random_init", 0.5), probe_row("pca", 0.6), probe_row("encoder", 0.71)]
    (group,), left_out = groups_of(table)
    assert (group.outcome, left_out) == ("better", 0)
    assert [row.contestant for row in group.rows] == ["encoder", "random init", "pca"]
    assert group.rows[0].text == "0.71 [0.66, 0.76]"
    assert group.zero == 0  # R2 of the mean, at the left end of 0 to .76
    assert (group.rows[0].dot, group.rows[0].width) == pytest.approx((100 * 0.71 / 0.76, 100 * 0.1 / 0.76))


def test_no_score_is_minus_nothing() -> None:
    (group,), _ = groups_of([probe_row("encoder", -0.004, low=-0.6, high=0.5), probe_row("pca", 0.1)])
    assert group.rows[0].text == "0.0 [-0.6, 0.5]"


def test_overlap_with_one_control_is_no_win_and_below_all_is_a_loss() -> None:
    controls = [probe_row("random_init", 0.5), probe_row("pca", 0.65)]
    assert groups_of([*controls, probe_row("encoder", 0.7)])[0][0].outcome == "not told apart"
    assert groups_of([*controls, probe_row("encoder", 0.3)])[0][0].outcome == "worse"
    assert groups_of([probe_row("encoder", 0.3)])[0][0].outcome == ""


def test_of_errors_the_small_one_wins() -> None:
    table = [probe_row("encoder", 0.2, metric="mae"), probe_row("pca", 0.4, metric="mae")]
    (group,), _ = groups_of(table)
    assert (group.outcome, group.higher_is_better, group.zero) == ("better", False, None)


def test_controls_without_a_probe_of_that_kind_join_with_their_own() -> None:
    table = [
        probe_row("mean_predictor", 0.0, probe="mean"),
        probe_row("encoder", 0.7),
        probe_row("pca", 0.6),
        probe_row("encoder", 0.8, probe="attentive"),
    ]
    found = {group.probe: [row.contestant for row in group.rows] for group in groups_of(table)[0]}
    assert found == {
        "ridge": ["encoder", "pca", "mean predictor"],
        "attentive": ["encoder", "mean predictor", "pca (ridge)"],
    }


def test_rows_without_a_number_are_counted_and_left_out() -> None:
    table = [probe_row("encoder", math.nan), probe_row("pca", 0.5, low=None), {"label": "x"}, probe_row("pca", 0.5)]
    groups, left_out = groups_of(table)
    assert (len(groups), left_out) == (1, 3)


def pixels_of(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), dtype=float)


def test_pictures_show_the_mask_and_the_similarity_where_they_are(tmp_path: Path) -> None:
    write_pictures(tmp_path, 100)
    notes: list[str] = []
    volume, unscaled = show({100: tmp_path / "pictures-100.npz"}, notes)
    scan, masked, _, predicted = (pixels_of(picture.uri) for picture in volume.pictures)
    assert scan.shape == (136, 340, 3)  # 0.4 high, as the spacing says
    left, right = (slice(5, 40), slice(5, 160)), (slice(5, 40), slice(180, 335))
    assert scan[left].mean() == pytest.approx(20, abs=2)
    assert masked[right].mean() == pytest.approx(20, abs=2)
    assert masked[left].mean(axis=(0, 1)) == pytest.approx(0.4 * 20 + 0.6 * np.array([213, 94, 0]), abs=4)
    viridis_middle = 255 * np.array([0.128, 0.567, 0.551])
    assert predicted[left].mean(axis=(0, 1)) == pytest.approx(0.15 * 20 + 0.85 * viridis_middle, abs=4)
    assert predicted[right].mean() == pytest.approx(0.35 * 20, abs=2)
    assert volume.pictures[3].caption == "prediction, step 100: mean cosine 0.50"
    assert (volume.to_scale, unscaled.to_scale, notes) == (True, False, [])


def test_the_first_and_the_newest_reading_stand_side_by_side_past_a_damaged_one(tmp_path: Path) -> None:
    for step in (0, 100, 200):
        write_pictures(tmp_path, step)
    (tmp_path / "pictures-300.npz").write_bytes(b"")
    notes: list[str] = []
    files = {step: tmp_path / f"pictures-{step}.npz" for step in (0, 100, 200, 300)}
    captions = [picture.caption for picture in show(files, notes)[0].pictures]
    assert captions[2:4] == ["features, step 0", "features, step 200"]
    assert notes == ["diagnostics/pictures-300.npz cannot be read (EOFError) and is left out."]


def test_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path, 0)
    with np.load(tmp_path / "pictures-0.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "pictures-0.npz", **{**arrays, "hidden": arrays["hidden"][:, 1:]})
    notes: list[str] = []
    assert show({0: tmp_path / "pictures-0.npz"}, notes) == []
    assert len(notes) == 1
