"""Where the scans come from: a folder, or the phantoms that the package writes itself -> a sorted list of files.

Every regular file counts as an input and will be judged, so that a .vol or a screenshot is named instead of skipped.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from data_setup.phantom import PhantomSettings

# Phantoms show nobody: a fixed key gives their files the same ids, order and split on every machine.
_PHANTOM_KEY = b"octfm phantoms: no person stands behind these files"


@dataclass(frozen=True, order=True)
class InputFile:
    """A file to be judged: where it lies, and its POSIX path below the source, from which its keyed id is made."""

    key: str
    path: Path


class InputSource(Protocol):
    """A list of files, and the key for their ids (None: a random one is kept beside the prepared cache)."""

    @property
    def key(self) -> bytes | None:
        """The key of the ids where it may be public."""
        ...

    def files(self) -> list[InputFile]:
        """All files, sorted by their key; raises ValueError where there are none."""
        ...


@dataclass(frozen=True)
class DirectorySource:
    """All regular files below `root`, links to files included (a dangling one is a missing file), links to folders
    not.

    Names that begin with `._` are left out: macOS writes them beside each file, and AI-READI ships some.
    """

    root: Path
    key: bytes | None = field(default=None, init=False)

    def files(self) -> list[InputFile]:
        """Sorted by the path below root; raises ValueError where the folder is absent or holds no file."""
        root = Path(self.root)
        if not root.is_dir():
            raise ValueError(f"data.root {root} is no folder; give the folder that holds the DICOM files, or mount it")
        found = [
            InputFile(path.relative_to(root).as_posix(), path)
            for folder, _, names in os.walk(root)
            for name in names
            if not name.startswith("._") and ((path := Path(folder, name)).is_file() or path.is_symlink())
        ]
        if not found:
            raise ValueError(f"data.root {root} holds no file; give the folder that holds the DICOM files")
        return sorted(found)


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
        return sorted(InputFile(path.relative_to(folder).as_posix(), path) for path in paths)
