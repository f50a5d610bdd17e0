"""What the devices did during a run: a thread appends rows to devices.jsonl, and a function sums them up.

It must never cost a run anything: a device that does not answer or a disk that is full is one warning.
"""

import json
import logging
import math
import os
import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from oct_foundation.tracking.device_readers import DeviceUnreadableError, Reader, Row, open_readers

FILE = "devices.jsonl"
# A last sample may be waiting for nvidia-smi; nothing is lost if it is not waited for.
JOIN_TIMEOUT_S = 6.0
_log = logging.getLogger(__name__)


class DeviceSampler:
    """Samples every `every_s` seconds from `with` on, and once more at its end, so that a short run has a row too.

    Rows: time (UTC), host, device (cpu, cuda:0, tpu:0 ...), index, name, and what its reader knows. opened: gives the
    readers and what cannot be read; called in the thread, since drivers may take seconds. Raises ValueError.
    """

    def __init__(
        self,
        path: Path,
        *,
        every_s: float = 10.0,
        opened: Callable[[], tuple[Sequence[Reader], Sequence[str]]] = open_readers,
    ) -> None:
        if not every_s > 0:
            raise ValueError(f"every_s is {every_s}; seconds above 0 are allowed")
        self._path, self._every_s, self._opened = path, every_s, opened
        self._stopping = threading.Event()
        self._warned: set[str] = set()
        self._thread = threading.Thread(target=self._run, daemon=True, name="device-sampler")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes the last sample and ends the thread; a second call is free."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_TIMEOUT_S)

    def _run(self) -> None:
        readers, missing = self._opened()
        for sentence in missing:
            self._warn(sentence, sentence)
        while not self._stopping.wait(self._every_s):
            self._sample(readers)
        self._sample(readers)

    def _sample(self, readers: Sequence[Reader]) -> None:
        rows: list[Row] = []
        for reader in readers:
            try:
                rows += reader.read()
            except DeviceUnreadableError as error:
                self._warn(type(reader).__name__, f"{error}; it will be asked again")
        stamp: Row = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "host": platform.node()}
        try:
            _append(self._path, [stamp | row for row in rows])
        except OSError as error:
            self._warn("disk", f"{self._path} lacks samples of devices: {error.strerror}. Training goes on")

    def _warn(self, cause: str, text: str) -> None:
        """Once for each cause."""
        if cause not in self._warned:
            self._warned.add(cause)
            _log.warning("%s", text)


def _append(path: Path, rows: Sequence[Row]) -> None:
    """All rows in whole lines, behind those of earlier starts, or none of them and OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:  # a buffer would try once more when the file is closed
        end = file.seek(0, os.SEEK_END)
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
        if end:
            file.seek(-1, os.SEEK_END)
            lines = lines if file.read(1) == b"\n" else b"\n" + lines  # a kill has cut the last line
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


def read_samples(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a devices.jsonl; none without a file, and none for lines that a kill has cut."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            with suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("device"), str):
                    yield row


@dataclass(frozen=True, kw_only=True)
class DeviceUse:
    """What a device did over num_samples samples, from `first` to `last` (UTC). Percent, bytes, degrees Celsius, watts;
    None where no sample knows.
    """

    host: str
    device: str
    name: str
    num_samples: int
    first: str
    last: str
    mean_utilisation: float | None
    max_utilisation: float | None
    max_memory: float | None
    memory_total: float | None
    max_temperature_c: float | None
    max_power_w: float | None


def summarise(rows: Iterable[Mapping[str, Any]]) -> list[DeviceUse]:
    """One for each device of each host, in the order in which they come."""
    by_device: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_device.setdefault((str(row.get("host", "")), str(row["device"])), []).append(row)
    return [_use(host, device, found) for (host, device), found in by_device.items()]


def _use(host: str, device: str, rows: Sequence[Mapping[str, Any]]) -> DeviceUse:
    busy = _numbers(rows, "utilisation")
    times = sorted(str(row["time"]) for row in rows if "time" in row)
    return DeviceUse(
        host=host,
        device=device,
        name=str(rows[-1].get("name", "")),
        num_samples=len(rows),
        first=times[0] if times else "",
        last=times[-1] if times else "",
        mean_utilisation=math.fsum(busy) / len(busy) if busy else None,
        max_utilisation=max(busy, default=None),
        max_memory=max(_numbers(rows, "memory_used"), default=None),
        memory_total=max(_numbers(rows, "memory_total"), default=None),
        max_temperature_c=max(_numbers(rows, "temperature_c"), default=None),
        max_power_w=max(_numbers(rows, "power_w"), default=None),
    )


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The finite values of a field."""
    values = (row.get(name) for row in rows)
    return [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
