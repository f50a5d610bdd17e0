"""Lists of files with facts about them -> inputs: AI-READI's manifest.tsv (releases 2 and 3), any CSV or Parquet.

A manifest knows what a path does not: person, recommended split, side, region. Its traps: paths begin with a slash,
name no file or one that is absent, and say "None" or "Not reported" where they know nothing.
"""

import csv
import io
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_setup.selection import EVERYTHING, Selection
from data_setup.sources import Facts, InputFile, Stated, is_gcs, is_shadow
from data_setup.splits import Split
from data_setup.volume import Laterality

MANIFEST = "retinal_oct/manifest.tsv"
PARTICIPANTS = "participants.tsv"
_NOTHING = frozenset({"", "none", "nan", "null", "not reported", "unknown", "unknown_laterality", "varies by frame"})

# The first name that the table has; AI-READI renamed participant_id to person_id in release 3.
_COLUMNS = {
    "path": ("filepath", "path", "file", "location"),
    "person": ("person_id", "participant_id", "patient_id", "patient", "person"),
    "split": ("recommended_split", "split"),
    "vendor": ("manufacturer", "vendor"),
    "model": ("manufacturers_model_name", "model"),
    "protocol": ("imaging", "protocol"),
    "region": ("anatomic_region", "region"),
    "laterality": ("laterality", "eye"),
    "bytes": ("bytes", "size"),
    "crc32c": ("crc32c",),
}
_SPLITS: dict[str, Split] = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}
_SIDES: dict[str, Laterality] = {"r": "R", "od": "R", "right": "R", "l": "L", "os": "L", "left": "L"}


@dataclass(frozen=True)
class ManifestSource:
    """AI-READI: `root` (a folder or gs://...) holds retinal_oct/manifest.tsv and participants.tsv; or the path of the
    manifest itself.
    """

    root: str
    select: Selection = EVERYTHING
    key: bytes | None = field(default=None, init=False)

    def files(self) -> list[InputFile]:
        """The selected rows, sorted by path; raises ValueError where the manifest is absent, empty or no manifest."""
        root = str(self.root).rstrip("/")
        table = _join(root, MANIFEST)
        if root.endswith(".tsv"):
            table, root = root, posixpath.dirname(posixpath.dirname(root))
        rows = read_table(table)
        splits = _recommended_splits(_join(root, PARTICIPANTS))
        files = list(_inputs(rows, table, root))
        files = [
            replace(file, facts=replace(file.facts, split=splits.get(file.facts.person or "", file.facts.split)))
            for file in files
        ]
        return _selected(files, self.select, table)


@dataclass(frozen=True)
class ListSource:
    """A CSV (comma or tab) or Parquet file with a column `path`, absolute, gs:// or relative to the table's folder.

    Optional columns: patient, split (train, val, test), laterality (R, L), vendor, model, protocol, region, bytes,
    crc32c.
    """

    table: str
    select: Selection = EVERYTHING
    key: bytes | None = field(default=None, init=False)

    def files(self) -> list[InputFile]:
        """The selected rows, sorted by path; raises ValueError where the table is absent, empty or has no paths."""
        rows = read_table(self.table)
        return _selected(list(_inputs(rows, self.table, posixpath.dirname(self.table))), self.select, self.table)


def read_table(location: str) -> list[dict[str, str]]:
    """The rows of a .tsv, .csv or .parquet file as texts, by lower-case column name; raises ValueError."""
    try:
        content = _read_bytes(location)
    except OSError as error:
        raise ValueError(f"{location} cannot be read ({error.strerror or type(error).__name__})") from None
    if location.endswith(".parquet"):
        rows = _parquet_rows(content)
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"{location} is no UTF-8 text; save it as UTF-8, or as Parquet") from None
        head = text.partition("\n")[0]
        rows = list(csv.DictReader(io.StringIO(text), delimiter="\t" if "\t" in head else ","))
    if not rows:
        raise ValueError(f"{location} holds no row")
    return [{str(name).strip().lower(): _text(value) for name, value in row.items() if name} for row in rows]


