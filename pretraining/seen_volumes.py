"""An encoder and volumes -> which of them it was pretrained on: scores on those may be too good.

No label took part in pretraining, yet features of volumes that were trained on are features of old acquaintances. The
run's own prepared set knows its train split; where it is not at hand nobody knows, and that is said.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_setup.index import DATASET_NAME, IndexRow, PreparedSet
from data_setup.selection import Selection
from data_setup.sources import is_gcs
from pretraining.run_folder import RunFolder

if TYPE_CHECKING:
    from pretraining.encoder_file import SavedEncoder

log = logging.getLogger("octfm")
_DECISIVE = ("image_size", "fit", "val_fraction", "split_seed")  # settings that tell a run's set from others beside it


@dataclass(frozen=True)
class TrainedOn:
    """The prepared set of a run, and the volumes of its train split that the run has taken."""

    prepared: PreparedSet
    rows: list[IndexRow]

    @classmethod
    def of(cls, saved: "SavedEncoder") -> "TrainedOn | None":
        """None where the set lies elsewhere: an export, a bucket, a run folder that was moved without its data."""
        config = saved.run_config
        for folder in _places(config.get("data", {}), saved.run_folder):
            prepared = _loaded(folder)
            if prepared is not None and _fits(prepared, config):
                return cls(prepared, prepared.accepted("train", _selection(config)))
        return None

    def is_set(self, prepared: PreparedSet) -> bool:
        """Whether `prepared` is the very set of the run, or a copy of it."""
        return bool(prepared.info["index_sha256"] == self.prepared.info["index_sha256"])

    def has_seen(self, rows: Sequence[IndexRow], fit: str) -> list[bool]:
        """Of each volume whether it was trained on; fit: how `rows` were brought to the run's size.

        Equal voxels decide. Where they cannot be compared (another fit, no hash on file) equal ids do.
        """
        comparable = fit == self.prepared.info["settings"]["fit"]
        hashes = {row.sha256 for row in self.rows if row.sha256 is not None}
        ids = {row.id for row in self.rows}
        return [row.sha256 in hashes if comparable and row.sha256 and hashes else row.id in ids for row in rows]


def told(num_seen: int | None, total: int, which: str = "") -> str:
    """A sentence for people; num_seen: of `total` volumes, None where nobody knows; which: a word before `volumes`."""
    if num_seen is None:
        return f"Nothing here says which volumes the encoder was pretrained on: the {total} {which}volumes may be some."
    if num_seen:
        return f"The encoder was pretrained on {num_seen} of the {total} {which}volumes: scores may be too good."
    return f"The encoder was pretrained on none of the {total} {which}volumes."


def _places(data: dict[str, Any], run_folder: Path | None) -> Iterator[Path]:
    """Where the prepared set of a run may lie, the likeliest first; every version of a set has a folder of its own."""
    root, cache = data.get("root"), data.get("cache_dir")
    if data.get("source") == "prepared" and root and not is_gcs(root):
        yield Path(root)
    for folder in (Path(cache) if cache else None, RunFolder(run_folder).prepared if run_folder else None):
        if folder is not None and folder.is_dir():
            yield folder
            yield from sorted(child for child in folder.iterdir() if child.is_dir())


def _loaded(folder: Path) -> PreparedSet | None:
    """None for an unfinished or damaged set: whether it was trained on cannot be read there."""
    if not (folder / DATASET_NAME).is_file():
        return None
    try:
        return PreparedSet.load(folder)
    except ValueError as error:
        log.warning("%s", error)
        return None


def _fits(prepared: PreparedSet, config: dict[str, Any]) -> bool:
    """Whether a set was made with the settings of the run, as far as both name them; one given as `prepared` was."""
    data, model = config.get("data", {}), config.get("model", {})
    wanted = {"image_size": model.get("image_size")}
    if data.get("source") != "prepared":
        wanted |= {"fit": data.get("fit"), "val_fraction": data.get("val_fraction"), "split_seed": config.get("seed")}
    found = prepared.info["settings"]
    return all(_plain(found.get(name)) == _plain(wanted[name]) for name in _DECISIVE if wanted.get(name) is not None)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _selection(config: dict[str, Any]) -> Selection:
    """The run's data.select; what only a manifest knows was decided when the set was made."""
    known = {field.name for field in fields(Selection)} - {"participants"}
    found = config.get("data", {}).get("select") or {}
    return Selection(**{name: value for name, value in found.items() if name in known})
