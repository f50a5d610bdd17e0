"""The cache as a whole: what it holds, that it can be killed at any moment, and what it never holds."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_setup.errors import StopPreparing
from data_setup.index import PreparedSet, TooManyBadFiles
from data_setup.phantom import PhantomSettings
from data_setup.prepare import PrepareSettings, prepare
from data_setup.resample import resize
from data_setup.sources import DirectorySource, PhantomSource

PROJECT = Path(__file__).resolve().parents[2]
SETTINGS = PrepareSettings(image_size=(8, 32, 48), val_fraction=0.3)
FAKE_PHI = re.compile(b"ZZTEST|DoNotLog|PHI-123|19000101|PHI-COMMENT|PRIVATE-PHI|surname|TEST-[0-9]")

Write = Callable[..., Path]


@pytest.fixture
def scans(tmp_path: Path, write_opt: Write) -> Path:
    """Ten scans of five patients, named after them, and three files that are no scans."""
    root = tmp_path / "scans"
    rng = np.random.default_rng(3)
    for number in range(10):
        pixels = rng.integers(0, 256, (4 + number, 16, 24), dtype=np.uint8)
        patient = f"TEST-{number // 2}"
        write_opt(pixels=pixels, patient=patient, path=root / f"surname{number // 2}" / f"{number}.dcm")
    write_opt(BurnedInAnnotation="YES", path=root / "burned.dcm")
    (root / "report.json").write_text("{}")
    (root / "empty.dcm").touch()
    return root


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a cache folder that readers see, by name."""
    books = ("journal.jsonl", ".lock")
    names = [path for path in folder.rglob("*") if path.is_file() and path.name not in books]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}


def with_key_of(cache: Path, other: Path) -> Path:
    """A new cache folder `other` that names files as `cache` does."""
    other.mkdir()
    shutil.copy(cache / ".source_key", other)
    return other


