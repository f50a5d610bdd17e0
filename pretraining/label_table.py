"""A table of labels -> a column of texts for each label, in the order of the volumes.

The volumes of a prepared set are known by keyed ids that name no file. A row of the table may name its volumes by such
an id, by the path or the name of the file, or by the patient; with the key of the set each becomes an id again.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from data_setup.index import PreparedSet
from data_setup.journal import JOURNAL_NAME
from data_setup.phantom import PhantomSettings
from data_setup.prepare import read_key
from data_setup.prepare_file import keyed_id, patient_code
from data_setup.sources import PhantomSource, is_gcs
from data_setup.tables import read_table

PHANTOMS = "phantoms"  # in place of a table or of data: generated eyes, whose anatomy is known
_LATER_VOLUME = re.compile(r"(?P<file>[0-9a-f]{16})-\d+")  # prepare_file: the second volume of a file is <id>-2
_ID_COLUMNS = ("id", "file", "path", "filepath")
_SHOWN = 5
_MOST_FILES = 200_000  # below the table's folder: it may lie in somebody's home


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """columns: texts of M volumes by lower-case name, "" where nothing is known; id_column is one of them; notes: what
    a reader should know.
    """

    id_column: str
    columns: dict[str, list[str]]
    notes: list[str]


def read_labels(
    table: str, prepared: PreparedSet, ids: Sequence[str], paths: Iterable[str], id_column: str | None = None
) -> LabelTable:
    """The rows of `table` (.csv, .tsv, .parquet) for the volumes `ids` [M] of a prepared set.

    paths: of the source's files below its root, where it is at hand; else files are looked for beside the table.
    id_column: by default the first of id, file, path, filepath. Raises ValueError where the column is absent, no row
    fits a volume, two rows fit one, or a name is ambiguous.
    """
    rows = read_table(table)
    id_column = _id_column(table, rows[0], id_column)
    named = _Names(prepared, _key(prepared), [*paths, *_files_beside(table)])
    position_of = {volume_id: position for position, volume_id in enumerate(ids)}
    columns = {name: [""] * len(ids) for name in rows[0]}
    row_of: dict[int, str] = {}
    unknown: list[str] = []
    for row in rows:
        cell = row[id_column]
        found = named.volumes(cell)
        if not found:
            unknown.append(cell or "(empty)")
        for position in (position_of[volume_id] for volume_id in found if volume_id in position_of):
            if position in row_of:
                raise ValueError(f"{table}: {row_of[position]!r} and {cell!r} are about the same volume; keep one row")
            row_of[position] = cell
            for name, column in columns.items():
                column[position] = row.get(name, "")
    if not row_of:
        raise ValueError(_nothing_fits(table, id_column, unknown, prepared))
    notes = list(_notes(table, unknown, len(rows), len(ids) - len(row_of)))
    return LabelTable(id_column=id_column, columns=columns, notes=notes)


def _id_column(table: str, row: Mapping[str, str], asked: str | None) -> str:
    choices = [asked.lower()] if asked else _ID_COLUMNS
    found = next((name for name in choices if name in row), None)
    if found is None:
        raise ValueError(f"{table} has no column {' or '.join(choices)}; give --id-column, one of: {', '.join(row)}")
    return found


def patients_in_files(prepared: PreparedSet, ids: Sequence[str]) -> list[str]:
    """The keyed code of each volume's patient, as its file says; a file that names nobody has a code of its own.

    Raises ValueError where the set was copied without the journal of its preparation, which alone holds the codes.
    """
    codes = _codes(prepared)
    if not codes:
        raise ValueError(
            f"{prepared.folder} has lost the journal of its preparation, so nothing says which volumes are of one "
            "patient: name the column of --labels that does with --patient-column"
        )
    return [codes.get(volume_id, volume_id) for volume_id in ids]


def _codes(prepared: PreparedSet) -> dict[str, str]:
    """Volume id -> code of the patient; empty where there is no journal."""
    journal = (prepared.folder / prepared.info["volumes"]).parent / JOURNAL_NAME
    if not journal.is_file():
        return {}
    whole = journal.read_text().rpartition("\n")[0]
    records = [record for line in whole.splitlines() for record in json.loads(line)["rows"]]
    return {record["id"]: record["patient"] for record in records if record["status"] == "accepted"}


class _Names:
    """Everything by which a row of a table may name volumes of a set."""

    def __init__(self, prepared: PreparedSet, key: bytes, paths: Iterable[str]) -> None:
        self._key = key
        self._of_id: defaultdict[str, set[str]] = defaultdict(set)
        for row in prepared.rows:
            self._of_id[row.id].add(row.id)
            if part := _LATER_VOLUME.fullmatch(row.id):
                self._of_id[part["file"]].add(row.id)
        self._of_path: defaultdict[str, set[str]] = defaultdict(set)
        for path in paths:
            ends = list(_ends(path))
            file_id = next((found for end in ends if (found := self._keyed(end))), None)
            if file_id is not None:
                for end in (*ends, PurePosixPath(path).stem):
                    self._of_path[end].add(file_id)
        self._of_patient: defaultdict[str, set[str]] = defaultdict(set)
        for volume_id, code in _codes(prepared).items():
            self._of_patient[code].add(volume_id)

    def volumes(self, cell: str) -> set[str]:
        """Ids, refused files among them; nothing for a name that the set does not know. Raises ValueError where the
        end of a path fits several files.
        """
        if not cell or cell in self._of_id:
            return self._of_id.get(cell, set())
        ends = list(_ends(cell))
        whole = next((file_id for end in ends if (file_id := self._keyed(end))), None)
        files = {whole} if whole else self._of_path.get(ends[0], set())
        if len(files) > 1:
            raise ValueError(f"{cell!r} is the name of {len(files)} files; give more of their paths")
        if files:
            return self._of_id[next(iter(files))]
        return self._of_patient.get(patient_code(self._key, cell) or "", set())

    def _keyed(self, path: str) -> str | None:
        """The id of a file of the set whose path below the source is this one."""
        file_id = keyed_id(self._key, path)
        return file_id if file_id in self._of_id else None


def _ends(path: str) -> Iterator[str]:
    """a/b/c.dcm, b/c.dcm, c.dcm."""
    parts = [part for part in PurePosixPath(path.replace("\\", "/")).parts if part != "/"]
    return ("/".join(parts[start:]) for start in range(len(parts)))


def _key(prepared: PreparedSet) -> bytes:
    """The key of the set's ids: beside the set, or the public one of phantoms, which name nobody."""
    for folder in (prepared.folder, prepared.folder.parent):
        if (folder / ".source_key").is_file():
            return read_key(folder)
    public = PhantomSource(Path(), PhantomSettings()).key
    assert public is not None
    return public


def _files_beside(table: str) -> Iterator[str]:
    """Files at and below the folder of a table on disk, as absolute paths."""
    if is_gcs(table):
        return iter(())
    folder = Path(table).resolve().parent
    found = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    return islice(found, _MOST_FILES)


def _nothing_fits(table: str, id_column: str, unknown: Sequence[str], prepared: PreparedSet) -> str:
    shown = ", ".join(unknown[:_SHOWN])
    ids = ", ".join(row.id for row in prepared.accepted()[:_SHOWN])
    return (
        f"no row of {table} fits a volume of {prepared.folder}. Column {id_column} says: {shown}; the ids are: {ids}. "
        "Allowed: these ids, paths or names of the files that the set was made of (with the table beside them), or "
        "patients"
    )


def _notes(table: str, unknown: Sequence[str], num_rows: int, num_without: int) -> Iterator[str]:
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        yield f"{len(unknown)} of {num_rows} rows of {table} fit no volume: {', '.join(unknown[:_SHOWN])}{more}"
    if num_without:
        yield f"{num_without} volumes have no row in {table}"
