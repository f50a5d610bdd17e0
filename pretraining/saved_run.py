"""RUN as people type it (a run folder, its checkpoints, one checkpoint, a bucket) -> the store of its checkpoints."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from oct_foundation.checkpoints.location import CheckpointLocation, LocalPath, parse_ckpt_dir
from oct_foundation.checkpoints.manifest import CheckpointName
from oct_foundation.checkpoints.opening import open_store
from oct_foundation.checkpoints.store import CheckpointStore
from pretraining.run_folder import RunFolder


class SavedRun(NamedTuple):
    """The checkpoints, the run folder around them where that is on this machine, and the one checkpoint meant."""

    store: CheckpointStore
    folder: Path | None
    name: CheckpointName | None


def open_run(run: str) -> SavedRun:
    """Opens what `run` names; nothing is read yet. A run folder may keep its checkpoints elsewhere: config.yaml says.

    Raises ValueError where there is no such place.
    """
    location = parse_ckpt_dir(run, key="RUN")
    if location is None:
        raise ValueError(f"{run!r} names no run; give a run folder, or gs://bucket/prefix")
    if not isinstance(location, LocalPath):
        return SavedRun(open_store(location), None, None)
    path = location.path
    if not path.is_dir():
        raise ValueError(f"{path} is no folder; give a run folder, or gs://bucket/prefix")
    if name := CheckpointName.of_key(path.name):
        return SavedRun(open_store(LocalPath(path=path.parent)), _run_around(path.parent), name)
    if (path / "checkpoints").is_dir():
        return SavedRun(open_store(LocalPath(path=path / "checkpoints")), _run_in(path), None)
    if (elsewhere := _configured_place(path)) is not None:
        return SavedRun(open_store(elsewhere), path, None)
    return SavedRun(open_store(location), _run_around(path), None)


def _run_in(folder: Path) -> Path | None:
    return folder if RunFolder(folder).config.is_file() else None


def _run_around(checkpoints: Path) -> Path | None:
    """The run folder that a folder of checkpoints lies in."""
    return _run_in(checkpoints.parent)


def _configured_place(folder: Path) -> CheckpointLocation | None:
    """checkpoint.ckpt_dir of the run's config.yaml; None where there is none."""
    path = RunFolder(folder).config
    if not path.is_file():
        return None
    try:
        config: Any = yaml.safe_load(path.read_text())
        return parse_ckpt_dir(config["checkpoint"]["ckpt_dir"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no configuration of a run ({type(error).__name__}); name its checkpoints"
        ) from None
