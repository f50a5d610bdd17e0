"""`octfm probe` on saved runs: from scans, tables and phantoms to a table and JSON that the report reads."""

import csv
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from rich.console import Console

from oct_foundation.diagnostics.out_of_fold import Contestant
from oct_foundation.diagnostics.probes import ProbeSettings, probe
from pretraining.embedding import embed, open_volumes
from pretraining.encoder_file import load_encoder
from pretraining.probe import main as probe_command
from pretraining.probe_output import print_table, write_json
from pretraining.report.probe_table import groups_of

FEW = ["--folds", "3", "--resamples", "100"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, save_run):
    folder = tmp_path_factory.mktemp("run")
    save_run(folder)
    return folder


def command(*arguments):
    return probe_command([str(argument) for argument in arguments])


def read(path):
    return json.loads(path.read_text())


def test_scores_are_those_of_the_saved_encoder_and_lie_in_the_run(run, prepared_scans, scan_labels, capsys):
    call = ["--labels", scan_labels, "--patient-column", "patient", "--label", "brightness", "--probes", "ridge"]
    assert command(run, "--data", prepared_scans, *call, *FEW) == 0
    printed = capsys.readouterr().out
    assert "brightness" in printed
    assert "(12 of 6)" in printed
    rows = read(run / "probes" / "5.json")
    found = embed(load_encoder(str(run)).encoder, open_volumes(str(prepared_scans), (8, 32, 32)))
    with open(scan_labels) as file:
        by_id = {row["id"]: row for row in csv.DictReader(file)}
    expected = probe(
        {"encoder": Contestant(pooled=found.pooled)},
        {"brightness": [float(by_id[volume]["brightness"]) for volume in found.ids]},
        [by_id[volume]["patient"] for volume in found.ids],
        ProbeSettings(probes=("ridge",), folds=3, resamples=100),
    )
    for metric in ("r2", "mae"):
        [ours] = [row for row in rows if (row["contestant"], row["metric"]) == ("encoder", metric)]
        [theirs] = [row for row in expected if (row.contestant, row.metric) == ("encoder", metric)]
        assert ours["score"] == pytest.approx(theirs.score, rel=1e-4)
        assert (ours["num_volumes"], ours["num_patients"], ours["step"]) == (12, 6, 5)
        assert set(ours["differences"]) == {"random_init", "pca", "patch_means", "intensity", "mean_predictor"}


def test_the_report_shows_every_row(run, prepared_scans, scan_labels, tmp_path):
    out = tmp_path / "new" / "probes.json"
    call = ["--labels", scan_labels, "--patient-column", "patient", "--json", out, "--step", "3"]
    assert command(run, "--data", prepared_scans, *call, *FEW) == 0
    rows = read(out)
    assert rows == read(run / "probes" / "3.json")
    assert {row["label"] for row in rows} == {"brightness", "bright", "clinic"}
    assert {row["probe"] for row in rows} == {"ridge", "logistic", "knn", "attentive", "mean"}
    groups, left_out = groups_of(rows)
    assert left_out == 0
    assert {(group.label, group.probe) for group in groups} >= {("brightness", "attentive"), ("bright", "logistic")}


def test_scans_are_prepared_on_the_way_and_named_by_their_files(run, scans, tmp_path):
    table = tmp_path / "labels.csv"
    files = sorted(scans.glob("*.dcm"))
    means = [pydicom.dcmread(file).pixel_array.mean() for file in files]
    lines = [
        f"{file.name},{mean},{'RL'[number % 2]}" for number, (file, mean) in enumerate(zip(files, means, strict=True))
    ]
    table.write_text("\n".join(["file,brightness,eye", *lines]) + "\n")
    out = tmp_path / "probes.json"
    call = ["--labels", table, "--work", tmp_path / "work", "--probes", "ridge,logistic", "--json", out]
    assert command(run, "--data", scans, *call, *FEW) == 0
    rows = read(out)
    assert {row["label"] for row in rows} == {"brightness", "eye"}
    assert {row["num_patients"] for row in rows} == {6}  # as the DICOM headers say
    [intensity] = [row for row in rows if (row["contestant"], row["metric"]) == ("intensity", "r2")]
    assert intensity["score"] > 0.95  # the scans differ in brightness, so the labels have found their scans