def test_every_file_has_a_row_and_every_accepted_one_a_volume(scans: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    prepared = prepare(
        DirectorySource(scans), tmp_path / "cache", SETTINGS, 2, lambda done, total, bad: seen.append((done, total))
    )
    assert seen == [(done, 13) for done in range(1, 14)]
    assert [row.id for row in prepared.rows] == sorted(row.id for row in prepared.rows)
    assert len(prepared.rows) == 13
    assert prepared.bad_by_reason() == {"burned_in_annotation": 1, "empty_file": 1, "not_dicom": 1}
    assert prepared.bad_fraction == pytest.approx(2 / 12)  # a .txt beside the scans is no damaged scan
    assert (len(prepared.accepted("train")), len(prepared.accepted("val"))) == (6, 4)
    for row in prepared.accepted():
        volume = prepared.volume(row)
        assert isinstance(volume, np.memmap)
        assert (volume.shape, volume.dtype) == ((8, 32, 48), np.uint8)
        assert row.source_shape is not None
        assert row.spacing_mm == pytest.approx((0.03 * row.source_shape[0] / 8, 0.002, 0.005))
        assert (row.vendor, row.laterality, row.volumetric, row.bits) == ("Heidelberg Engineering", "R", True, 8)
    assert prepared.info["accepted"] == 10
    assert prepared.info["split"] == {"train": 6, "val": 4, "test": 0}
    assert prepared.info["split_note"] is None


def test_volumes_are_the_resized_pixels(tmp_path: Path, write_opt: Write, voxels: np.ndarray) -> None:
    root = tmp_path / "scans"
    write_opt(path=root / "one.dcm")
    prepared = prepare(DirectorySource(root), tmp_path / "cache", SETTINGS, 1)
    (row,) = prepared.accepted()
    np.testing.assert_array_equal(prepared.volume(row), resize(voxels, (8, 32, 48)))
    assert "ONE VOLUME" in prepared.info["split_note"]


def test_both_scans_of_a_patient_stand_on_one_side(scans: Path, tmp_path: Path) -> None:
    prepared = prepare(DirectorySource(scans), tmp_path / "cache", SETTINGS, 1)
    folder = prepared.folder
    records = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    sides: dict[str, set] = {}
    split_of = {row.id: row.split for row in prepared.accepted()}
    for record in (row for entry in records for row in entry["rows"]):
        if record["status"] == "accepted":
            sides.setdefault(record["patient"], set()).add(split_of[record["id"]])
    assert len(sides) == 5
    assert all(len(side) == 1 for side in sides.values())


def test_a_second_call_touches_nothing(scans: Path, tmp_path: Path) -> None:
    first = prepare(DirectorySource(scans), tmp_path / "cache", SETTINGS, 1)
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    calls: list[int] = []
    second = prepare(
        DirectorySource(scans), tmp_path / "cache", SETTINGS, 1, lambda done, total, bad: calls.append(done)
    )
    assert second == first
    assert calls == []
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before


def test_new_changed_and_vanished_inputs_are_noticed(scans: Path, tmp_path: Path, write_opt: Write) -> None:
    source, cache = DirectorySource(scans), tmp_path / "cache"
    prepare(source, cache, SETTINGS, 1)
    write_opt(path=scans / "empty.dcm", patient="TEST-7")
    write_opt(path=scans / "new.dcm", patient="TEST-8")
    (scans / "report.json").unlink()
    calls: list[int] = []
    prepared = prepare(source, cache, SETTINGS, 1, lambda done, total, bad: calls.append(done))
    assert len(calls) == 2
    assert prepared.bad_by_reason() == {"burned_in_annotation": 1}
    assert len(prepared.accepted()) == 12


def test_a_volume_that_was_deleted_or_cut_is_named_and_made_again(scans: Path, tmp_path: Path) -> None:
    prepared = prepare(DirectorySource(scans), tmp_path / "cache", SETTINGS, 1)
    before = contents(prepared.folder)
    gone, cut, *_ = prepared.accepted()
    (prepared.folder / "volumes" / f"{gone.id}.npy").unlink()
    with open(prepared.folder / "volumes" / f"{cut.id}.npy", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match=f"prepared volume {cut.id} is damaged .*; prepare the data again"):
        prepared.volume(cut)
    prepare(DirectorySource(scans), tmp_path / "cache", SETTINGS, 1)
    assert contents(prepared.folder) == before


def test_a_changed_setting_goes_to_another_folder(scans: Path, tmp_path: Path) -> None:
    one = prepare(DirectorySource(scans), tmp_path / "cache", SETTINGS, 1)
    admitting = PrepareSettings(image_size=(8, 32, 48), val_fraction=0.3, allow_burned_in=True)
    two = prepare(DirectorySource(scans), tmp_path / "cache", admitting, 1)
    assert one.folder != two.folder
    assert (len(one.accepted()), len(two.accepted())) == (10, 11)


def test_any_number_of_workers_gives_the_same_bytes(scans: Path, tmp_path: Path) -> None:
    one = prepare(DirectorySource(scans), tmp_path / "one", SETTINGS, 1)
    three = prepare(DirectorySource(scans), with_key_of(tmp_path / "one", tmp_path / "three"), SETTINGS, 3)
    assert contents(one.folder) == contents(three.folder)


def test_killed_at_any_moment_it_continues_to_the_same_bytes(scans: Path, tmp_path: Path) -> None:
    clean = prepare(DirectorySource(scans), tmp_path / "clean", SETTINGS, 1)
    cache = with_key_of(tmp_path / "clean", tmp_path / "killed")
    script = (
        "import sys; from pathlib import Path\n"
        "from data_setup.prepare import PrepareSettings, prepare; from data_setup.sources import DirectorySource\n"
        "settings = PrepareSettings(image_size=(8, 32, 48), val_fraction=0.3)\n"
        "source = DirectorySource(Path(sys.argv[1]))\n"
        "prepare(source, sys.argv[2], settings, 2, lambda *done: print(*done, flush=True))\n"
    )
    rng = np.random.default_rng(4)
    for kill in range(5):
        command = [sys.executable, "-c", script, str(scans), str(cache)]
        child = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE)
        assert child.stdout is not None
        if kill:  # the first dies at its start, the others after their first file and a moment more
            child.stdout.readline()
            time.sleep(rng.uniform(0, 0.004))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    journal = cache / clean.folder.name / "journal.jsonl"
    assert journal.exists()
    with open(journal, "a") as file:
        file.write('{"id": "torn by a pow')
    again = prepare(DirectorySource(scans), cache, SETTINGS, 2)
    assert contents(again.folder) == contents(clean.folder)


def test_nothing_in_the_cache_names_a_person(test_data: Path, scans: Path, tmp_path: Path) -> None:
    phi = test_data / "edge" / "synthetic" / "fake_phi_burnedin_yes.dcm"
    shutil.copy(phi, scans / "surname.dcm")
    admitting = PrepareSettings(image_size=(3, 248, 384), allow_burned_in=True)
    for settings in (SETTINGS, admitting):
        prepared = prepare(DirectorySource(scans), tmp_path / "cache", settings, 1)
        table = "\n".join(prepared.bad_file_table())
        for name, data in [*contents(tmp_path / "cache").items(), ("table", table.encode())]:
            assert not FAKE_PHI.search(data), name
            assert not FAKE_PHI.search(name.encode())
        assert not FAKE_PHI.search((prepared.folder / "journal.jsonl").read_bytes())
    assert (tmp_path / "cache" / ".source_key").stat().st_mode & 0o077 == 0


def test_the_real_folder_is_used_and_its_other_formats_are_named(test_data: Path, tmp_path: Path) -> None:
    settings = PrepareSettings(image_size=(8, 64, 64), include_nonvolumetric=True)
    prepared = prepare(DirectorySource(test_data / "oct"), tmp_path / "cache", settings, 2)
    assert len(prepared.accepted()) == len(list((test_data / "oct").rglob("*.dcm"))) == 7
    assert prepared.bad_by_reason() == {"not_dicom": 17}
    messages = [row.message or "" for row in prepared.rows if row.status == "rejected"]
    assert all("another OCT format" in message for message in messages)
    assert any("Heidelberg .vol" in message for message in messages)
    prepared.check_bad_fraction(0.0)  # none of these promises by its name to be DICOM


