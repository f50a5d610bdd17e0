"""`octfm prepare` and `octfm data` as they are typed: exit codes, what is printed, and what is not."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_setup.index import PreparedSet
from tests.data_setup.conftest import opt_dataset

PROJECT = Path(__file__).resolve().parents[2]
SIZE = "model.image_size=[8,32,32]"
FOUR_GIB = f"-v {4 << 20}"  # KiB of addresses
FAKE_PHI = re.compile(r"ZZTEST|DoNotLog|PHI-123|19000101|PHI-COMMENT|PRIVATE-PHI|surname")


def octfm(*arguments: str, ulimit: str = "") -> subprocess.CompletedProcess[str]:
    """ulimit: options of the shell's command, since Python's own way would fork beside the threads of jax and torch."""
    command = [sys.executable, "-m", "pretraining.cli", *arguments]
    if ulimit:
        command = ["bash", "-c", f'ulimit {ulimit} && exec "$@"', "octfm", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Four scans of surnames, and one text file."""
    root = tmp_path / "scans"
    root.mkdir()
    for number in range(4):
        voxels = np.random.default_rng(number).integers(0, 256, (4, 16, 24), dtype=np.uint8)
        opt_dataset(voxels, f"PHI-123-{number}").save_as(root / f"surname{number}.dcm", enforce_file_format=True)
    (root / "notes.txt").write_text("surname")
    return root


@pytest.mark.parametrize("any_sop_class", [False, True])
def test_the_judged_files_end_as_expected_under_four_gib(test_data: Path, tmp_path: Path, any_sop_class: bool) -> None:
    mode = "_any_sop" if any_sop_class else ""
    edge, out = test_data / "edge", tmp_path / "out"
    flag = f"data.any_sop_class={str(any_sop_class).lower()}"
    done = octfm("prepare", str(edge), "--out", str(out), SIZE, flag, ulimit=FOUR_GIB)
    assert done.returncode == 0, done.stderr
    prepared = PreparedSet.load(out)
    rows = {row.id: row for row in prepared.rows}
    located = octfm("data", "locate", str(edge), "--set", str(out), *rows)
    places = dict(line.split("  ") for line in located.stdout.splitlines())
    expected = json.loads((edge / "expected.json").read_text())
    for volume_id, place in places.items():
        name = Path(place).relative_to(edge).as_posix()
        if name == "expected.json":
            continue
        judged, row = expected[name], rows[volume_id]
        allowed = {judged["reason" + mode], *judged.get("also_allowed" + mode, ())}
        assert row.reason in allowed, name
        assert (row.status == "accepted") == (row.reason is None)
    assert len(places) == len(expected) + 1 == 42
    assert not FAKE_PHI.search(done.stdout + done.stderr)


def test_a_second_call_finds_everything_done(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = octfm("prepare", str(scans), "--out", str(out), SIZE)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    second = octfm("prepare", str(scans), "--out", str(out), SIZE)
    assert (first.returncode, second.returncode) == (0, 0)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert "4 volumes of 5 files" in first.stdout
    assert "not_dicom" in first.stdout
    for text in (first.stdout, first.stderr, *map(str, (out / "index.jsonl", out / "dataset.json"))):
        assert not FAKE_PHI.search(text)


def test_another_size_is_another_version_beside_the_first(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    octfm("prepare", str(scans), "--out", str(out), SIZE)
    old = PreparedSet.load(out)
    octfm("prepare", str(scans), "--out", str(out), "model.image_size=[4,16,16]")
    new = PreparedSet.load(out)
    assert old.info["version"] != new.info["version"]
    assert new.volume(new.accepted()[0]).shape == (4, 16, 16)
    assert PreparedSet.load(out / old.info["version"]).rows == old.rows
    assert old.volume(old.accepted()[0]).shape == (8, 32, 32)


def test_a_runs_configuration_gives_size_seed_and_data(scans: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "seed: 7\nmodel: {preset: vit_tiny, image_size: [8, 32, 32], patch_size: [4, 16, 16]}\n"
        "data: {val_fraction: 0.5, loader: {num_workers: 3}}\ntrain: {max_steps: 3}\n"
    )
    done = octfm("prepare", str(scans), "--out", str(tmp_path / "out"), "--config", str(config))
    assert done.returncode == 0, done.stderr
    settings = PreparedSet.load(tmp_path / "out").info["settings"]
    assert settings["image_size"] == [8, 32, 32]
    assert (settings["split_seed"], settings["val_fraction"]) == (7, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/folder", SIZE], "is no folder"),
        (["SCANS", "data.any_sop_clas=true"], "did you mean data.any_sop_class"),
        (["SCANS", "data.select.participants=1-2"], "needs data.source=manifest or list"),
        (["SCANS", "data.formats=[dicom,vol]"], "heyex_vol"),
        (["SCANS", "model.image_size=[8,32]"], "image_size"),
        (["SCANS", "--workers", "0"], "prepare_workers must be at least 1"),
        (["list.csv", SIZE], "list.csv cannot be read"),
        (["gs://None/scans", SIZE], "names no bucket"),
    ],
)
def test_a_wrong_call_is_one_line_before_any_work(
    scans: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    arguments = [str(scans) if word == "SCANS" else word for word in arguments]
    done = octfm("prepare", *arguments, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="NO /dev/full: a full disk was NOT tested")
def test_a_full_disk_stops_and_the_same_call_goes_on(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stopped = octfm("prepare", str(scans), "--out", str(out), SIZE, ulimit="-f 4")  # KiB; a volume has 8320 bytes
    assert stopped.returncode == 74, stopped.stderr
    assert "cannot be written: " in stopped.stderr
    assert "is the disk full?" in stopped.stderr
    assert "the same command goes on" in stopped.stderr
    again = octfm("prepare", str(scans), "--out", str(out), SIZE)
    assert again.returncode == 0
    assert len(PreparedSet.load(out).accepted()) == 4


def test_an_id_leads_back_to_its_file_for_who_has_the_key(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    octfm("prepare", str(scans), "--out", str(out), SIZE)
    (bad,) = [row for row in PreparedSet.load(out).rows if row.status == "rejected"]
    found = octfm("data", "locate", str(scans), "--set", str(out), bad.id, "0000000000000000")
    assert found.returncode == 1
    assert found.stdout.splitlines() == [f"{bad.id}  {scans / 'notes.txt'}", "0000000000000000  not in this source"]
    shutil.copytree(out, tmp_path / "given away", ignore=shutil.ignore_patterns(".source_key"))
    nobody = octfm("data", "locate", str(scans), "--set", str(tmp_path / "given away"), bad.id)
    assert nobody.returncode == 2
    assert "is absent" in nobody.stderr


def test_the_report_and_the_summary_are_one_command_each(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    octfm("prepare", str(scans), "--out", str(out), SIZE)
    report = octfm("data", "report", str(out))
    assert report.returncode == 0, report.stderr
    page = (out / "report.html").read_text()
    assert "Heidelberg Engineering" in page
    assert not FAKE_PHI.search(page)
    assert "4 volumes of 5 files" in octfm("data", "summary", str(out)).stdout
    assert octfm("data", "report", str(scans)).returncode == 2
    full = octfm("data", "report", str(out), ulimit="-f 1")
    assert (full.returncode, full.stderr.count("\n")) == (74, 2)
    assert "File too large" in full.stderr
    assert (out / "report.html").read_text() == page


def test_help_names_every_command() -> None:
    text = octfm("--help").stdout
    assert all(command in text for command in ("train", "prepare", "data", "shapes"))
    assert "--out" in octfm("prepare", "--help").stdout