def _parquet_rows(content: bytes) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError("Parquet needs pyarrow: pip install 'octfm[formats]', or save the list as CSV") from None
    return parquet.read_table(io.BytesIO(content)).to_pylist()


def _text(value: Any) -> str:
    """The text of a cell, "" for everything by which tables say that they know nothing."""
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in _NOTHING else text


def _read_bytes(location: str) -> bytes:
    if is_gcs(location):
        from data_setup.gcs import read_bytes

        return read_bytes(location)
    return Path(location).read_bytes()


def _inputs(rows: Iterable[Mapping[str, str]], table: str, root: str) -> Iterable[InputFile]:
    """One input per row that names its own file once; a row without a path is a missing file."""
    rows = list(rows)
    columns = {field: next((name for name in names if name in rows[0]), None) for field, names in _COLUMNS.items()}
    if columns["path"] is None:
        raise ValueError(
            f"{table} has no column of paths; one of {', '.join(_COLUMNS['path'])} is needed, there are: "
            f"{', '.join(sorted(rows[0]))}"
        )
    paths = [row.get(columns["path"], "").lstrip("/") for row in rows]
    listed = _listed(root, {path.partition("/")[0] for path in paths if path}) if is_gcs(root) else None
    seen = set()
    for number, row in enumerate(rows, start=1):
        cells = {field: row.get(name, "") if name else "" for field, name in columns.items()}
        path = cells["path"]
        key = path.lstrip("/") if path else f"row {number} without a path"
        if is_shadow(key) or key in seen:
            continue
        seen.add(key)
        location: str | None = _join(root, key) if path and not is_gcs(path) and not _is_absolute(path) else path
        stated = Stated(int(cells["bytes"]) if cells["bytes"].isdecimal() else None, cells["crc32c"] or None)
        if listed is not None and location in listed:
            stated = listed[location]
        elif listed is not None:
            location = None
        yield InputFile(key, location or None, stated, _facts(cells))


def _is_absolute(path: str) -> bool:
    """True for a path that exists as it stands: AI-READI's begin with a slash and mean the data set's root."""
    return path.startswith("/") and Path(path).exists()


def _listed(root: str, names: Iterable[str]) -> dict[str, Stated]:
    """What the bucket states of every object in these folders below the root: photographs beside them stay unread."""
    from data_setup.gcs import list_files

    files = [file for name in sorted(names) for file in list_files(_join(root, name))]
    return {file.location: file.stated for file in files if file.location is not None}


def _facts(cells: Mapping[str, str]) -> Facts:
    side = cells["laterality"].lower()
    return Facts(
        person=cells["person"] or None,
        split=_SPLITS.get(cells["split"].lower()),
        vendor=cells["vendor"] or None,
        model=cells["model"] or None,
        protocol=cells["protocol"] or None,
        region=cells["region"] or None,
        laterality=_SIDES.get(side),
    )


def _recommended_splits(table: str) -> dict[str, Split]:
    """Person -> split of participants.tsv; nothing where there is no such table."""
    if not is_gcs(table) and not Path(table).is_file():
        return {}
    try:
        rows = read_table(table)
    except ValueError:
        if is_gcs(table):
            return {}
        raise
    found = {}
    for row in rows:
        person = row.get("person_id") or row.get("participant_id")
        split = _SPLITS.get(row.get("recommended_split", "").lower())
        if person and split:
            found[person] = split
    return found


def _selected(files: list[InputFile], select: Selection, table: str) -> list[InputFile]:
    taken = [file for file in files if select.takes(file.facts) and select.takes_person(file.facts.person)]
    if not taken:
        raise ValueError(f"{table}: none of {len(files)} rows is selected by {select.describe()}")
    return sorted(taken, key=lambda file: file.key)


def _join(root: str, path: str) -> str:
    """`path` below `root` even where it begins with a slash, which os.path.join would take for the root itself."""
    return posixpath.join(root or ".", path.lstrip("/"))
