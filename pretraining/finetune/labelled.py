"""Volumes with columns of a table -> the volumes that have one label, and which of them are held out, by patient."""

from dataclasses import dataclass

import numpy as np

from data_setup.datasets import BadVolume
from data_setup.index import IndexRow
from data_setup.splits import assign_splits
from oct_foundation.diagnostics.folds import Split, patient_folds
from oct_foundation.diagnostics.labels import Label, LabelKind, read_label
from pretraining.embedding import VolumesWithRows
from pretraining.finetune.settings import FineTuneSettings
from pretraining.probe_data import ProbeData


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The K volumes that have the label: `positions` in `volumes`, the label's targets [K], their patients [K].

    seen: bool [K], the volumes that the encoder was pretrained on; None where nobody knows.
    """

    volumes: VolumesWithRows
    positions: list[int]
    label: Label
    patients: np.ndarray
    seen: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def row(self, number: int) -> IndexRow:
        """What the index says of the labelled volume `number`."""
        return self.volumes.rows[self.positions[number]]

    def volume(self, number: int) -> np.ndarray:
        """Uint8 [D, H, W] of the labelled volume `number`."""
        return self.volumes[self.positions[number]]


def labelled_volumes(data: ProbeData, name: str, kind: LabelKind | None) -> tuple[Labelled, list[BadVolume]]:
    """Those of `data` that have a value of the label and can be read; and those that have one but cannot be read.

    kind: None for what the values look like. Raises ValueError where fewer than two different values are left.
    """
    column = read_label(name, data.labels[name.lower()], kind or data.kinds.get(name.lower()))
    positions, bad = list[int](), list[BadVolume]()
    for position in np.flatnonzero(column.known).tolist():
        try:
            data.volumes[position]
            positions.append(position)
        except BadVolume as error:
            bad.append(error)
    label = read_label(name, [data.labels[name.lower()][position] for position in positions], column.kind)
    patients = np.array([data.groups[position] for position in positions])
    seen = None if data.seen is None else np.array(data.seen, dtype=bool)[positions]
    return Labelled(volumes=data.volumes, positions=positions, label=label, patients=patients, seen=seen), bad


def held_out_splits(data: Labelled, settings: FineTuneSettings) -> list[Split]:
    """Folds in which each patient is held out once, or one split with `val_fraction` of the patients held out.

    Raises ValueError where the patients are too few, where a class is left with nothing to learn from, or where the
    held-out part cannot be scored because all are of one class.
    """
    if settings.num_folds:
        return patient_folds(data.label, data.patients, settings.num_folds, settings.seed)
    if len(set(data.patients.tolist())) < 2:
        raise ValueError(
            f"label {data.label.name}: all {len(data)} labelled volumes are of one patient; two are needed"
        )
    patient_of = {str(number): patient for number, patient in enumerate(data.patients.tolist())}
    sides, _ = assign_splits(patient_of, settings.val_fraction, settings.seed)
    held_out = np.array([sides[str(number)] == "val" for number in range(len(data))])
    split = Split(np.flatnonzero(~held_out), np.flatnonzero(held_out))
    if data.label.kind == "classes":
        _check_classes(data.label, split)
    return [split]


def _check_classes(label: Label, split: Split) -> None:
    there = {part: set(label.targets[rows].tolist()) for part, rows in split._asdict().items()}
    missing = [name for code, name in enumerate(label.classes) if code not in there["train"]]
    if missing or len(there["test"]) < 2:
        found = f"class {', '.join(missing)} has no patient" if missing else "all held-out patients are of one class"
        where = " to learn from" if missing else ""
        raise ValueError(
            f"label {label.name}: {found}{where}; use --folds, which spreads the classes, or another --seed"
        )
