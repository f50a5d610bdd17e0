"""probes/<step>-<data>.json of a run -> its tables of scores, each with the data and the weights that it is about.

Files named <step>.json are of an earlier version and read alike.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NAME = re.compile(r"(\d+)(?:-(.+))?\.json")


@dataclass(frozen=True, kw_only=True)
class ProbeFile:
    """The rows of one file. slug: names data, split and labels in the file's name, "" in an earlier version's."""

    step: int
    slug: str
    rows: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """Of the file."""
        return f"{self.step}-{self.slug}.json" if self.slug else f"{self.step}.json"

    @property
    def data(self) -> str:
        """What was probed on, as it was called by; "" where the file does not say."""
        return str(self._first("data") or "")

    @property
    def split(self) -> str:
        """Which of its volumes; "" for all."""
        found = str(self._first("split") or "all")
        return "" if found == "all" else found

    @property
    def acquaintance(self) -> str:
        """Whether the encoder was pretrained on these volumes, in words; "" where nothing has to be said."""
        return str(self._first("acquaintance") or "")

    @property
    def num_seen(self) -> int:
        """Volumes that the encoder was pretrained on, as far as anybody knows."""
        found = self._first("seen_in_pretraining")
        return found if isinstance(found, int) else 0

    def _first(self, key: str) -> Any:
        return self.rows[0].get(key) if self.rows else None


def read_probes(folder: Path, notes: list[str]) -> tuple[ProbeFile, ...]:
    """Of all steps and data, the oldest step first; a file that is torn, or named otherwise, becomes a note."""
    found = []
    for path in sorted(folder.glob("*.json")):
        name = _NAME.fullmatch(path.name)
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            table = None
        if name is None or not isinstance(table, list):
            notes.append(f"probes/{path.name} cannot be read and is left out.")
            continue
        rows = [row for row in table if isinstance(row, dict)]
        found.append(ProbeFile(step=int(name[1]), slug=name[2] or "", rows=rows))
    return tuple(sorted(found, key=lambda file: (file.step, file.slug)))


def newest_of_each(files: Sequence[ProbeFile]) -> list[ProbeFile]:
    """For every data set the table of its newest step."""
    newest = {file.slug: file for file in sorted(files, key=lambda file: file.step)}
    return [newest[slug] for slug in sorted(newest)]
