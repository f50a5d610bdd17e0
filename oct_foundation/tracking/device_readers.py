"""What the devices of this host do at a moment, as flat rows: its CPU, NVIDIA GPUs and TPU chips.

Utilisation is in percent, memory in bytes; what a device does not tell is left out of its row. NVML's percent says only
that some kernel ran, so throughput belongs beside it.
"""

import glob
import importlib
import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

Row = dict[str, str | int | float]

_SMI_FIELDS = "index,uuid,name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw"
_SMI_TIMEOUT_S = 5.0
_TPU_METRICS_PORT = "8431"  # where libtpu answers unless TPU_RUNTIME_METRICS_PORTS says otherwise


class DeviceUnreadableError(Exception):
    """A device does not answer; it may at the next attempt."""


class Reader(Protocol):
    """Devices of one kind."""

    def read(self) -> list[Row]:
        """A row per device: device, index, name, and what is known of it. Raises DeviceUnreadableError."""
        ...


def open_readers() -> tuple[list[Reader], list[str]]:
    """Readers of the devices that are here, the CPU first, and a sentence for each kind that cannot be read."""
    readers: list[Reader] = [CpuReader()]
    missing = []
    for opened in (open_nvidia, open_tpu):
        try:
            if (reader := opened()) is not None:
                readers.append(reader)
        except DeviceUnreadableError as error:
            missing.append(str(error))
    return readers, missing


class CpuReader:
    """utilisation: of all cores together, since the last read. process_utilisation: of this process without its
    children, 100 for each core that it keeps busy. memory_used: of the machine; rss: of this process.

    Outside Linux there is no /proc, and only the process's utilisation, the memory's size and the load are known.
    """

    def __init__(self) -> None:
        self._ticks, self._process, self._at = _machine_ticks(), time.process_time(), time.monotonic()

    def read(self) -> list[Row]:
        """One row."""
        ticks, process, at = _machine_ticks(), time.process_time(), time.monotonic()
        busy, total = (ticks[0] - self._ticks[0], ticks[1] - self._ticks[1]) if ticks and self._ticks else (0, 0)
        busy = min(max(busy, 0), total)  # the kernel's counts of idle time may go back a little
        own = 100 * (process - self._process) / (at - self._at) if at > self._at else None
        self._ticks, self._process, self._at = ticks, process, at
        used, memory = _machine_memory()
        found = {
            "cores": os.cpu_count(),
            "utilisation": 100 * busy / total if total > 0 else None,
            "process_utilisation": own,
            "memory_used": used,
            "memory_total": memory,
            "rss": _resident_bytes(),
            "load": _load(),
        }
        return [{"device": "cpu", "index": 0, "name": platform.machine(), **_known(found)}]


def open_nvidia() -> Reader | None:
    """NVML where its package (nvidia-ml-py) is installed, else nvidia-smi; None where there is no NVIDIA GPU.

    Raises DeviceUnreadableError where there is one that neither can read.
    """
    try:
        return NvmlReader(importlib.import_module("pynvml"))
    except (ImportError, DeviceUnreadableError) as error:
        if shutil.which("nvidia-smi"):
            return SmiReader()
        if Path("/dev/nvidiactl").exists():
            text = f"GPUs are not sampled: {error}; pip install nvidia-ml-py, or put nvidia-smi on the PATH"
            raise DeviceUnreadableError(text) from None
        return None


