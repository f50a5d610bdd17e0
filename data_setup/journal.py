"""What has been finished, one line per input file, so that a preparation may be killed at any moment.

An input's line is written when all its volumes are on the disk, and is on the disk itself when `append` returns.
"""

import json
import os
from pathlib import Path
from typing import Any, TextIO

from data_setup.errors import StopPreparing

JOURNAL_NAME = "journal.jsonl"

Entry = dict[str, Any]


class Journal:
    """The entries of a folder by the id of their input, {"id", "stamp", "rows"}; the last line of an id counts."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL_NAME
        self._file: TextIO | None = None
        self.entries: dict[str, Entry] = {}
        if self._path.exists():
            whole, _, torn = self._path.read_bytes().rpartition(b"\n")
            if torn:  # by a kill or a full disk
                os.truncate(self._path, len(whole) + 1 if whole else 0)
            self.entries = {entry["id"]: entry for entry in map(json.loads, whole.splitlines())}

    def append(self, entry: Entry) -> None:
        """Adds an entry; raises StopPreparing where it cannot be written."""
        try:
            if self._file is None:
                self._file = open(self._path, "a")  # noqa: SIM115 (open for the journal's life)
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StopPreparing(f"the journal cannot be written: {error.strerror}") from None
        self.entries[entry["id"]] = entry

    def close(self) -> None:
        """Closes the file, if it was opened."""
        if self._file is not None:
            self._file.close()
            self._file = None