def test_too_many_damaged_files_are_refused_with_the_table_of_reasons(test_data: Path, tmp_path: Path) -> None:
    for name in ("ok_reference_3x248x384.dcm", "git_lfs_pointer.dcm", "truncated_native_60pct.dcm"):
        (tmp_path / "scans").mkdir(exist_ok=True)
        shutil.copy(test_data / "edge" / "synthetic" / name, tmp_path / "scans")
    (tmp_path / "scans" / "notes.json").write_text("{}")
    prepared = prepare(DirectorySource(tmp_path / "scans"), tmp_path / "cache", SETTINGS, 1)
    with pytest.raises(TooManyBadFiles, match=r"2 of 3 files \(66\.7%\)") as caught:
        prepared.check_bad_fraction(0.5)
    assert "pixel_data_truncated" in str(caught.value)
    assert "Git LFS" in str(caught.value)
    assert "git_lfs_pointer" not in str(caught.value)
    prepared.check_bad_fraction(0.7)


def test_dangerous_files_are_judged_without_harm(test_data: Path, tmp_path: Path) -> None:
    prepared = prepare(DirectorySource(test_data / "edge" / "synthetic"), tmp_path / "cache", SETTINGS, 2)
    expected = json.loads((test_data / "edge" / "expected.json").read_text())
    outcomes = [judged["outcome"] for name, judged in expected.items() if name.startswith("synthetic/")]
    assert len(prepared.accepted()) == outcomes.count("accept")
    assert prepared.bad_by_reason()["too_large"] == 2


def test_phantoms_have_the_same_index_on_every_machine(tmp_path: Path) -> None:
    phantoms = PhantomSettings(num_volumes=4)
    one, other = (
        prepare(PhantomSource(tmp_path / place / "phantoms", phantoms), tmp_path / place / "cache", SETTINGS, 2)
        for place in ("here", "there")
    )
    assert len(one.accepted()) == 4
    assert contents(one.folder) == contents(other.folder)
    assert not (tmp_path / "here" / "cache" / ".source_key").exists()  # nobody to protect


def test_an_unfinished_cache_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no prepared set.*octfm prepare SCANS --out"):
        PreparedSet.load(tmp_path)
    for name in ("index.jsonl", "dataset.json"):
        (tmp_path / name).write_text("{")
    with pytest.raises(ValueError, match=r"dataset\.json is damaged .*; prepare the data again"):
        PreparedSet.load(tmp_path)


def test_a_cache_inside_its_source_is_refused(scans: Path) -> None:
    with pytest.raises(ValueError, match="inside its own source"):
        prepare(DirectorySource(scans), scans / "cache", SETTINGS, 1)


def test_a_cache_that_cannot_be_written_stops_the_run_and_blames_no_file(scans: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / SETTINGS.digest[:12] / "volumes"
    folder.mkdir(parents=True)
    ids = [row.id for row in prepare(DirectorySource(scans), tmp_path / "cache", SETTINGS, 1).accepted()]
    shutil.rmtree(folder.parent)
    (folder / f"{ids[0]}.npy" / "in the way").mkdir(parents=True)
    with pytest.raises(StopPreparing, match="cannot be written"):
        prepare(DirectorySource(scans), tmp_path / "cache", SETTINGS, 1)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"image_size": (8, 32)}, "image_size"),
        ({"image_size": (8, 0, 32)}, "image_size"),
        ({"max_bytes": 0}, "data.max_file_bytes"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"val_fraction": 1}, "val_fraction"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        PrepareSettings(**{"image_size": (8, 32, 48), **wrong})


def test_children_stay_light() -> None:
    script = "import sys, data_setup.prepare; print(sorted({'torch', 'monai', 'torch_xla'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_was_missing_is_looked_for_again_and_a_damaged_file_is_not_read_again(
    tmp_path: Path, write_opt: Write
) -> None:
    for name in ("a", "b"):
        write_opt(path=tmp_path / "scans" / f"{name}.dcm", patient=f"TEST-{name}")
    (tmp_path / "scans" / "damaged.dcm").write_bytes(b"no scan")
    (tmp_path / "scans" / "link.dcm").symlink_to(tmp_path / "not mounted.dcm")
    source, calls = DirectorySource(tmp_path / "scans"), []
    first = prepare(source, tmp_path / "cache", SETTINGS, 1)
    assert first.bad_by_reason() == {"missing_file": 1, "not_dicom": 1}
    again = prepare(source, tmp_path / "cache", SETTINGS, 1, lambda done, total, bad: calls.append((done, total, bad)))
    assert again.rows == first.rows
    assert calls == [(4, 4, 2)]
