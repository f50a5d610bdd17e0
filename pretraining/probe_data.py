"""DATA and LABELS of `octfm probe` -> volumes, a column for each label, and the patient of each volume.

Labels come from a table, from the scans' headers (maker, device, side), or from phantoms, whose anatomy is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_setup.index import DATASET_NAME, IndexRow, PreparedSet
from data_setup.phantom_benchmark import BenchmarkSettings, PhantomBenchmark
from data_setup.sources import is_gcs
from oct_foundation.diagnostics.labels import LabelKind
from pretraining.embedding import VolumesWithRows, open_volumes
from pretraining.encoder_file import SavedEncoder
from pretraining.label_table import PHANTOMS, patients_in_files, read_labels
from pretraining.seen_volumes import TrainedOn
from pretraining.source_section import SourceSection, guess_source

SplitChoice = Literal["train", "val", "test", "all"]
HEADER_LABELS = ("laterality", "vendor", "model", "protocol", "region")


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """M volumes, columns [M] of labels by name, groups [M]: their patients; notes: what a reader should know.

    kinds: what a label is, where that is known. split: in words, which of the data's volumes these are. seen: bool
    [M], the volumes that the encoder was pretrained on, None where nobody knows.
    """

    volumes: VolumesWithRows
    labels: Mapping[str, Sequence[Any]]
    groups: list[str]
    split: str = "all"
    seen: list[bool] | None = None
    notes: list[str] = field(default_factory=list)
    kinds: Mapping[str, LabelKind] = field(default_factory=dict)

    def only(self, ids: Sequence[str]) -> "ProbeData":
        """The volumes `ids`, in this order: those that could be read."""
        place = {row.id: index for index, row in enumerate(self.volumes.rows)}
        kept = [place[volume_id] for volume_id in ids]
        labels = {name: [column[index] for index in kept] for name, column in self.labels.items()}
        seen = None if self.seen is None else [self.seen[index] for index in kept]
        groups = [self.groups[index] for index in kept]
        return replace(self, volumes=_Chosen(self.volumes, kept), labels=labels, groups=groups, seen=seen)

    @property
    def num_seen(self) -> int | None:
        """Volumes that the encoder was pretrained on."""
        return None if self.seen is None else sum(self.seen)


@dataclass(frozen=True, kw_only=True)
class LabelChoice:
    """What --labels, --id-column, --patient-column and --label say."""

    table: str | None = None
    id_column: str | None = None
    patient_column: str | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.table is None and (self.id_column or self.patient_column):
            raise ValueError("--id-column and --patient-column name columns of a table; give it with --labels")


def phantom_benchmark(saved: SavedEncoder, num_volumes: int | None) -> PhantomBenchmark:
    """The benchmark at the size and in the patches that the encoder takes."""
    sizes = {"image_size": saved.config.image_size, "patch_size": saved.config.patch_size}
    more = {} if num_volumes is None else {"num_volumes": num_volumes}
    return PhantomBenchmark(BenchmarkSettings(**sizes, **more))  # type: ignore[arg-type]


def phantom_data(saved: SavedEncoder, choice: LabelChoice, num_volumes: int | None) -> ProbeData:
    """The phantom benchmark; every eye is another person's."""
    if choice.table is not None:
        raise ValueError(f"--data {PHANTOMS} brings its own labels; leave --labels out")
    benchmark = phantom_benchmark(saved, num_volumes)
    volumes = _Phantoms(benchmark)
    columns = {name: column.tolist() for name, column in benchmark.labels.items()}
    kinds = {name: _kind(column) for name, column in benchmark.labels.items()}  # few counts of drusen are no classes
    trained = TrainedOn.of(saved)
    return ProbeData(
        volumes=volumes,
        labels=_chosen(columns, choice.names),
        groups=benchmark.ids,
        seen=None if trained is None else trained.has_seen(volumes.rows, fit="resize"),
        kinds=kinds,
    )


def _kind(column: np.ndarray) -> LabelKind:
    return "values" if column.dtype.kind == "f" else "classes"