def test_without_a_table_the_headers_give_labels_and_what_is_alike_is_left_out(run, prepared_scans, caplog):
    assert command(run, "--data", prepared_scans, *FEW) == 2
    assert "left out: label vendor: only" in caplog.text


def test_phantoms_bring_their_own_labels(run, tmp_path):
    out = tmp_path / "probes.json"
    call = ["--num-volumes", 40, "--label", "drusen_count", "vendor", "--probes", "ridge,logistic", "--seeds", 2]
    assert command(run, "--data", "phantoms", *call, "--json", out, *FEW) == 0
    rows = read(out)
    metrics = {(row["label"], row["metric"]) for row in rows}
    assert metrics == {
        ("drusen_count", "r2"),
        ("drusen_count", "mae"),
        ("vendor", "auroc"),
        ("vendor", "balanced_accuracy"),
    }
    assert all(row["num_patients"] == 40 for row in rows)


def test_an_encoder_outside_of_a_run_writes_only_what_is_asked_for(run, prepared_scans, scan_labels, tmp_path):
    lone = shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    call = ["--labels", scan_labels, "--label", "brightness", "--probes", "ridge", "--pooling", "mean_std"]
    assert command(lone, "--data", prepared_scans, *call, *FEW) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints"]


def test_volumes_that_cannot_be_read_are_left_out_of_everything(run, prepared_scans, scan_labels, tmp_path, caplog):
    damaged = shutil.copytree(prepared_scans, tmp_path / "set")
    volume = sorted(damaged.glob("*/volumes/*.npy"))[0]
    volume.write_bytes(volume.read_bytes()[:100])
    out = tmp_path / "probes.json"
    call = ["--labels", scan_labels, "--label", "brightness", "--probes", "ridge,knn", "--json", out]
    assert command(run, "--data", damaged, *call, *FEW) == 0
    assert {row["num_volumes"] for row in read(out)} == {11}
    assert volume.stem in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "age"], "there is no label age; there are: "),
        (["--classes", "age"], "--classes or --values: there is no label age"),
        (["--classes", "clinic", "--values", "clinic"], "clinic: named in --classes and in --values"),
        (["--probes", "svm"], "probes must be some of ridge, logistic, knn, attentive; found svm"),
        (["--label", "clinic"], "3 patients of class 'east' cannot fill 5 folds"),
        (["--patient-column", "family"], "has no column family"),
        (["--id-column", "scan"], "has no column scan; give --id-column, one of: id, patient"),
    ],
)
def test_a_wrong_call_is_named(run, prepared_scans, scan_labels, capsys, arguments, message):
    assert command(run, "--data", prepared_scans, "--labels", scan_labels, *arguments) == 2
    assert message in capsys.readouterr().err


def test_columns_need_their_table(run, prepared_scans, capsys):
    assert command(run, "--data", prepared_scans, "--patient-column", "patient") == 2
    assert "give it with --labels" in capsys.readouterr().err


def test_a_bound_that_is_not_known_is_null(tmp_path):
    [row, *_] = probe(
        {"encoder": Contestant(pooled=np.random.default_rng(0).normal(size=(20, 2)))},
        {"x": np.arange(20)},
        np.arange(20),
        ProbeSettings(probes=("ridge",), resamples=100),
    )
    write_json(tmp_path / "rows.json", [replace(row, low=float("nan"))], step=3)
    [found] = read(tmp_path / "rows.json")
    assert found["low"] is None
    assert found["high"] == row.high
    assert found["step"] == 3


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits_a_narrow_terminal_and_marks_what_clears_the_controls(width):
    rng = np.random.default_rng(0)
    pooled, noise = rng.normal(size=(40, 3)), rng.normal(size=(40, 3))
    contestants = {name: Contestant(pooled=noise) for name in ("random_init", "pca", "patch_means", "intensity")}
    rows = probe(
        {"encoder": Contestant(pooled=pooled), **contestants},
        {"drusen_load_mm3": pooled[:, 0], "nothing": rng.normal(size=40)},
        np.arange(40),
        ProbeSettings(probes=("ridge",), folds=2, resamples=100),
    )
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_table(rows, console)
    printed = console.file.getvalue()
    assert printed.count("1.00 *") == 1
    assert ("[1.00, 1.00]" in printed) == (width == 200)
    assert "\u2026" not in printed  # nothing was cut off
    assert max(map(len, printed.splitlines())) <= width
