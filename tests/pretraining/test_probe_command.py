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

from data_setup.index import PreparedSet
from oct_foundation.diagnostics.out_of_fold import Contestant
from oct_foundation.diagnostics.probes import ProbeSettings, probe
from pretraining.embedding import embed, open_volumes
from pretraining.encoder_file import load_encoder
from pretraining.probe import _within_memory
from pretraining.probe import main as probe_command
from pretraining.probe_output import data_slug, print_table, write_json
from pretraining.report.command import main as report
from pretraining.report.probe_files import read_probes
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


def kept(run, step):
    """The rows of the step in the run, by the data that they are about."""
    return {file.data: file.rows for file in read_probes(run / "probes", []) if file.step == step}


def test_scores_are_those_of_the_saved_encoder_and_lie_in_the_run(run, prepared_scans, scan_labels, capsys):
    call = ["--labels", scan_labels, "--patient-column", "patient", "--label", "brightness", "--probes", "ridge"]
    assert command(run, "--data", prepared_scans, *call, *FEW) == 0
    printed = capsys.readouterr().out
    assert "brightness" in printed
    assert "(12 of 6)" in printed
    rows = kept(run, 5)[str(prepared_scans)]
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
    assert rows == kept(run, 3)[str(prepared_scans)]
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


def test_patches_are_read_beside_volumes(save_run, tmp_path):
    run = tmp_path / "run"
    save_run(run, patch_size=(2, 8, 8))
    out = tmp_path / "probes.json"
    call = ["--num-volumes", 40, "--dense", "--label", "vendor", "patch/layer", "patch/fluid", "--probes", "logistic"]
    assert command(run, "--data", "phantoms", *call, "--json", out, *FEW) == 0
    rows = read(out)
    assert {row["label"] for row in rows} == {"vendor", "patch/layer", "patch/fluid"}
    patches = [row for row in rows if row["label"] == "patch/layer" and row["metric"] == "auroc"]
    assert {row["contestant"] for row in patches} == {"encoder", "random_init", "pca", "intensity", "mean_predictor"}
    assert {(row["num_volumes"], row["num_patients"]) for row in patches} == {(40, 40)}
    score = {row["contestant"]: row["score"] for row in patches}
    assert score["intensity"] > 0.7  # the vitreous is dark
    assert score["mean_predictor"] == 0.5
    assert rows == read(run / "probes" / "5-phantoms-dense.json")


def test_patches_alone_need_no_volumes_labels(run, tmp_path):
    out = tmp_path / "probes.json"
    call = ["--num-volumes", 40, "--dense", "--label", "patch/layer", "--json", out]
    assert command(run, "--data", "phantoms", *call, *FEW) == 0
    assert {row["label"] for row in read(out)} == {"patch/layer"}


def test_two_data_sets_at_one_step_have_files_of_their_own(save_run, prepared_scans, scan_labels, tmp_path):
    run = tmp_path / "run"
    save_run(run)
    call = ["--probes", "ridge", *FEW]
    assert command(run, "--data", "phantoms", "--num-volumes", 20, "--label", "thickness_um", *call) == 0
    assert command(run, "--data", prepared_scans, "--labels", scan_labels, "--label", "brightness", *call) == 0
    found = kept(run, 5)
    assert {name: rows[0]["label"] for name, rows in found.items()} == {
        "phantoms": "thickness_um",
        str(prepared_scans): "brightness",
    }


def test_a_slug_tells_data_splits_and_tables_apart():
    slugs = [
        data_slug("phantoms"),
        data_slug("phantoms", dense=True),
        data_slug("/a/Prepared Set/"),
        data_slug("/b/Prepared Set"),
        data_slug("/a/Prepared Set", split="val and test"),
        data_slug("/a/Prepared Set", labels="/a/labels.csv"),
        data_slug("gs://bucket/a"),
    ]
    assert len(set(slugs)) == len(slugs)
    assert slugs[:2] == ["phantoms", "phantoms-dense"]
    assert slugs[2].startswith("prepared-set-")
    assert slugs[4].startswith("prepared-set-val-test-")
    assert data_slug("/a/Prepared Set") == slugs[2]


