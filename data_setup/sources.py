"""Where the scans come from -> a sorted list of inputs, each with what its listing states of it.

Every regular file of a folder or a bucket counts as an input and will be judged, so that a .vol or a screenshot is
named instead of skipped. Manifests and lists: tables.py. Buckets: gcs.py.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from data_setup.splits import Split
from data_setup.volume import Laterality

if TYPE_CHECKING:
    from data_setup.phantom import PhantomSettings

GCS_SCHEME = "gs://"
SourceKind = Literal["phantom", "directory", "manifest", "list", "prepared"]

# Phantoms show nobody: a fixed key gives their files the same ids, order and split on every machine.
_PHANTOM_KEY = b"octfm phantoms: no person stands behind these files"


@dataclass(frozen=True)
class Stated:
    """What a listing says of a file, None where it says nothing: bytes, crc32c in base64, a bucket's generation."""

    bytes: int | None = None
    crc32c: str | None = None
    generation: str | None = None


@dataclass(frozen=True)
class Facts:
    """What a manifest or a list says of a file, None where it says nothing. `person` never leaves the parent."""

    person: str | None = None
    split: Split | None = None
    vendor: str | None = None
    model: str | None = None
    protocol: str | None = None
    region: str | None = None
    laterality: Laterality | None = None


@dataclass(frozen=True)
class InputFile:
    """A file to be judged.

    key: its POSIX path below the source, from which its keyed id is made. location: a path, or gs://bucket/name; None
    where a manifest names no file, or one that its bucket does not list.
    """

    key: str
    location: str | None
    stated: Stated = Stated()
    facts: Facts = Facts()


class InputSource(Protocol):
    """A list of files, and the key for their ids (None: a random one is kept beside the prepared set)."""

    @property
    def key(self) -> bytes | None:
        """The key of the ids where it may be public."""
        ...

    def files(self) -> list[InputFile]:
        """All files, sorted by their key; raises ValueError where there are none."""
        ...


def is_gcs(location: str) -> bool:
    """True for gs://bucket/name."""
    return location.startswith(GCS_SCHEME)


@dataclass(frozen=True)
class DirectorySource:
    """All files below `root`, a folder or gs://bucket/prefix. On disk links to files count (a dangling one is a
    missing file), links to folders do not.

    Names that begin with `._` are left out: macOS writes them beside each file, and AI-READI ships some.
    """

    root: str | Path
    key: bytes | None = field(default=None, init=False)

    def files(self) -> list[InputFile]:
        """Sorted by the path below root; raises ValueError where the folder is absent or holds no file."""
        root = str(self.root)
        if is_gcs(root):
            from data_setup.gcs import list_files

            found = list_files(root)
        else:
            found = _files_on_disk(Path(root))
        if not found:
            raise ValueError(f"data.root {root} holds no file; give the folder that holds the DICOM files")
        return sorted(found, key=lambda file: file.key)

    def holds(self, folder: Path) -> bool:
        """True if a folder on disk lies inside root."""
        return not is_gcs(str(self.root)) and folder.resolve().is_relative_to(Path(self.root).resolve())


def _files_on_disk(root: Path) -> list[InputFile]:
    if not root.is_dir():
        raise ValueError(f"data.root {root} is no folder; give the folder that holds the DICOM files, or mount it")
    return [
        InputFile(path.relative_to(root).as_posix(), str(path))
        for folder, _, names in os.walk(root)
        for name in names
        if not is_shadow(name) and ((path := Path(folder, name)).is_file() or path.is_symlink())
    ]


def is_shadow(name: str) -> bool:
    """True for the files that macOS writes beside others."""
    return name.rsplit("/", 1)[-1].startswith("._")


@dataclass(frozen=True)
class PhantomSource:
    """Phantoms with known anatomy, written below `folder` when they are first asked for."""

    folder: Path
    settings: "PhantomSettings"
    key: bytes | None = field(default=_PHANTOM_KEY, init=False, repr=False)

    def files(self) -> list[InputFile]:
        """The files of these settings, sorted by the path below the folder."""
        from data_setup.phantom import write_phantoms

        folder = Path(self.folder)
        paths = write_phantoms(folder, self.settings)
        found = [InputFile(path.relative_to(folder).as_posix(), str(path)) for path in paths]
        return sorted(found, key=lambda file: file.key)
