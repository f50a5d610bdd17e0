"""Rows of a table find their volumes by id, path, file name and patient; what fits nothing is named."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from data_setup.index import PreparedSet
from data_setup.phantom import PhantomSettings
from data_setup.prepare import PrepareSettings, prepare, read_key
from data_setup.prepare_file import keyed_id
from data_setup.sources import PhantomSource
from pretraining.label_table import patients_in_files, read_labels

NAMES = [f"scan{number:02d}.dcm" for number in range(12)]


@pytest.fixture(scope="module")
def prepared(prepared_scans):
    return PreparedSet.load(prepared_scans)


@pytest.fixture(scope="module")
def number_of(prepared_scans):
    """Which scan an id stands for."""
    key = read_key(prepared_scans)
    return {keyed_id(key, name): number for number, name in enumerate(NAMES)}


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def ids_of(prepared):
    return [row.id for row in prepared.accepted()]


@pytest.mark.parametrize(
    "spelling",
    ["{name}", "/{name}", "a/folder/that/is/gone/{name}", "{stem}", "{id}"],
)
def test_a_file_is_found_however_the_table_names_it(prepared, number_of, tmp_path, spelling):
    names = {number: volume for volume, number in number_of.items()}
    rows = [
        {"file": spelling.format(name=name, stem=Path(name).stem, id=names[number]), "Age": number}
        for number, name in enumerate(NAMES)
    ]
    table = read_labels(write(tmp_path / "labels.csv", rows), prepared, ids_of(prepared), NAMES)
    assert table.id_column == "file"
    assert table.columns["age"] == [str(number_of[volume]) for volume in ids_of(prepared)]
    assert not table.notes


def test_scans_beside_the_table_name_themselves(prepared, number_of, scans, tmp_path):
    folder = shutil.copytree(scans, tmp_path / "scans")
    rows = [{"path": Path(name).stem, "age": number} for number, name in enumerate(NAMES)]
    table = read_labels(write(folder / "labels.csv", rows), prepared, ids_of(prepared), [])
    assert table.columns["age"] == [str(number_of[volume]) for volume in ids_of(prepared)]


def test_a_row_of_a_patient_is_about_all_of_their_volumes(prepared, number_of, tmp_path):
    rows = [{"person": f"P{number}", "age": number} for number in range(6)]
    table = read_labels(write(tmp_path / "labels.csv", rows), prepared, ids_of(prepared), [], "Person")
    assert table.columns["age"] == [str(number_of[volume] // 2) for volume in ids_of(prepared)]


def test_phantoms_are_found_by_the_labels_that_lie_beside_them(tmp_path):
    settings = PhantomSettings(num_volumes=3, scale=0.15)
    source = PhantomSource(tmp_path / "set" / "phantom-dicom", settings)
    prepared = prepare(source, tmp_path / "set", PrepareSettings(image_size=(4, 16, 16)), num_workers=1)
    [labels] = (tmp_path / "set" / "phantom-dicom").glob("*/labels.csv")
    table = read_labels(str(labels), prepared, ids_of(prepared), [])
    with labels.open() as file:
        truth = {row["file"]: row["thickness_um"] for row in csv.DictReader(file)}
    assert source.key is not None
    for volume, found in zip(ids_of(prepared), table.columns["thickness_um"], strict=True):
        [name] = [name for name in truth if keyed_id(source.key, f"{labels.parent.name}/volumes/{name}") == volume]
        assert found == truth[name]


def test_what_does_not_fit_is_named_and_what_is_absent_is_counted(prepared, tmp_path):
    rows = [{"file": name, "age": 1} for name in (*NAMES[:10], "gone.dcm", "notes.txt")]
    table = read_labels(write(tmp_path / "labels.csv", rows), prepared, ids_of(prepared), [])
    assert table.columns["age"].count("") == 2
    unknown, without = table.notes
    assert "1 of 12 rows" in unknown  # notes.txt is known: it was refused
    assert unknown.endswith("fit no volume: gone.dcm")
    assert "2 volumes have no row" in without


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"file": "a.dcm", "age": 1}], "no row of .* Column file says: a.dcm; the ids are: "),
        (
            [{"scan": NAMES[0], "age": 1}],
            "has no column id or file or path or filepath; give --id-column, one of: scan",
        ),
        ([{"file": NAMES[0]}, {"file": f"x/{NAMES[0]}"}], "are about the same volume; keep one row"),
    ],
)
def test_a_table_that_fits_badly_is_refused(prepared, tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_labels(write(tmp_path / "labels.csv", rows), prepared, ids_of(prepared), [])


def test_a_name_that_fits_several_files_is_refused(prepared, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(prepared.folder, folder)
    key = read_key(folder)
    lines = (folder / "index.jsonl").read_text().splitlines()
    twins = [json.loads(lines[0]) | {"id": keyed_id(key, path)} for path in ("a/scan.dcm", "b/scan.dcm")]
    rows = [type(prepared.rows[0]).from_record(twin) for twin in twins]
    twofold = PreparedSet(folder, tuple(rows), prepared.info)
    table = write(tmp_path / "labels.csv", [{"file": "scan.dcm", "age": 1}])
    with pytest.raises(ValueError, match=r"'scan.dcm' is the name of 2 files; give more of their paths"):
        read_labels(table, twofold, [row.id for row in rows], ["a/scan.dcm", "b/scan.dcm"])


def test_patients_are_those_that_the_files_name(prepared, number_of, tmp_path):
    found = patients_in_files(prepared, ids_of(prepared))
    people = [number_of[volume] // 2 for volume in ids_of(prepared)]
    assert len(set(found)) == 6
    assert len(set(zip(found, people, strict=True))) == 6  # one code a person, one person a code


def test_a_set_without_its_journal_asks_for_a_column(prepared_scans, tmp_path):
    folder = shutil.copytree(prepared_scans, tmp_path / "set")
    for journal in folder.rglob("journal.jsonl"):
        journal.unlink()
    prepared = PreparedSet.load(folder)
    with pytest.raises(ValueError, match="--patient-column"):
        patients_in_files(prepared, ids_of(prepared))
