"""A BIDS folder -> records: each T1w, bold and dwi image with a question about a column of participants.tsv.

Names are read by their entities (sub-, ses-, task-, run-) and their suffix; the bids-specification.readthedocs.io says
which stand where. An index of the whole standard (pybids) is not needed for three globs.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_setup.neuro.conversations import Conversation, ImageRef, Refused
from data_setup.neuro.errors import NeuroFileError, NeuroReason
from data_setup.neuro.modalities import IMAGE_TOKENS, MODALITIES

_PLACES = {"T1": ("anat", "T1w"), "rsfMRI": ("func", "bold"), "dMRI": ("dwi", "dwi")}
_UNKNOWN = ("", "n/a", "N/A", "nan")


@dataclass(frozen=True, kw_only=True)
class BidsSettings:
    """question asks for `column` of participants.tsv; answers: what a value is called, e.g. {F: female}; a value that
    is not listed answers for itself. task: of the bold runs, null: all.
    """

    column: str = "sex"
    question: str = "What is the sex of this person?"
    answers: dict[str, str] = field(default_factory=dict)
    task: str | None = "rest"

    def __post_init__(self) -> None:
        for name in ("column", "question"):
            if not getattr(self, name).strip():
                raise ValueError(f"bids.{name} must not be empty")


def read_bids(root: Path, settings: BidsSettings) -> tuple[list[Conversation], list[Refused]]:
    """One sample an image, paths relative to `root`; images of a person without an answer are refused.

    Raises NeuroFileError(missing, bad_json) where participants.tsv or the column is absent.
    """
    values = _participants(root, settings.column)
    records: list[Conversation] = []
    refused: list[Refused] = []
    for modality, path in _images(root, settings.task):
        entities = entities_of(path.name)
        subject = entities.get("sub", "")
        name = path.name.removesuffix(".gz").removesuffix(".nii")
        value = values.get(f"sub-{subject}", "")
        if value in _UNKNOWN:
            found = f"participants.tsv has no {settings.column} for this person"
            refused.append(Refused(name, NeuroFileError(NeuroReason.NO_ANSWER, found)))
            continue
        records.append(
            Conversation(
                sample_id=name,
                subject_id=subject,
                images=(ImageRef(modality, path.relative_to(root).as_posix()),),
                prompt=f"{IMAGE_TOKENS[modality]}\n{settings.question}",
                answer=settings.answers.get(value, value),
                metadata=entities,
            )
        )
    return records, refused


def entities_of(name: str) -> dict[str, str]:
    """`sub-01_ses-2_T1w.nii.gz` -> {sub: 01, ses: 2, suffix: T1w}."""
    parts = name.split(".", 1)[0].split("_")
    found = dict(part.split("-", 1) for part in parts if "-" in part)
    return {**found, "suffix": parts[-1]}


def _images(root: Path, task: str | None) -> Iterator[tuple[str, Path]]:
    """(modality, path) in the order of modalities, then of names; with sessions or without."""
    for modality in MODALITIES:
        folder, suffix = _PLACES[modality]
        found = [
            path
            for below in ("sub-*", "sub-*/ses-*")
            for ending in ("nii", "nii.gz")
            for path in root.glob(f"{below}/{folder}/sub-*_{suffix}.{ending}")
        ]
        for path in sorted(found):
            if modality == "rsfMRI" and task is not None and entities_of(path.name).get("task") != task:
                continue
            yield modality, path


def _participants(root: Path, column: str) -> dict[str, str]:
    """participant_id (with its sub-) -> value of the column."""
    try:
        with open(root / "participants.tsv", newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t")
            columns = reader.fieldnames or []
            if not {"participant_id", column} <= set(columns):
                found = f"participants.tsv has the columns {', '.join(columns)}; needed: participant_id, {column}"
                raise NeuroFileError(NeuroReason.BAD_JSON, found)
            rows = [row for row in reader if row["participant_id"]]  # a short line has None
            return {f"sub-{row['participant_id'].removeprefix('sub-')}": (row[column] or "").strip() for row in rows}
    except UnicodeDecodeError:
        raise NeuroFileError(NeuroReason.BAD_JSON, "participants.tsv is no text in UTF-8") from None
    except OSError as error:
        raise NeuroFileError(NeuroReason.MISSING, f"no readable participants.tsv ({type(error).__name__})") from None
