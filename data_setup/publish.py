"""Finished records -> index.jsonl and dataset.json, of a version and of the prepared set as a whole.

Sorted and without times, so that equal inputs give equal bytes. dataset.json comes last and names the hash of its
index: a reader never sees one version's rows with another's volumes.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_setup.index import DATASET_NAME, INDEX_NAME, VOLUMES_NAME, IndexRow
from data_setup.prepare_file import Record, patient_code
from data_setup.sources import Facts, InputFile
from data_setup.splits import Split, assign_splits

if TYPE_CHECKING:
    from data_setup.prepare import PrepareSettings

FORMAT = 2  # of prepared sets; a new one makes new versions
_DECODERS = ("numpy", "pillow", "pydicom", "pylibjpeg-openjpeg", "pylibjpeg-rle", "pyjpegls", "python-gdcm")


def publish(
    out_dir: Path,
    folder: Path,
    finished: Sequence[tuple[InputFile, Record]],
    settings: "PrepareSettings",
    digest: str,
    key: bytes,
) -> None:
    """Writes index.jsonl and dataset.json into `folder`, a version, and then into `out_dir` for who wants the newest.

    Raises OSError.
    """
    records, unclear = _with_facts(finished, key)
    splits, note = _splits(finished, records, settings)
    rows = [IndexRow.from_record({**record, "split": splits.get(record["id"])}) for record in records]
    dataset = {
        "settings": _without_persons(settings),
        "settings_sha256": digest,
        "versions": {name: found for name in _DECODERS if (found := _version(name)) is not None},
        **counts(rows, unclear),
        "split_note": note,
    }
    write_index(out_dir, folder, rows, dataset)


def write_index(out_dir: Path, folder: Path, rows: Sequence[IndexRow], facts: dict[str, Any]) -> None:
    """index.jsonl of the rows, sorted, and dataset.json of the facts, into the version `folder`, then `out_dir`."""
    index = "".join(row.to_json() + "\n" for row in sorted(rows, key=lambda row: row.id))
    index_sha256 = hashlib.sha256(index.encode()).hexdigest()
    dataset = {"format": FORMAT, "version": facts["settings_sha256"][:12], **facts, "index_sha256": index_sha256}
    for place, volumes in ((folder, VOLUMES_NAME), (out_dir, f"{folder.name}/{VOLUMES_NAME}")):
        text = json.dumps({**dataset, "volumes": volumes}, indent=1) + "\n"
        _write_if_new(place / INDEX_NAME, index)
        _write_if_new(place / DATASET_NAME, text)


def _without_persons(settings: "PrepareSettings") -> dict[str, Any]:
    """The settings; of a range of participants only that there was one."""
    values = asdict(settings)
    values["select"]["participants"] = None if settings.select.participants is None else "a range"
    return values


def _with_facts(finished: Sequence[tuple[InputFile, Record]], key: bytes) -> tuple[list[Record], int]:
    """The records with what the source knows beside the files, and how often the two disagree about the eye.

    The file's own word comes first, but for the person: a manifest's is the one that its splits are about.
    """
    records, unclear = [], 0
    for file, record in finished:
        facts, merged = file.facts, dict(record)
        if record["status"] == "accepted":
            for name in ("vendor", "model", "protocol"):
                merged[name] = record[name] or getattr(facts, name)
            merged["laterality"], disagree = _side(record["laterality"], facts)
            merged["region"] = facts.region
            merged["patient"] = patient_code(key, facts.person) or record["patient"]
            unclear += disagree
        records.append(merged)
    return records, unclear


def _side(found: str | None, facts: Facts) -> tuple[str | None, bool]:
    """R, L, or None where nobody knows or the file and the manifest disagree; and whether they do."""
    if found and facts.laterality and found != facts.laterality:
        return None, True
    return found or facts.laterality, False


def _splits(
    finished: Sequence[tuple[InputFile, Record]], records: list[Record], settings: "PrepareSettings"
) -> tuple[dict[str, Split], str | None]:
    """The source's recommended split where it has one for every accepted volume, else the rule of splits.py."""
    accepted = [record for record in records if record["status"] == "accepted"]
    recommended = {record["id"]: file.facts.split for file, record in finished if record["status"] == "accepted"}
    stated = {volume: split for volume, split in recommended.items() if split is not None}
    if stated and len(stated) == len(recommended):
        return stated, None
    patients = {record["id"]: record["patient"] for record in accepted}
    splits, note = assign_splits(patients, settings.val_fraction, settings.split_seed)
    if stated:
        lacking = len(recommended) - len(stated)
        note = f"{lacking} of {len(recommended)} volumes have no recommended split, so all are split anew by patient"
    return splits, note


def counts(rows: Sequence[IndexRow], unclear: int) -> dict[str, Any]:
    """How many volumes, of whom, of which split, and what is not known of them."""
    accepted = [row for row in rows if row.status == "accepted"]
    return {
        "files": len(rows),
        "accepted": len(accepted),
        "rejected": dict(sorted(Counter(row.reason for row in rows if row.reason is not None).items())),
        "vendors": dict(sorted(Counter(row.vendor or "unknown" for row in accepted).items())),
        "split": {split: sum(row.split == split for row in rows) for split in ("train", "val", "test")},
        "unknown": {
            "laterality": sum(row.laterality is None for row in accepted),
            "laterality_disagrees": unclear,
            "volumetric": sum(row.volumetric is None for row in accepted),
            "spacing_mm": sum(None in (row.spacing_mm or ()) for row in accepted),
        },
    }


def _version(package: str) -> str | None:
    """The installed version of a package that the pixels went through."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _write_if_new(path: Path, text: str) -> None:
    """Writes a text atomically, unless the file holds it already."""
    if path.exists() and path.read_text() == text:
        return
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
