"""`octfm finetune`: it learns what is there, not what is not; patients stay apart; what is saved is what was scored."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score, roc_auc_score

from data_setup.index import PreparedSet
from oct_foundation.runtime.native import NativeRuntime
from pretraining.embed import main as embed_command
from pretraining.embedding import open_volumes
from pretraining.encoder_file import load_encoder, weights_sha256
from pretraining.finetune.command import main as finetune
from pretraining.finetune.labelled import held_out_splits, labelled_volumes
from pretraining.finetune.saved_model import load_model
from pretraining.finetune.settings import FineTuneSettings
from pretraining.finetune.training import fine_tune
from pretraining.probe_data import LabelChoice, scan_data

SIZE = (8, 32, 32)


@pytest.fixture(scope="module")
def run(tmp_path_factory, save_run):
    folder = tmp_path_factory.mktemp("run")
    save_run(folder)
    return folder


@pytest.fixture
def call(run, prepared_scans, scan_labels, tmp_path):
    """`call(label, *options)` -> exit code, metrics, the rows of predictions.csv."""

    def finetune_on(label, *options, out="out", labels=scan_labels):
        arguments = [str(run), "--data", str(prepared_scans), "--labels", str(labels), "--label", label]
        code = finetune(
            [*arguments, "--out", str(tmp_path / out), "--batch-size", "4", "--val-fraction", "0.34", *options]
        )
        if code:
            return code, None, None
        with (tmp_path / out / "predictions.csv").open() as file:
            return code, json.loads((tmp_path / out / "metrics.json").read_text()), list(csv.DictReader(file))

    return finetune_on


def test_it_learns_brightness_and_its_scores_are_those_of_scikit_learn(call, tmp_path, capsys):
    code, metrics, rows = call("brightness", "--epochs", "10", "--lr", "3e-3", "--folds", "3", "--kind", "regression")
    assert code == 0
    assert len(rows) == 12
    truth, found = ([float(row[name]) for row in rows] for name in ("truth", "predicted"))
    assert metrics["metrics"]["r2"]["value"] == pytest.approx(r2_score(truth, found))
    assert metrics["metrics"]["r2"]["value"] > 0.7
    assert metrics["mean_predictor"]["r2"]["value"] <= 0
    assert metrics["losses"][-1] < 0.5 * metrics["losses"][0]
    assert metrics["patients"] == 6
    assert "r2 " in capsys.readouterr().out


def test_a_class_is_scored_by_auroc_beside_the_mean_predictor(call):
    code, metrics, rows = call("bright", "--epochs", "6", "--lr", "2e-3", "--head", "attentive")
    assert code == 0
    assert metrics["label"]["classes"] == ["no", "yes"]
    assert metrics["mean_predictor"]["auroc"]["value"] == 0.5
    truth = [row["truth"] == "yes" for row in rows]
    expected = roc_auc_score(truth, [float(row["p(yes)"]) for row in rows])
    assert metrics["metrics"]["auroc"]["value"] == pytest.approx(expected)
    assert all(float(row["p(no)"]) + float(row["p(yes)"]) == pytest.approx(1) for row in rows)


def test_it_says_from_whom_the_held_out_volumes_are_unseen(call, run, tmp_path, prepared_scans, scan_labels, capsys):
    _, metrics, _ = call("brightness", "--epochs", "1", "--kind", "regression")
    said = capsys.readouterr().out
    assert "patients: unseen by this fine-tuning" in said
    assert "Nothing here says which volumes the encoder was pretrained on" in said
    assert metrics["held_out_seen_in_pretraining"] is None
    own = shutil.copytree(run, tmp_path / "own")
    shutil.copytree(prepared_scans, own / "prepared")
    arguments = [str(own), "--data", str(prepared_scans), "--labels", str(scan_labels), "--label", "brightness"]
    arguments += ["--kind", "regression", "--epochs", "1", "--folds", "2", "--out", str(tmp_path / "two")]
    num_seen = sum(row.split == "train" for row in PreparedSet.load(prepared_scans).accepted())
    assert finetune(arguments) == 0
    said = capsys.readouterr().out
    assert f"The encoder was pretrained on {num_seen} of the 12 held-out volumes: scores may be too good." in said
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["held_out_seen_in_pretraining"] == num_seen
    assert finetune([*arguments, "--init", "random"]) == 0
    assert "pretrained on" not in capsys.readouterr().out


def test_what_is_saved_is_what_was_scored(call, tmp_path, prepared_scans):
    call("brightness", "--epochs", "2", "--kind", "regression")
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    loaded, prepared = load_model(tmp_path / "out"), PreparedSet.load(prepared_scans)
    by_id = {row.id: np.array(prepared.volume(row)) for row in prepared.accepted()}
    with torch.no_grad():
        found = loaded.outputs.predictions(
            loaded.model(torch.from_numpy(np.stack([by_id[row["id"]] for row in rows]))[:, None])
        )
    np.testing.assert_allclose(found, [float(row["predicted"]) for row in rows], rtol=1e-6)


def test_equal_seeds_give_equal_files_and_the_fine_tuned_encoder_can_be_embedded_with(
    call, run, tmp_path, prepared_scans
):
    for out in ("a", "b"):
        call("brightness", "--epochs", "2", "--mirror", "--kind", "regression", out=out)
    for name in ("model.safetensors", "metrics.json", "predictions.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    call("brightness", "--epochs", "2", "--mirror", "--kind", "regression", "--seed", "1", out="c")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() != (tmp_path / "c" / "model.safetensors").read_bytes()
    tuned = load_encoder(str(tmp_path / "a"))
    assert weights_sha256(tuned.encoder) != weights_sha256(load_encoder(str(run)).encoder)
    assert weights_sha256(tuned.encoder) == weights_sha256(load_model(tmp_path / "a").model.encoder)
    assert embed_command([str(tmp_path / "a"), str(prepared_scans), "--out", str(tmp_path / "t.parquet")]) == 0


def test_freeze_trains_the_head_alone_and_random_starts_elsewhere(call, run, tmp_path):
    code, metrics, _ = call("bright", "--epochs", "1", "--freeze")
    assert code == 0
    assert metrics["trained_parameters"] == 2 * 96 + 96 * 2 + 2
    tuned = load_model(tmp_path / "out").model.encoder
    assert weights_sha256(tuned) == weights_sha256(load_encoder(str(run)).encoder)
    _, control, _ = call("bright", "--epochs", "1", "--freeze", "--init", "random", out="random")
    assert control["encoder"]["sha256"] != metrics["encoder"]["sha256"]
    assert control["settings"]["init"] == "random"


def labelled(run, prepared_scans, table, name="brightness", **columns):
    choice = LabelChoice(table=str(table), names=(name,), **columns)
    data = scan_data(load_encoder(str(run)), str(prepared_scans), choice, split="all", work=None)
    return labelled_volumes(data, name, None)[0]


@pytest.mark.parametrize("folds", [0, 3])
def test_no_patient_is_on_both_sides(run, prepared_scans, scan_labels, folds):
    data = labelled(run, prepared_scans, scan_labels)
    assert len(set(data.patients)) == 6
    splits = held_out_splits(data, FineTuneSettings(num_folds=folds, val_fraction=0.34))
    for split in splits:
        assert not set(data.patients[split.train]) & set(data.patients[split.test])
        assert len(split.train) + len(split.test) == 12
    if folds:
        assert sorted(np.concatenate([split.test for split in splits]).tolist()) == list(range(12))


def test_the_tables_own_patients_decide_where_they_are_named(run, prepared_scans, scan_labels, tmp_path):
    table = tmp_path / "table.csv"
    text = scan_labels.read_text()
    for number, family in enumerate("AAABBB"):
        text = text.replace(f",P{number},", f",{family},")
    table.write_text(text)
    data = labelled(run, prepared_scans, table, patient_column="patient")
    assert set(data.patients) == {"A", "B"}
    (split,) = held_out_splits(data, FineTuneSettings())
    assert {len(split.train), len(split.test)} == {6}


def test_held_out_patients_of_one_class_cannot_be_scored(run, prepared_scans, scan_labels):
    data = labelled(run, prepared_scans, scan_labels, "clinic")
    with pytest.raises(ValueError, match=r"all held-out patients are of one class; use --folds, which spreads"):
        held_out_splits(data, FineTuneSettings(val_fraction=0.1))
    assert len(held_out_splits(data, FineTuneSettings(num_folds=3))) == 3


def test_volumes_without_a_label_are_left_out(run, prepared_scans, scan_labels, tmp_path):
    text = scan_labels.read_text().splitlines()
    first = text[1].split(",")
    path = tmp_path / "gaps.csv"
    path.write_text("\n".join([text[0], ",".join([*first[:2], "", *first[3:]]), *text[2:-1]]) + "\n")
    data = labelled(run, prepared_scans, path)
    assert len(data) == 10
    assert first[0] not in {data.row(number).id for number in range(10)}


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        ("age", [], "there is no label age; there are: "),
        ("bright", ["--folds", "1"], "--folds must be 0"),
        ("bright", ["--layer-decay", "1.5"], "--layer-decay must be between 0 and 1; found 1.5"),
        ("bright", ["--epochs", "0"], "--epochs must be at least 1"),
        ("bright", ["--folds", "7"], "cannot fill 7 folds"),
        ("bright", ["--kind", "regression"], "is no number"),
        ("patient", [], "has no patient to learn from; use --folds"),
    ],
)
def test_a_wrong_call_is_one_line_and_writes_nothing(call, tmp_path, capsys, label, options, message):
    assert call(label, *options)[0] == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_take_the_result_ends_it_before_training(call, tmp_path, capsys, caplog):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text('{"model_type": "octfm_vjepa3d", "octfm": {}}')
    (tmp_path / "file").touch()
    for out, message in (("export", "export holds config.json, which this"), ("file", "file cannot be written")):
        assert call("brightness", "--kind", "regression", out=out)[0] == 2
        assert message in capsys.readouterr().err
    assert "fine-tuning:" not in caplog.text


def test_lower_layers_move_less(run, prepared_scans, scan_labels):
    saved, data = load_encoder(str(run)), labelled(run, prepared_scans, scan_labels)
    moved = {}
    for decay in (1.0, 0.1):
        settings = FineTuneSettings(epochs=2, layer_decay=decay, batch_size=4)
        model = fine_tune(saved, data, np.arange(12), settings, NativeRuntime("cpu")).model
        before, after = saved.encoder.blocks[0].mlp.fc1.weight, model.encoder.blocks[0].mlp.fc1.weight
        moved[decay] = (after - before).abs().mean().item()
    assert moved[0.1] < 0.01 * moved[1.0]


def test_a_folder_of_something_else_is_no_fine_tuned_model(tmp_path):
    with pytest.raises(ValueError, match="is no folder of octfm finetune"):
        load_model(tmp_path)


def test_a_broken_volume_is_named_and_left_out(run, prepared_scans, scan_labels, tmp_path, capsys):
    folder = shutil.copytree(prepared_scans, tmp_path / "prepared")
    prepared = PreparedSet.load(folder)
    row = prepared.accepted()[2]
    path = folder / prepared.info["volumes"] / f"{row.id}.npy"
    path.write_bytes(path.read_bytes()[:60])
    arguments = [
        str(run),
        "--data",
        str(folder),
        "--labels",
        str(scan_labels),
        "--label",
        "brightness",
        "--epochs",
        "1",
    ]
    assert finetune([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert f"left out: prepared volume {row.id} cannot be read" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["volumes"] == 11


def test_phantoms_bring_their_own_labels(run, tmp_path):
    arguments = [str(run), "--data", "phantoms", "--num-volumes", "10", "--label", "laterality", "--epochs", "2"]
    assert finetune([*arguments, "--folds", "2", "--out", str(tmp_path / "out")]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["volumes"], metrics["held_out_patients"]) == (10, 10)


def test_real_scans_can_be_fine_tuned_on(test_data, tmp_path, save_run):
    """Two epochs on the volumes of the real folder, whatever their patients are; it runs and saves."""
    save_run(tmp_path / "real", image_size=(16, 64, 64))
    work = tmp_path / "work"
    volumes = open_volumes(str(test_data / "oct"), (16, 64, 64), work=work)
    labels = tmp_path / "labels.csv"
    rows = [f"{row.id},{number}.5,person{number}\n" for number, row in enumerate(volumes.rows)]
    labels.write_text("id,number,person\n" + "".join(rows))
    arguments = [str(tmp_path / "real"), "--data", str(work), "--labels", str(labels), "--patient-column", "person"]
    arguments += ["--label", "number", "--kind", "regression", "--epochs", "2", "--out", str(tmp_path / "out")]
    assert finetune(arguments) == 0
    assert load_model(tmp_path / "out").outputs.kind == "values"
