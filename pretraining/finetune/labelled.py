"""A table of labels and the volumes of an index -> labelled volumes, and which of them are held out, by patient."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_setup.datasets import BadVolume
from data_setup.index import IndexRow
from data_setup.splits import assign_splits
from data_setup.tables import read_table
from oct_foundation.diagnostics.folds import Split, patient_folds
from oct_foundation.diagnostics.labels import Label, LabelKind, read_label
from pretraining.embedding import VolumesWithRows
from pretraining.finetune.settings import FineTuneSettings

log = logging.getLogger("octfm")
PATIENT_COLUMNS = ("patient", "patient_id", "person_id", "participant_id")


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The K volumes that have the label: positions in `volumes`, their rows, the label's targets [K].

    patients: [K] codes out of the CSV, None where it has no such column.
    """

    volumes: VolumesWithRows
    positions: list[int]
    rows: list[IndexRow]
    label: Label
    patients: np.ndarray | None

    def __len__(self) -> int:
        return len(self.positions)

    def volume(self, number: int) -> np.ndarray:
        """Uint8 [D, H, W] of the labelled volume `number`."""
        return self.volumes[self.positions[number]]

    @property
    def groups(self) -> np.ndarray:
        """The patient of each volume, [K]; where nobody says, each volume counts for itself."""
        return np.array([row.id for row in self.rows]) if self.patients is None else self.patients


def read_labelled(
    volumes: VolumesWithRows, table: str, name: str, kind: LabelKind | None
) -> tuple[Labelled, list[BadVolume]]:
    """Joins the column `name` of a CSV, TSV or Parquet table to the volumes by its column `id`.

    Returns what can be read, and the volumes that cannot. Raises ValueError for missing columns, an id that comes
    twice, and where no volume or one value only is left.
    """
    cells = _rows_by_id(table, name.lower())
    positions, bad = list[int](), list[BadVolume]()
    for position, row in enumerate(volumes.rows):
        if cells.get(row.id, {}).get(name.lower()):
            try:
                volumes[position]
                positions.append(position)
            except BadVolume as error:
                bad.append(error)
    rows = [volumes.rows[position] for position in positions]
    if not rows:
        ours = volumes.rows[0].id
        raise ValueError(
            f"{table}: none of its {len(cells)} ids is a volume with a value of {name}; ids are those of the index, "
            f"such as {ours} (octfm data locate names the file behind an id)"
        )
    label = read_label(name, [cells[row.id][name.lower()] for row in rows], kind)
    column = next((column for column in PATIENT_COLUMNS if column in next(iter(cells.values()))), None)
    patients = None if column is None else np.array([_patient(cells[row.id][column], row.id, table) for row in rows])
    return Labelled(volumes=volumes, positions=positions, rows=rows, label=label, patients=patients), bad


def held_out_splits(data: Labelled, settings: FineTuneSettings) -> list[Split]:
    """Folds, or one split: by the patients of the table where it names them, else as the volumes were prepared.

    Raises ValueError where folds are wanted and no patient is known, and where one side would be empty.
    """
    if settings.num_folds:
        if data.patients is None:
            raise ValueError(
                f"--folds needs to know the patients: add a column {PATIENT_COLUMNS[0]} to the labels, or leave "
                "--folds out and the split of the prepared set is used, which was made by patient"
            )
        return patient_folds(data.label, data.patients, settings.num_folds, settings.seed)
    if data.patients is None:
        held_out = np.array([row.split != "train" for row in data.rows])
    else:
        patient_of = {row.id: str(patient) for row, patient in zip(data.rows, data.patients, strict=True)}
        splits, note = assign_splits(patient_of, settings.val_fraction, settings.seed)
        if note:
            log.warning("%s", note)
        held_out = np.array([splits[row.id] == "val" for row in data.rows])
    split = Split(np.flatnonzero(~held_out), np.flatnonzero(held_out))
    if min(map(len, split)) == 0:
        raise ValueError(
            f"{len(split.train)} labelled volumes are left to train on and {len(split.test)} are held out; label more "
            "volumes, of patients on both sides"
        )
    if missing := _classes_only_held_out(data.label, split):
        raise ValueError(f"no volume of class {', '.join(missing)} is left to train on; label more, or use --folds")
    return [split]


def _rows_by_id(table: str, name: str) -> dict[str, dict[str, str]]:
    rows = read_table(table)
    for column in ("id", name):
        if column not in rows[0]:
            raise ValueError(f"{table} has no column {column}; there are: {', '.join(sorted(rows[0]))}")
    found = {row["id"]: row for row in rows}
    if len(found) < len(rows):
        twice = Counter(row["id"] for row in rows).most_common(1)[0][0]
        raise ValueError(f"{table} has two rows for the volume {twice}; one is allowed")
    return found


def _patient(cell: str, volume: str, table: str) -> str:
    if not cell:
        raise ValueError(f"{table}: volume {volume} has a label and no patient; name one, or drop the column")
    return cell


def _classes_only_held_out(label: Label, split: Split) -> Sequence[str]:
    there = set(label.targets[split.train].tolist()) if label.kind == "classes" else set()
    return [name for code, name in enumerate(label.classes) if code not in there]
