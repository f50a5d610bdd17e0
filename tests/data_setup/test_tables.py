"""AI-READI's manifests of both releases with their traps, and lists of one's own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data_setup.index import PreparedSet
from data_setup.prepare import PrepareSettings, prepare
from data_setup.selection import Selection
from data_setup.tables import ListSource, ManifestSource, read_table

SETTINGS = PrepareSettings(image_size=(4, 16, 16), val_fraction=0.5)
FOLDER = "retinal_oct/structural_oct"
Write = Callable[..., Path]

# participant, maker, model, region, laterality, file name below FOLDER ("" names none)
SCANS = [
    ("1001", "Heidelberg", "Spectralis", "Macula", "R", "heidelberg_spectralis/1001/1001_mac_oct_r_1.dcm"),
    ("1001", "Zeiss", "Cirrus", "Optic Disc, 6 x 6", "L", "zeiss_cirrus/1001/1001_disc_oct_l_1.dcm"),
    ("1099", "Topcon", "Maestro2", "Macula, 6 x 6", "unknown_laterality", "topcon_maestro2/1099/1099_x_1.dcm"),
    ("4001", "Topcon", "Triton", "Macula, 12 x 12", "L", "topcon_triton/4001/4001_x_1.dcm"),
    ("4002", "Zeiss", "Cirrus", "Macula", "R", "zeiss_cirrus/4002/gone.dcm"),
    ("4003", "Zeiss", "Cirrus", "Macula", "R", ""),
    ("4003", "Zeiss", "Cirrus", "Macula", "R", "zeiss_cirrus/4003/empty.dcm"),
]


@pytest.fixture(params=["participant_id", "person_id"])
def readi(request: pytest.FixtureRequest, tmp_path: Path, write_opt: Write) -> Path:
    """A small AI-READI of release 2 (participant_id) or 3 (person_id)."""
    root = tmp_path / "AI-READI"
    person = request.param
    columns = [person, "manufacturer", "manufacturers_model_name", "anatomic_region", "imaging", "laterality",
               "pixel_spacing", "slice_thickness", "sop_instance_uid", "filepath"]  # fmt: skip
    lines = ["\t".join(columns)]
    for number, (participant, maker, model, region, side, name) in enumerate(SCANS):
        filepath = f"/{FOLDER}/{name}" if name else "None"
        cells = [participant, maker, model, region, "OCT", side, "Varies by frame", "Not reported", f"1.2.{number}"]
        lines.append("\t".join([*cells, filepath]))
        if name and "gone" not in name:
            written = write_opt(patient=participant, path=root / FOLDER / name, ImageLaterality=None)
            if "empty" in name:
                written.write_bytes(b"")
    (root / "retinal_oct").mkdir(exist_ok=True)
    (root / FOLDER / "topcon_triton" / "4001" / "._4001_x_1.dcm").write_bytes(b"macOS")
    (root / "retinal_oct" / "manifest.tsv").write_text("\n".join(lines) + "\n")
    splits = [f"{person}\trecommended_split", "1001\ttrain", "1099\tval", "4001\ttest", "4002\ttrain", "4003\ttrain"]
    (root / "participants.tsv").write_text("\n".join(splits) + "\n")
    return root


def prepared_from(source: ManifestSource | ListSource, tmp_path: Path) -> PreparedSet:
    return prepare(source, tmp_path / "set", SETTINGS, 1)


def test_a_manifest_gives_split_side_and_region_and_counts_what_is_not_there(readi: Path, tmp_path: Path) -> None:
    prepared = prepared_from(ManifestSource(str(readi)), tmp_path)
    assert prepared.bad_by_reason() == {"missing_file": 2, "empty_file": 1}
    assert prepared.info["split"] == {"train": 2, "val": 1, "test": 1}
    assert prepared.info["split_note"] is None
    found = {(row.split, row.region, row.laterality) for row in prepared.accepted()}
    assert found == {
        ("train", "Macula", "R"),
        ("train", "Optic Disc, 6 x 6", "L"),
        ("val", "Macula, 6 x 6", None),
        ("test", "Macula, 12 x 12", "L"),
    }


def test_the_manifest_itself_may_be_named(readi: Path) -> None:
    named = ManifestSource(str(readi / "retinal_oct" / "manifest.tsv"))
    assert named.files() == ManifestSource(str(readi)).files()


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (Selection(participants="1001-1100"), 3),
        (Selection(manufacturers=("topcon",)), 2),
        (Selection(models=("Cirrus",), regions=("Macula",)), 3),
        (Selection(laterality="L"), 2),
    ],
)
def test_only_selected_rows_are_read(readi: Path, select: Selection, expected: int) -> None:
    assert len(ManifestSource(str(readi), select).files()) == expected


def test_a_choice_that_takes_nothing_says_so(readi: Path) -> None:
    with pytest.raises(ValueError, match=r"none of 7 rows is selected by data\.select\.models"):
        ManifestSource(str(readi), Selection(models=("Avanti",))).files()


def test_people_stay_on_one_side_where_no_split_is_recommended(readi: Path, tmp_path: Path) -> None:
    (readi / "participants.tsv").unlink()
    prepared = prepared_from(ManifestSource(str(readi)), tmp_path)
    both_eyes = [row.split for row in prepared.accepted() if row.region in ("Macula", "Optic Disc, 6 x 6")]
    assert len(set(both_eyes)) == 1
    assert {row.split for row in prepared.accepted()} == {"train", "val"}


def test_a_file_and_a_manifest_that_disagree_about_the_eye_leave_it_open(
    readi: Path, tmp_path: Path, write_opt: Write
) -> None:
    write_opt(patient="1001", path=readi / FOLDER / SCANS[0][-1], ImageLaterality="L")
    prepared = prepared_from(ManifestSource(str(readi)), tmp_path)
    assert [row.laterality for row in prepared.accepted() if row.region == "Macula"] == [None]
    assert prepared.info["unknown"]["laterality_disagrees"] == 1


def test_nothing_written_names_a_participant_or_a_path(readi: Path, tmp_path: Path) -> None:
    prepared_from(ManifestSource(str(readi)), tmp_path)
    for path in (tmp_path / "set").rglob("*"):
        if path.is_file() and path.suffix in (".jsonl", ".json"):
            text = path.read_text()
            assert not any(word in text for word in ('"1099"', '"4003"', "_oct_", "structural_oct", str(tmp_path)))


def test_a_csv_needs_paths_only(tmp_path: Path, write_opt: Write) -> None:
    write_opt(path=tmp_path / "scans" / "a.dcm")
    elsewhere = write_opt(path=tmp_path / "elsewhere" / "b.dcm", patient="TEST-2")
    table = tmp_path / "list.csv"
    size = elsewhere.stat().st_size
    table.write_text(f"path,split,bytes\nscans/a.dcm,train,\n{elsewhere},val,{size}\nscans/c.dcm,val,\n")
    prepared = prepared_from(ListSource(str(table)), tmp_path)
    assert prepared.info["split"] == {"train": 1, "val": 1, "test": 0}
    assert prepared.bad_by_reason() == {"missing_file": 1}


@pytest.mark.parametrize(("column", "value"), [("bytes", "7"), ("crc32c", "AAAAAA==")])
def test_a_file_unlike_its_listing_is_a_transfer_mismatch(
    tmp_path: Path, write_opt: Write, column: str, value: str
) -> None:
    write_opt(path=tmp_path / "a.dcm")
    (tmp_path / "list.csv").write_text(f"path,{column}\na.dcm,{value}\n")
    prepared = prepared_from(ListSource(str(tmp_path / "list.csv")), tmp_path)
    assert prepared.bad_by_reason() == {"transfer_mismatch": 1}


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="PARQUET NOT TESTED: pip install 'octfm[formats]'")
    from pyarrow import parquet

    table = pyarrow.table({"Path": ["a.dcm", "b.dcm"], "split": ["train", None], "bytes": [5, None]})
    parquet.write_table(table, tmp_path / "list.parquet")
    assert read_table(str(tmp_path / "list.parquet")) == [
        {"path": "a.dcm", "split": "train", "bytes": "5"},
        {"path": "b.dcm", "split": "", "bytes": ""},
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "no column of paths; one of filepath"),
        ("path\n", "holds no row"),
        ("", "holds no row"),
        (b"\xff\xfe\x00", "no UTF-8 text"),
        (None, "cannot be read"),
    ],
)
def test_a_table_that_is_none_says_how_to_mend_it(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    table = tmp_path / "list.csv"
    if content is not None:
        table.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=message):
        ListSource(str(table)).files()
