"""What W&B has of a run on this disk: the rows in its own offline files, whole or cut short by a kill.

A row handed to W&B is on disk a second or so later; after a kill only the file says which ones are.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The file is a log in LevelDB's format: 7 bytes in front, then blocks of 32 KiB with records that may span blocks.
_FRONT_BYTES, _BLOCK_BYTES, _HEADER = 7, 32768, struct.Struct("<IHB")
_WHOLE, _FIRST, _LAST = 1, 2, 4


def run_files(folder: Path) -> list[Path]:
    """The offline files below a run folder, oldest first: one per start of the run."""
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.parent.name)


def records(path: Path) -> Iterator[Any]:
    """The protobuf records of one file; a record that a kill has cut off is left out."""
    from wandb.proto import wandb_internal_pb2

    data, position, held = path.read_bytes(), _FRONT_BYTES, b""
    while position < len(data):
        left = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left < _HEADER.size:
            position += left  # padding at the end of a block
            continue
        if position + _HEADER.size > len(data):
            return
        _checksum, size, kind = _HEADER.unpack_from(data, position)
        position += _HEADER.size
        if position + size > len(data):
            return
        part = data[position : position + size]
        position += size
        held = part if kind in (_WHOLE, _FIRST) else held + part
        if kind in (_WHOLE, _LAST):
            yield wandb_internal_pb2.Record.FromString(held)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The logged rows, without W&B's own fields."""
    found = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found.append({name: value for name, value in row.items() if not name.startswith("_")})
    return found


def newest_row(folder: Path, run_id: str) -> tuple[int, frozenset[str]]:
    """The largest step that the files of `run_id` hold, and the names logged at it; (0, none) without any."""
    step, names = 0, frozenset[str]()
    for path in run_files(folder):
        if path.name != f"run-{run_id}.wandb":
            continue
        for row in rows_of(path):
            if row["step"] > step:
                step, names = row["step"], frozenset()
            if row["step"] == step:
                names |= row.keys()
    return step, names
