"""What somebody has named on the command line -> what it is: a run, checkpoints of our store, or foreign files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_setup.sources import is_gcs
from oct_foundation.checkpoints.manifest import STATE_FILE, CheckpointName
from pretraining.health.foreign import SUFFIXES
from pretraining.health.training_log import NAME
from pretraining.run_folder import RunFolder

Kind = Literal["run", "checkpoints", "foreign"]
_ALLOWED = (
    "a run folder, a checkpoint of one (step-...), a folder of them, gs://bucket/prefix, a .pt or .safetensors file, "
    f"or a {NAME} with lines 'Epoch 3/50 | Train Loss: ...', alone or beside such files"
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """place: as it was typed, made a path where it is one. log, files: of foreign ones."""

    kind: Kind
    place: str
    log: Path | None = None
    files: tuple[Path, ...] = ()

    @property
    def default_out(self) -> Path:
        """RUN/health; beside a file or a checkpoint `<name>-health`; ./health for a bucket."""
        if is_gcs(self.place):
            return Path("health")
        path = Path(self.place)
        if self.kind == "run" or (path.is_dir() and CheckpointName.of_key(path.name) is None):
            return path / "health"
        return path.with_name(f"{path.name}-health")


def find_target(place: str) -> Target:
    """Raises ValueError, with what is allowed, for what is none of it."""
    if is_gcs(place):
        return Target(kind="checkpoints", place=place)
    path = Path(place)
    if not path.exists():
        raise ValueError(f"{place} does not exist; allowed: {_ALLOWED}")
    if path.is_file():
        return _of_file(path)
    if CheckpointName.of_key(path.resolve().name):
        return Target(kind="checkpoints", place=str(path.resolve()))
    folder = RunFolder(path)
    if any(mark.is_file() for mark in (folder.config, folder.metrics, folder.summary)):
        return Target(kind="run", place=place)
    log = path / NAME
    files = tuple(
        sorted(file for at in (path, path / "checkpoints") for file in at.glob("*") if file.suffix in SUFFIXES)
    )
    if log.is_file() or files:
        return Target(kind="foreign", place=place, log=log if log.is_file() else None, files=files)
    if any(CheckpointName.of_key(inner.name) for inner in path.glob("step-*")):
        return Target(kind="checkpoints", place=place)
    if folder.log.is_file() or (path / "checkpoints").is_dir():
        return Target(kind="run" if folder.log.is_file() else "checkpoints", place=place)
    raise ValueError(f"{place} holds nothing that can be judged; allowed: {_ALLOWED}")


def _of_file(path: Path) -> Target:
    if path.name == STATE_FILE and CheckpointName.of_key(path.resolve().parent.name):
        return Target(kind="checkpoints", place=str(path.resolve().parent))
    if path.suffix in SUFFIXES:
        return Target(kind="foreign", place=str(path), files=(path,))
    return Target(kind="foreign", place=str(path), log=path)