def test_tokens_that_would_fill_the_memory_are_refused_or_left_out(run):
    saved, settings = load_encoder(str(run)), ProbeSettings(probes=("ridge", "attentive"))
    assert _within_memory(settings, 12, saved, explicit=True) == (settings, [])
    fewer, [note] = _within_memory(settings, 10**9, saved, explicit=False)
    assert fewer.probes == ("ridge",)
    # 8 x 96 numbers of 4 bytes for each volume, 5 copies
    assert "the attentive probe would take 15360.0 GB" in note.replace(",", "")
    with pytest.raises(ValueError, match=r"--probes: .*; use --probes ridge, or fewer volumes"):
        _within_memory(settings, 10**9, saved, explicit=True)


@pytest.fixture
def own_run(run, prepared_scans, tmp_path):
    """A run with the set in it that it was trained on; its train split has 8 of 12 volumes."""
    folder = shutil.copytree(run, tmp_path / "own", ignore=shutil.ignore_patterns("probes"))
    shutil.copytree(prepared_scans, folder / "prepared")
    return folder


def test_of_its_own_training_set_an_encoder_is_scored_on_the_rest_unless_all_is_asked_for(
    own_run, prepared_scans, scan_labels, capsys, caplog, tmp_path
):
    out = tmp_path / "probes.json"
    call = ["--labels", scan_labels, "--label", "brightness", "--probes", "ridge", "--folds", 3, "--resamples", 100]
    call = ["--data", prepared_scans, *call, "--json", out]
    num_held_out = sum(row.split != "train" for row in PreparedSet.load(prepared_scans).accepted())
    assert 0 < num_held_out < 12
    assert command(own_run, *call) == 0
    assert "its val and test volumes only; --split all takes all" in caplog.text
    assert f"pretrained on none of the {num_held_out} volumes" in capsys.readouterr().out
    row = read(out)[0]
    assert (row["num_volumes"], row["split"], row["seen_in_pretraining"]) == (num_held_out, "val and test", 0)
    assert command(own_run, *call, "--split", "all") == 0
    warning = f"pretrained on {12 - num_held_out} of the 12 volumes: scores may be too good"
    assert f"NOT UNSEEN. The encoder was {warning}" in capsys.readouterr().out
    row = read(out)[0]
    assert (row["num_volumes"], row["split"], row["seen_in_pretraining"]) == (12, "all", 12 - num_held_out)
    assert report([str(own_run)]) == 0
    page = (own_run / "report.html").read_text()
    assert warning in page
    assert "Not unseen." in page
    assert f"On {prepared_scans}, val and test" in page


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
        (["--dense"], "--dense needs --data phantoms"),
        (["--label", "clinic"], "3 patients of class 'east' cannot fill 5 folds"),
        (["--patient-column", "family"], "has no column family"),
        (["--id-column", "scan"], "has no column scan; give --id-column, one of: id, patient"),
    ],
)
def test_a_wrong_call_is_named(run, prepared_scans, scan_labels, capsys, arguments, message):
    assert command(run, "--data", prepared_scans, "--labels", scan_labels, *arguments) == 2
    assert message in capsys.readouterr().err


def test_what_is_bound_to_fail_fails_before_the_volumes_are_looked_at(
    run, prepared_scans, scan_labels, tmp_path, capsys, caplog
):
    (tmp_path / "file").touch()
    table = ["--data", prepared_scans, "--labels", scan_labels]
    assert command(run, *table, "--label", "brightness", "clinic") == 2
    assert "patients of class 'east' cannot fill 5 folds" in capsys.readouterr().err
    assert command(run, *table, "--json", tmp_path / "file" / "scores.json") == 2
    assert "file cannot be written" in capsys.readouterr().err
    assert "through the encoder" not in caplog.text


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
    assert "cannot tell" not in printed
    assert printed.count("1.00 *") == 1
    assert ("[1.00, 1.00]" in printed) == (width == 200)
    assert "\u2026" not in printed  # nothing was cut off
    assert max(map(len, printed.splitlines())) <= width
    unknown = replace(rows[0], low=float("nan"), high=float("nan"))
    console = Console(file=io.StringIO(), width=200, color_system=None)
    print_table([unknown, *rows[1:]], console)
    assert "cannot tell" in console.file.getvalue()
    assert "nan," not in console.file.getvalue()