def scan_data(
    saved: SavedEncoder, data: str, choice: LabelChoice, *, split: SplitChoice | None, work: Path | None
) -> ProbeData:
    """A prepared set or scans, at the size that the encoder takes. Raises ValueError, StopPreparing.

    split: these volumes only; None for all, but of the very set that the encoder was pretrained on val and test alone.
    """
    of_index = None if split == "all" else split
    opened = open_volumes(data, saved.config.image_size, work=work, split=of_index, run_config=saved.run_config)
    prepared, trained = opened.prepared, TrainedOn.of(saved)
    volumes: VolumesWithRows = opened
    shown: str = split or "all"
    notes: list[str] = []
    if split is None and trained is not None and trained.is_set(prepared):
        volumes, shown = _held_out(opened, data), "val and test"
        notes = [f"{data} is what the encoder was pretrained on: its val and test volumes only; --split all takes all"]
    ids = [row.id for row in volumes.rows]
    labels: dict[str, Sequence[Any]] = {name: [getattr(row, name) for row in volumes.rows] for name in HEADER_LABELS}
    paths = _source_paths(data, prepared)
    table = read_labels(choice.table, prepared, ids, paths, choice.id_column) if choice.table is not None else None
    if table is None or choice.patient_column is None:
        groups, of_groups = _groups_of_files(prepared, ids)
    else:
        groups, of_groups = _groups_of_column(table.columns, choice, ids)
    if table is not None:
        left = {table.id_column, (choice.patient_column or table.id_column).lower()}
        own = {name: column for name, column in table.columns.items() if name not in left}
        labels = {**labels, **own} if choice.names else {**own}
    return ProbeData(
        volumes=volumes,
        labels=_chosen(labels, choice.names),
        groups=groups,
        split=shown,
        seen=None if trained is None else trained.has_seen(volumes.rows, prepared.info["settings"]["fit"]),
        notes=[*notes, *(table.notes if table is not None else []), *of_groups],
    )


def _held_out(volumes: VolumesWithRows, data: str) -> "_Chosen":
    """Those that training has not taken. Raises ValueError where there is none."""
    kept = [index for index, row in enumerate(volumes.rows) if row.split != "train"]
    if not kept:
        raise ValueError(f"the encoder was pretrained on all volumes of {data}; give others, or --split all")
    return _Chosen(volumes, kept)


def _chosen(labels: Mapping[str, Sequence[Any]], names: Sequence[str]) -> Mapping[str, Sequence[Any]]:
    """The named ones, all without a name; raises ValueError for a name that there is not."""
    if unknown := [name for name in names if name.lower() not in labels]:
        raise ValueError(f"there is no label {', '.join(unknown)}; there are: {', '.join(labels)}")
    return {name.lower(): labels[name.lower()] for name in names} if names else labels


def _groups_of_files(prepared: PreparedSet, ids: Sequence[str]) -> tuple[list[str], list[str]]:
    groups = patients_in_files(prepared, ids)
    nameless = sum(group == volume_id.partition("-")[0] for group, volume_id in zip(groups, ids, strict=True))
    note = (
        f"{nameless} of {len(ids)} volumes name no patient and count as a person each: where people have several, "
        "scores are too good; --patient-column mends it"
    )
    return groups, [note] if nameless else []


def _groups_of_column(
    columns: dict[str, list[str]], choice: LabelChoice, ids: Sequence[str]
) -> tuple[list[str], list[str]]:
    """A volume without a patient counts as a person of its own, and is told of."""
    assert choice.patient_column is not None
    found = columns.get(choice.patient_column.lower())
    if found is None:
        raise ValueError(f"{choice.table} has no column {choice.patient_column}; there are: {', '.join(columns)}")
    empty = sum(not cell for cell in found)
    notes = [f"{empty} of {len(ids)} volumes have no {choice.patient_column} and count as a person each"]
    return [cell or volume_id for cell, volume_id in zip(found, ids, strict=True)], notes if empty else []


def _source_paths(data: str, prepared: PreparedSet) -> list[str]:
    """Paths below the source where DATA is the scans themselves; none for a prepared set."""
    if is_gcs(data) or (Path(data) / DATASET_NAME).is_file():
        return []
    source = SourceSection(source=guess_source(data), root=data).open(prepared.folder)
    return [file.key for file in source.files()]


class _Phantoms:
    """Phantoms are made when asked for; several passes are cheaper from memory, 150 kB each."""

    def __init__(self, benchmark: PhantomBenchmark) -> None:
        self._volumes = [benchmark[number] for number in range(len(benchmark))]
        hashes = [sha256(volume.tobytes()).hexdigest() for volume in self._volumes]
        self.rows = [
            IndexRow(id=name, status="accepted", sha256=found)
            for name, found in zip(benchmark.ids, hashes, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._volumes)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._volumes[index]


class _Chosen:
    """Some of the volumes."""

    def __init__(self, volumes: VolumesWithRows, kept: Sequence[int]) -> None:
        self._volumes, self._kept = volumes, kept
        self.rows = [volumes.rows[index] for index in kept]

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._volumes[self._kept[index]]
