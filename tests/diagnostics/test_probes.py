"""Probes against scikit-learn by hand, and on features of which it is known what they hold."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from oct_foundation.diagnostics.estimators import RIDGE_ALPHAS
from oct_foundation.diagnostics.folds import patient_folds
from oct_foundation.diagnostics.labels import read_label
from oct_foundation.diagnostics.out_of_fold import Contestant
from oct_foundation.diagnostics.probes import ProbeSettings, probe
from oct_foundation.diagnostics.quick_probe import quick_probe
from oct_foundation.diagnostics.voxel_controls import voxel_controls
from oct_foundation.geometry import PatchGrid

M, WIDTH = 80, 12
PEOPLE = np.repeat(np.arange(M // 2), 2)  # both eyes of 40 people
QUICK = ProbeSettings(probes=("ridge", "logistic"), resamples=200)


@pytest.fixture(scope="module")
def features():
    """`knows` holds two labels, plus noise; `noise` holds none."""
    rng = np.random.default_rng(0)
    signal, noise = rng.normal(size=(M, WIDTH)), rng.normal(size=(M, WIDTH))
    return {"knows": signal.astype(np.float32), "noise": noise.astype(np.float32)}


@pytest.fixture(scope="module")
def thickness(features):
    return 300 + 20 * features["knows"][:, 3] + np.random.default_rng(1).normal(size=M)


@pytest.fixture(scope="module")
def grade(features):
    return features["knows"][:, 5:8].argmax(axis=1)


def row_of(rows, contestant, metric, kind=None):
    [found] = [
        row for row in rows if (row.contestant, row.metric) == (contestant, metric) and kind in (None, row.probe)
    ]
    return found


def test_ridge_scores_are_those_of_a_loop_by_hand(features, thickness):
    rows = probe({"encoder": Contestant(pooled=features["knows"])}, {"thickness": thickness}, PEOPLE, QUICK)
    pooled, said = features["knows"].astype(float), np.zeros(M)
    for train, test in GroupKFold(5, shuffle=True, random_state=0).split(pooled, groups=PEOPLE):
        scale = StandardScaler().fit(pooled[train])
        inside = list(GroupKFold(4, shuffle=True, random_state=0).split(train, groups=PEOPLE[train]))
        errors = []
        for alpha in RIDGE_ALPHAS:
            errors.append(0.0)
            for learn, choose in inside:
                ridge = Ridge(alpha).fit(scale.transform(pooled[train])[learn], thickness[train][learn])
                missed = ridge.predict(scale.transform(pooled[train])[choose]) - thickness[train][choose]
                errors[-1] += np.mean(missed**2)
        best = Ridge(RIDGE_ALPHAS[int(np.argmin(errors))]).fit(scale.transform(pooled[train]), thickness[train])
        said[test] = best.predict(scale.transform(pooled[test]))
    assert row_of(rows, "encoder", "r2").score == pytest.approx(r2_score(thickness, said), abs=1e-9)
    assert row_of(rows, "encoder", "mae").score == pytest.approx(mean_absolute_error(thickness, said), abs=1e-9)


def test_features_that_hold_the_label_beat_the_controls_and_noise_does_not(features, thickness, grade):
    contestants = {
        "encoder": Contestant(pooled=features["knows"]),
        "useless": Contestant(pooled=features["noise"][:, ::-1]),
        "random_init": Contestant(pooled=features["noise"]),
        "pca": Contestant(pooled=np.random.default_rng(8).normal(size=(M, M)), num_components=WIDTH),
    }
    settings = ProbeSettings(resamples=200, folds=4)
    rows = probe(contestants, {"thickness": thickness, "grade": grade}, PEOPLE, settings)
    for row in rows:
        if row.contestant == "encoder":
            assert set(row.beats) >= {"random_init", "pca"} or row.metric == "mae" or row.probe == "knn", row
            assert row.differences.keys() == {"random_init", "pca", "mean_predictor"}
        elif row.contestant == "useless":
            assert not row.beats_controls
        else:
            assert not row.differences
    assert row_of(rows, "encoder", "r2", "ridge").score > 0.99
    assert row_of(rows, "encoder", "mae", "ridge").beats_controls  # less is better there
    assert row_of(rows, "encoder", "r2", "knn").score > 0.1
    assert row_of(rows, "encoder", "auroc", "logistic").score > 0.9
    assert row_of(rows, "encoder", "auroc", "knn").score > 0.7
    assert row_of(rows, "useless", "auroc", "logistic").score < 0.65
    own, rival = row_of(rows, "encoder", "r2", "ridge"), row_of(rows, "random_init", "r2", "ridge")
    difference = own.differences["random_init"]
    assert difference.value == pytest.approx(own.score - rival.score)
    assert 0 < difference.low < difference.value < difference.high


def test_who_says_the_mean_knows_nothing(features, thickness, grade):
    rows = probe(
        {"encoder": Contestant(pooled=features["noise"])}, {"thickness": thickness, "grade": grade}, PEOPLE, QUICK
    )
    assert -0.15 < row_of(rows, "mean_predictor", "r2").score <= 0
    assert row_of(rows, "mean_predictor", "auroc").score == 0.5
    assert row_of(rows, "mean_predictor", "balanced_accuracy").score == pytest.approx(1 / 3)


def test_a_probe_that_recognises_people_gains_nothing():
    rng = np.random.default_rng(4)
    people = np.repeat(np.arange(30), 4)
    faces, luck = rng.normal(size=(30, 8)), rng.normal(size=30)
    pooled, label = faces[people] + 0.05 * rng.normal(size=(120, 8)), luck[people]
    settings = ProbeSettings(probes=("knn",), resamples=100)
    contestants = {"encoder": Contestant(pooled=pooled)}
    by_person = row_of(probe(contestants, {"luck": label}, people, settings), "encoder", "r2")
    by_volume = row_of(probe(contestants, {"luck": label}, np.arange(120), settings), "encoder", "r2")
    assert by_person.score < 0.1
    assert by_volume.score > 0.9
    assert (by_person.num_patients, by_volume.num_patients) == (30, 120)


def test_equal_scans_leave_the_principal_components_no_worse_than_the_mean():
    """Of no variance in the training part, directions of rounding had an R2 of -3e30."""
    rng = np.random.default_rng(0)
    volumes, label = rng.integers(0, 256, (30, 4, 8, 8)).astype(np.uint8), rng.normal(300, 20, 30)
    volumes[:6] = volumes[0]
    grid = PatchGrid(image_size=(4, 8, 8), patch_size=(2, 4, 4))
    voxels = volumes.reshape(30, -1).astype(float)
    contestants = {
        "pca": voxel_controls(volumes, range(30), grid, num_components=384)["pca"],
        "whole": Contestant(pooled=voxels, num_components=384),
    }
    settings = ProbeSettings(probes=("ridge",), folds=3, resamples=100)
    rows = probe(contestants, {"thickness": label}, np.arange(30), settings)
    for name in contestants:
        assert row_of(rows, name, "r2").score > row_of(rows, "mean_predictor", "r2").score - 0.1
        assert np.isfinite(row_of(rows, name, "r2").low)


def test_no_patient_is_on_both_sides_and_every_volume_is_scored_once(grade):
    for column in (grade, np.arange(M) * 0.5):
        label = read_label("x", column)
        folds = patient_folds(label, PEOPLE, 5, seed=3)
        assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(M))
        assert all(not set(PEOPLE[fold.train]) & set(PEOPLE[fold.test]) for fold in folds)


def test_volumes_without_a_label_are_left_out_and_counted(features, thickness):
    gappy = thickness.astype(object)
    gappy[:10] = None
    gappy[10:12] = ""
    gappy[12:14] = np.nan
    full = probe({"encoder": Contestant(pooled=features["knows"][14:])}, {"t": thickness[14:]}, PEOPLE[14:], QUICK)
    rows = probe({"encoder": Contestant(pooled=features["knows"])}, {"t": gappy}, PEOPLE, QUICK)
    found = row_of(rows, "encoder", "r2")
    assert (found.num_volumes, found.num_missing, found.num_patients) == (M - 14, 14, (M - 14) // 2)
    assert found.score == row_of(full, "encoder", "r2").score


def test_several_random_networks_take_turns_over_the_draws_of_folds(features, thickness):
    both = [Contestant(pooled=features["knows"]), Contestant(pooled=features["noise"])]
    rows = probe(
        {"random_init": both}, {"t": thickness}, PEOPLE, ProbeSettings(probes=("ridge",), draws=2, resamples=100)
    )
    first = probe({"random_init": both[0]}, {"t": thickness}, PEOPLE, ProbeSettings(probes=("ridge",), resamples=100))
    second = probe(
        {"random_init": both[1]}, {"t": thickness}, PEOPLE, ProbeSettings(probes=("ridge",), resamples=100, seed=1)
    )
    halves = [row_of(found, "random_init", "r2").score for found in (first, second)]
    assert row_of(rows, "random_init", "r2").score == pytest.approx(np.mean(halves))


def test_equal_calls_give_equal_rows(features, thickness):
    contestants = {"encoder": Contestant(pooled=features["knows"])}
    assert probe(contestants, {"t": thickness}, PEOPLE, QUICK) == probe(contestants, {"t": thickness}, PEOPLE, QUICK)


def test_controls_without_tokens_meet_the_attentive_probe_with_their_linear_one(features, thickness):
    tokens = np.repeat(features["knows"][:, None], 2, axis=1)
    contestants = {
        "encoder": Contestant(pooled=features["knows"], tokens=tokens),
        "pca": Contestant(pooled=features["noise"]),
    }
    rows = probe(contestants, {"t": thickness}, PEOPLE, ProbeSettings(probes=("attentive",), folds=2, resamples=100))
    own, rival = row_of(rows, "encoder", "r2"), row_of(rows, "pca", "r2")
    assert (own.probe, rival.probe) == ("attentive", "ridge")
    assert own.differences["pca"].value == pytest.approx(own.score - rival.score)


@pytest.mark.parametrize(
    ("column", "kind", "found"),
    [
        (np.arange(11), None, "values"),
        (np.arange(11) % 10, None, "classes"),
        (["0.5", "1", ""] * 4, None, "classes"),
        ([212.5, 301.25, 250.0], None, "values"),
        (["R", "L", None], None, "classes"),
        ([True, False, True], None, "classes"),
        ([1, 2, 3], "values", "values"),
        (np.arange(11), "classes", "classes"),
    ],
)
def test_a_label_is_values_or_classes(column, kind, found):
    assert read_label("x", column, kind).kind == found


def test_classes_that_are_numbers_keep_their_order():
    label = read_label("grade", ["10", "2", "2", "", "0.5", "10", "0.5"])
    assert label.classes == ("0.5", "2", "10")
    assert label.targets.tolist() == [2, 1, 1, 0, 2, 0]
    assert label.known.tolist() == [True, True, True, False, True, True, True]


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        (["a", "a", ""], None, "label x: only 'a' in 3 volumes"),
        ([None, "", np.nan], None, "label x: no value in 3 volumes"),
        (["1", "2", "many"], "values", "label x: 'many' is no number"),
        ([1.0, np.inf], None, "label x holds inf"),
    ],
)
def test_a_column_that_is_no_label_is_refused(column, kind, message):
    with pytest.raises(ValueError, match=message):
        read_label("x", column, kind)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": np.arange(M) // 40}, "label t: 2 patients cannot fill 5 folds"),
        ({"groups": PEOPLE[:-1]}, "features encoder: 80 volumes, but 79 patients"),
        ({"labels": {"t": np.arange(9.0)}}, "label t: 9 volumes, but 80"),
        ({"labels": {"t": ["rare"] * 4 + ["common"] * 76}}, "2 patients of class 'rare' cannot fill 5 folds"),
        ({"settings": ProbeSettings(probes=("attentive",))}, "needs patch tokens; encoder has none"),
        ({"features": {"encoder": Contestant(pooled=np.full((M, 2), np.nan))}}, "features encoder hold NaN"),
    ],
)
def test_what_cannot_be_judged_is_refused_with_the_reason(features, thickness, change, message):
    call = {
        "features": {"encoder": Contestant(pooled=features["knows"])},
        "labels": {"t": thickness},
        "groups": PEOPLE,
        "settings": QUICK,
    }
    with pytest.raises(ValueError, match=message):
        probe(**(call | change))


def test_a_class_of_one_person_per_training_part_is_refused():
    column, people = ["a", "a", "b", "b"] * 2, [0, 1, 2, 3] * 2
    contestants = {"encoder": Contestant(pooled=np.random.default_rng(0).normal(size=(8, 3)))}
    with pytest.raises(ValueError, match="holds 1 patient of class 'a', too few to choose"):
        probe(contestants, {"x": column}, people, ProbeSettings(probes=("logistic",), folds=2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"probes": ("svm",)}, "probes must be some of ridge, logistic, knn, attentive; found svm"),
        ({"probes": ()}, "found none"),
        ({"folds": 1}, "folds must be at least 2"),
        ({"resamples": 10}, "resamples must be at least 100"),
    ],
)
def test_settings_are_checked(values, message):
    with pytest.raises(ValueError, match=message):
        ProbeSettings(**values)


def test_the_quick_probe_agrees_with_the_slow_one(features, thickness, grade):
    gappy = thickness.astype(object)
    gappy[:20] = None
    pooled = features["knows"]
    labels = {"thickness": thickness, "gappy": gappy, "grade": grade}
    found = quick_probe(pooled, labels, PEOPLE)
    rows = probe({"encoder": Contestant(pooled=pooled)}, labels, PEOPLE, QUICK)
    slow = {row.label: row.score for row in rows if row.contestant == "encoder" and row.metric in ("r2", "auroc")}
    assert list(found) == list(labels)
    for name, score in found.items():
        assert score == pytest.approx(slow[name], abs=0.08)  # ridge on classes is no logistic regression
    noise = quick_probe(features["noise"], labels, PEOPLE)
    assert noise["thickness"] < 0.2
    assert noise["grade"] < 0.7


def test_the_quick_probe_takes_kinds_that_are_said():
    column = np.arange(M) % 7
    pooled = column[:, None] + 0.01 * np.random.default_rng(0).normal(size=(M, 3))
    assert quick_probe(pooled, {"count": column}, PEOPLE, {"count": "values"})["count"] > 0.99