class NvmlReader:
    """NVIDIA's own library; about 0.1 ms a value. Raises DeviceUnreadableError where it finds no driver."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        try:
            nvml.nvmlInit()
            self._handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:
            raise DeviceUnreadableError(f"NVML: {error}") from None

    def read(self) -> list[Row]:
        """A row per GPU that CUDA_VISIBLE_DEVICES leaves to this process."""
        ours = [(index, handle) for index, handle in enumerate(self._handles) if self._is_ours(index, handle)]
        rows = [row for index, handle in ours if (row := self._row(index, handle))]
        if ours and not rows:
            raise DeviceUnreadableError(f"NVML: none of {len(ours)} GPUs answers")
        return rows

    def _is_ours(self, index: int, handle: Any) -> bool:
        return _is_visible(index, _text(self._asked(lambda: self._nvml.nvmlDeviceGetUUID(handle))))

    def _row(self, index: int, handle: Any) -> Row | None:
        """None where the GPU says nothing at all."""
        nvml = self._nvml
        memory = self._asked(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        busy = self._asked(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        power = self._asked(lambda: nvml.nvmlDeviceGetPowerUsage(handle))  # milliwatts
        found = {
            "utilisation": busy and busy.gpu,
            "memory_used": memory and memory.used,
            "memory_total": memory and memory.total,
            "temperature_c": self._asked(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            "power_w": power and power / 1000,
        }
        if not (values := _known(found)):
            return None
        name = _text(self._asked(lambda: nvml.nvmlDeviceGetName(handle)))
        return {"device": f"cuda:{index}", "index": index, "name": name, **values}

    def _asked(self, call: Callable[[], Any]) -> Any:
        """None for what a GPU does not support: parts of one (MIG) have no utilisation."""
        try:
            return call()
        except self._nvml.NVMLError:
            return None


class SmiReader:
    """nvidia-smi as a process: some 50 ms, beside training; for machines without the package."""

    def read(self) -> list[Row]:
        """As NvmlReader has it."""
        command = ["nvidia-smi", f"--query-gpu={_SMI_FIELDS}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            raise DeviceUnreadableError(f"nvidia-smi: {error}") from None
        lines = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
        return [_smi_row(parts) for parts in lines if len(parts) == 8 and _is_visible(int(parts[0]), parts[1])]


def _smi_row(parts: list[str]) -> Row:
    """A line of nvidia-smi; its memory is in MiB, and what it does not know is [N/A]."""
    index, name = int(parts[0]), parts[2]
    utilisation, used, total, temperature, power = map(_number, parts[3:])
    found = {
        "utilisation": utilisation,
        "memory_used": None if used is None else int(used * 2**20),
        "memory_total": None if total is None else int(total * 2**20),
        "temperature_c": temperature,
        "power_w": power,
    }
    return {"device": f"cuda:{index}", "index": index, "name": name, **_known(found)}


def open_tpu() -> Reader | None:
    """Through the package tpu-info; None where there is no TPU. Raises DeviceUnreadableError where it is unreadable."""
    if not (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")):
        return None
    try:
        return TpuReader()
    except ImportError as error:
        raise DeviceUnreadableError(f"TPU chips are not sampled: {error}; pip install tpu-info") from None


class TpuReader:
    """What libtpu tells tpu-info through its local port; it knows no temperature.

    libtpu.sdk.tpumonitoring would need no package, but holds Python's lock while it waits, for 25 s and more without an
    answer (measured with libtpu 0.0.21): training would stand still.
    """

    def __init__(self) -> None:
        self._metrics = importlib.import_module("tpu_info.metrics")
        self._refusals = (importlib.import_module("grpc").RpcError, AssertionError)
        self._chip, _ = importlib.import_module("tpu_info.device").get_local_chips()
        if self._chip is None:
            raise DeviceUnreadableError("TPU chips are not sampled: tpu-info finds none on this machine's bus")
        self._ports = os.environ.get("TPU_RUNTIME_METRICS_PORTS", _TPU_METRICS_PORT).split(",")

    def read(self) -> list[Row]:
        """A row per device of every chip; of processes with a port each, all."""
        rows: list[Row] = []
        try:
            for port in self._ports:
                rows += [self._row(usage) for usage in self._metrics.get_chip_usage(self._chip, f"localhost:{port}")]
        except self._refusals as error:
            raise DeviceUnreadableError(f"libtpu does not answer ({type(error).__name__})") from None
        return rows

    def _row(self, usage: Any) -> Row:
        found = {
            "utilisation": usage.duty_cycle_pct,
            "memory_used": usage.memory_usage,
            "memory_total": usage.total_memory,
        }
        index = usage.device_id
        return {"device": f"tpu:{index}", "index": index, "name": self._chip.value.name, **_known(found)}


def _is_visible(index: int, uuid: str) -> bool:
    """By number or by the beginning of the UUID. Names of parts (MIG) tell nothing of the whole: all count then."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None or "MIG-" in wanted:
        return True
    names = [name.strip() for name in wanted.split(",")]
    return str(index) in names or any(name.startswith("GPU-") and uuid.startswith(name) for name in names)


def _machine_ticks() -> tuple[int, int] | None:
    """Busy and all ticks of all cores since the start of the machine; None outside Linux."""
    try:
        with open("/proc/stat", "rb") as file:
            ticks = [int(part) for part in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    idle = sum(ticks[3:5])  # idle, and waiting for the disk
    return sum(ticks) - idle, sum(ticks)


def _machine_memory() -> tuple[int | None, int | None]:
    """Bytes in use, which caches are not, and in all."""
    found: dict[str, int] = {}
    with suppress(OSError, ValueError), open("/proc/meminfo") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                found[name] = int(value.split()[0]) * 1024
    if len(found) == 2:
        return found["MemTotal"] - found["MemAvailable"], found["MemTotal"]
    with suppress(ValueError, OSError):
        return None, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None, None


def _load() -> float | None:
    """Processes that run or wait, over the last minute."""
    with suppress(OSError):
        return os.getloadavg()[0]
    return None


def _resident_bytes() -> int | None:
    with suppress(OSError, ValueError, IndexError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def _known(found: dict[str, Any]) -> Row:
    """What is a finite number, to two places."""
    numbers = {name: value for name, value in found.items() if value is not None and math.isfinite(value)}
    return {name: round(value, 2) if isinstance(value, float) else value for name, value in numbers.items()}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _text(value: Any) -> str:
    """Older versions of NVML's package give bytes."""
    return value.decode() if isinstance(value, bytes) else str(value or "")
