"""The prepared cache as its readers see it: `index.jsonl`, `dataset.json`, one uint8 .npy per accepted volume.

Enters a folder that data_setup.prepare has finished; leaves rows, memory-mapped volumes and the count of bad files.
"""

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from data_setup.selection import EVERYTHING, Selection
from data_setup.splits import Split
from data_setup.volume import Laterality, Spacing

INDEX_NAME, DATASET_NAME, VOLUMES_NAME = "index.jsonl", "dataset.json", "volumes"
_NAMED_FINDINGS, _NAMED_FILES = 5, 3  # of each reason and of each finding, in the table for the log

Shape = tuple[int, int, int]


class TooManyBadFiles(ValueError):
    """More files of the source are unusable than the run allows; the text is the table of reasons."""


@dataclass(frozen=True, kw_only=True)
class IndexRow:
    """One input file: accepted with its volume, or rejected with `reason`, `message` and `detail`.

    foreign: rejected, but by its name never meant to be a scan (a .json beside the scans): no sign of damage.
    bytes, crc32c (base64): of the source file, where its listing states them. sha256: of the volume's bytes.
    Shapes and spacings [D, H, W], before (`source_`) and after resizing; None where rejected or unknown.
    """

    id: str
    status: Literal["accepted", "rejected"]
    reason: str | None = None
    message: str | None = None
    detail: str | None = None
    foreign: bool = False
    format: str | None = None
    bytes: int | None = None
    crc32c: str | None = None
    sha256: str | None = None
    source_shape: Shape | None = None
    shape: Shape | None = None
    source_spacing_mm: Spacing | None = None
    spacing_mm: Spacing | None = None
    bits: int | None = None
    vendor: str | None = None
    model: str | None = None
    protocol: str | None = None
    region: str | None = None
    laterality: Laterality | None = None
    volumetric: bool | None = None
    split: Split | None = None

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """From JSON values; entries that are no field (a patient's code) stay behind."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            found = record.get(field.name, field.default)
            values[field.name] = tuple(found) if isinstance(found, list) else found
        return cls(**values)

    def to_json(self) -> str:
        """One line of the index, fields in their order."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class PreparedSet:
    """A prepared set, or one version of it: its rows sorted by id, and dataset.json as `info`."""

    folder: Path
    rows: tuple[IndexRow, ...]
    info: dict[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads the index; raises ValueError where the folder is no finished one."""
        folder = Path(folder)
        index, dataset = folder / INDEX_NAME, folder / DATASET_NAME
        if not index.is_file() or not dataset.is_file():
            raise ValueError(
                f"{folder} is no prepared set, or not a finished one ({INDEX_NAME}, {DATASET_NAME}); make it with "
                f"octfm prepare SCANS --out {folder}"
            )
        text = index.read_text()
        try:
            info = json.loads(dataset.read_text())
        except ValueError as error:
            raise ValueError(f"{dataset} is damaged ({error}); prepare the data again") from None
        if hashlib.sha256(text.encode()).hexdigest() != info.get("index_sha256"):
            raise ValueError(f"{folder}: {INDEX_NAME} is not the one that {DATASET_NAME} names; prepare the data again")
        rows = tuple(IndexRow.from_record(json.loads(line)) for line in text.splitlines())
        return cls(folder, rows, info)

    def accepted(self, split: Split | None = None, select: Selection = EVERYTHING) -> list[IndexRow]:
        """The usable and selected volumes of a split (None: of all), sorted by id."""
        usable = (row for row in self.rows if row.status == "accepted" and split in (None, row.split))
        return [row for row in usable if select.takes(row)]

    def check_usable(self, image_size: Shape, select: Selection) -> None:
        """Raises ValueError unless some volume is selected and all have `image_size` [D, H, W]."""
        made_for = tuple(self.info["settings"]["image_size"])
        if made_for != tuple(image_size):
            raise ValueError(
                f"the volumes in {self.folder} are {list(made_for)}, model.image_size is {list(image_size)}: prepare "
                f"the data for this size, or set model.image_size={list(made_for)}"
            )
        if not self.accepted("train", select):
            vendors = ", ".join(self.info["vendors"]) or "none"
            raise ValueError(
                f"{self.folder} has no volume to train on that {select.describe()} takes; makers there: {vendors}"
            )

    def volume(self, row: IndexRow) -> np.ndarray:
        """The volume of an accepted row: uint8 [D, H, W], mapped read-only from disk. Raises OSError where it is gone,
        ValueError where it is damaged.
        """
        try:
            return np.load(self.folder / self.info["volumes"] / f"{row.id}.npy", mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise ValueError(f"prepared volume {row.id} is damaged ({error}); prepare the data again") from None

    def bad_by_reason(self) -> dict[str, int]:
        """How many files were refused, by reason code, most frequent first."""
        counts = Counter(row.reason for row in self.rows if row.reason is not None)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def bad_fraction(self) -> float:
        """Refused files over all files, foreign ones left out of both."""
        meant = [row for row in self.rows if not row.foreign]
        return sum(row.status == "rejected" for row in meant) / max(len(meant), 1)

    def bad_file_table(self) -> list[str]:
        """Lines for the log: each reason with its count, below it what was found, how often, and in which files."""
        lines = []
        for reason, count in self.bad_by_reason().items():
            lines.append(f"{count:6d}  {reason}")
            ids_by_message: defaultdict[str | None, list[str]] = defaultdict(list)
            for row in self.rows:
                if row.reason == reason:
                    ids_by_message[row.message].append(row.id)
            findings = sorted(ids_by_message.items(), key=lambda item: -len(item[1]))
            for message, ids in findings[:_NAMED_FINDINGS]:
                more = f" and {len(ids) - _NAMED_FILES} more" if len(ids) > _NAMED_FILES else ""
                lines.append(f"        {len(ids)} x {message} In: {', '.join(ids[:_NAMED_FILES])}{more}")
            if len(findings) > _NAMED_FINDINGS:
                lines.append(f"        ... and {len(findings) - _NAMED_FINDINGS} more findings, all in {INDEX_NAME}")
        return lines

    def check_bad_fraction(self, max_bad_fraction: float) -> None:
        """Raises TooManyBadFiles, with the table of reasons, where more than `max_bad_fraction` of the files are
        bad.
        """
        if self.bad_fraction > max_bad_fraction:
            meant = [row for row in self.rows if not row.foreign]
            bad = sum(row.status == "rejected" for row in meant)
            head = (
                f"{bad} of {len(meant)} files ({self.bad_fraction:.1%}) cannot be used; "
                f"data.max_bad_fraction allows {max_bad_fraction:.1%}. Mend the files, or raise the limit:"
            )
            raise TooManyBadFiles("\n".join([head, *self.bad_file_table()]))


def volume_path(folder: Path, file_id: str) -> Path:
    """Where a version keeps the array of a volume."""
    return folder / VOLUMES_NAME / f"{file_id}.npy"
