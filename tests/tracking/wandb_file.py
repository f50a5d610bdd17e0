"""Reads what wandb has written to disk: the files of offline runs, whole or cut short by a kill."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def run_files(folder: Path) -> list[Path]:
    """The .wandb files of a run folder, oldest first."""
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_ctime_ns)


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: 7 bytes of header, then chunks in blocks of 32 KiB, as LevelDB's log."""
    from wandb.proto import wandb_internal_pb2 as pb

    data, position, held = path.read_bytes(), 7, b""
    while position < len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        if position + 7 + size > len(data):
            return  # the writer was killed
        part, position = data[position + 7 : position + 7 + size], position + 7 + size
        held = part if kind in (1, 2) else held + part  # 1 whole, 2 first, 3 middle, 4 last
        if kind in (1, 4):
            yield pb.Record.FromString(held)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The logged rows, without wandb's own fields."""
    found = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found.append({name: value for name, value in row.items() if not name.startswith("_")})
    return found
