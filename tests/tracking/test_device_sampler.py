"""Samples of devices: rows of a real machine, a thread that stops, disks and drivers that refuse, and the sums."""

import json
import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from oct_foundation.tracking import device_readers
from oct_foundation.tracking.device_readers import (
    CpuReader,
    DeviceUnreadableError,
    Reader,
    Row,
    SmiReader,
    open_nvidia,
    open_readers,
)
from oct_foundation.tracking.device_sampler import DeviceSampler, read_samples, summarise

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="NO /proc: the CPU's figures were NOT tested")


class Clock:
    """A device that is never busy and counts how often it was asked; None: it refuses."""

    def __init__(self, answers: Sequence[Row | None] = ()) -> None:
        self.asked, self._answers = 0, answers

    def read(self) -> list[Row]:
        self.asked += 1
        answer = self._answers[self.asked - 1] if self.asked <= len(self._answers) else {"utilisation": 0.0}
        if answer is None:
            raise DeviceUnreadableError("asleep")
        return [{"device": "clock", "index": 0, "name": "clock", **answer}]


def only(*readers: Reader):
    return lambda: (readers, [])


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@LINUX
def test_a_run_leaves_rows_of_this_machine_in_utc(tmp_path):
    path, before, begin = tmp_path / "run" / "devices.jsonl", datetime.now(UTC), time.monotonic()
    with DeviceSampler(path, every_s=0.05):
        while time.monotonic() < begin + 0.4 or len(list(read_samples(path))) < 3:
            sum(range(1000))
    rows = [row for row in read_samples(path) if row["device"] == "cpu"]
    assert len(rows) <= (time.monotonic() - begin) / 0.05 + 1, "more than one each 0.05 s, and the last"
    for row in rows:
        assert before.timestamp() - 1 < datetime.fromisoformat(row["time"]).timestamp() <= time.time()
        assert row["time"].endswith("+00:00")
        assert 0 < row["rss"] < row["memory_used"] <= row["memory_total"]
        assert 0 <= row.get("utilisation", 0) <= 100
    busy = sorted(row["process_utilisation"] for row in rows[1:-1])
    assert busy[len(busy) // 2] > 5  # this process did nothing but count; a neighbour may have had the core
    rss_now = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert rows[-1]["rss"] == pytest.approx(rss_now, rel=0.2)


@LINUX
def test_the_machines_utilisation_is_what_proc_stat_says(monkeypatch):
    ticks = iter([(100, 1000), (175, 1100)])
    monkeypatch.setattr(device_readers, "_machine_ticks", lambda: next(ticks))
    assert CpuReader().read()[0]["utilisation"] == 75.0


def test_a_sample_of_the_cpu_costs_less_than_a_millisecond():
    reader, costs = CpuReader(), []
    for _ in range(50):
        start = time.thread_time()
        reader.read()
        costs.append(time.thread_time() - start)
    assert min(costs) < 1e-3  # what it costs; the others were disturbed


def test_the_thread_stops_promptly_and_samples_a_last_time(tmp_path):
    clock = Clock()
    sampler = DeviceSampler(tmp_path / "d.jsonl", every_s=3600, opened=only(clock))
    with sampler:
        start = time.monotonic()
    assert time.monotonic() - start < 100
    assert clock.asked == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "device-sampler"]
    sampler.close()
    assert clock.asked == 1


def test_a_sampler_that_never_started_can_be_closed(tmp_path):
    DeviceSampler(tmp_path / "d.jsonl").close()
    assert not (tmp_path / "d.jsonl").exists()


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_an_interval_that_is_none_is_refused(tmp_path, seconds):
    with pytest.raises(ValueError, match="every_s"):
        DeviceSampler(tmp_path / "d.jsonl", every_s=seconds)


def test_a_later_start_appends_and_a_line_that_a_kill_cut_costs_only_itself(tmp_path):
    path = tmp_path / "d.jsonl"
    for number in (1, 2):
        with DeviceSampler(path, every_s=3600, opened=only(Clock([{"utilisation": number}]))):
            pass
        with path.open("a") as file:
            file.write('{"device": "clo')
    assert [row["utilisation"] for row in read_samples(path)] == [1, 2]
    assert path.read_text().count("\n") == 3


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_warning_and_no_half_line_and_sampling_goes_on_when_it_has_room(tmp_path, caplog):
    path, clock = tmp_path / "d.jsonl", Clock()
    with DeviceSampler(path, every_s=0.01, opened=only(clock)):
        with largest_file(20):
            while clock.asked < 4:
                time.sleep(0.005)
        asked = clock.asked
        while clock.asked < asked + 3:
            time.sleep(0.005)
    assert len(list(read_samples(path))) >= 2
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert len(warnings(caplog)) == 1
    assert "lacks samples" in warnings(caplog)[0]


def test_a_place_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    clock = Clock()
    with DeviceSampler(tmp_path / "file" / "d.jsonl", every_s=0.01, opened=only(clock)):
        while clock.asked < 3:
            time.sleep(0.005)
    assert len(warnings(caplog)) == 1


def test_a_device_that_refuses_is_one_warning_and_the_others_go_on(tmp_path, caplog):
    path, moody = tmp_path / "d.jsonl", Clock([None, None, {"utilisation": 7}])
    with DeviceSampler(path, every_s=0.01, opened=only(CpuReader(), moody)):
        while moody.asked < 4:
            time.sleep(0.005)
    rows = list(read_samples(path))
    assert next(row["utilisation"] for row in rows if row["device"] == "clock") == 7
    assert sum(row["device"] == "cpu" for row in rows) == moody.asked
    assert warnings(caplog) == ["asleep; it will be asked again"]


def test_what_cannot_be_read_here_is_said_once(tmp_path, caplog):
    with DeviceSampler(tmp_path / "d.jsonl", every_s=0.01, opened=lambda: ([Clock()], ["TPU chips are not sampled"])):
        time.sleep(0.05)
    assert warnings(caplog) == ["TPU chips are not sampled"]


def nvml_of(utilisation: int, *, power: bool = True) -> ModuleType:
    """NVIDIA's package with one GPU, as its documentation has it."""

    class NVMLError(Exception):
        pass

    def power_usage(handle: int) -> int:
        if not power:
            raise NVMLError("Not Supported")
        return 350_500

    return SimpleNamespace(  # type: ignore[return-value]
        NVMLError=NVMLError,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda handle: f"GPU-{handle}abc",
        nvmlDeviceGetName=lambda handle: b"NVIDIA H200",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=5 * 2**30, total=141 * 2**30),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=utilisation),
        nvmlDeviceGetTemperature=lambda handle, kind: 61,
        nvmlDeviceGetPowerUsage=power_usage,
    )


def test_nvml_rows_have_watts_degrees_and_bytes_and_leave_out_what_is_not_known(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", nvml_of(93))
    reader = open_nvidia()
    assert reader is not None
    first, second = reader.read()
    assert first == {
        "device": "cuda:0", "index": 0, "name": "NVIDIA H200", "utilisation": 93, "memory_used": 5 * 2**30,
        "memory_total": 141 * 2**30, "temperature_c": 61, "power_w": 350.5,
    }  # fmt: skip
    assert second["device"] == "cuda:1"
    monkeypatch.setitem(sys.modules, "pynvml", nvml_of(0, power=False))
    row = open_nvidia().read()[0]
    assert row["utilisation"] == 0  # idle is known
    assert "power_w" not in row


@pytest.mark.parametrize(
    ("wanted", "indices"), [("1", [1]), ("GPU-0", [0]), ("", []), ("1,0", [0, 1]), ("MIG-x", [0, 1])]
)
def test_gpus_of_others_are_left_out(monkeypatch, wanted, indices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    monkeypatch.setitem(sys.modules, "pynvml", nvml_of(1))
    assert [row["index"] for row in open_nvidia().read()] == indices


def test_without_the_package_nvidia_smi_is_asked(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-0a, NVIDIA A100, 88, 1024, 40960, 54, [N/A]'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    reader = open_nvidia()
    assert isinstance(reader, SmiReader)
    assert reader.read() == [
        {"device": "cuda:0", "index": 0, "name": "NVIDIA A100", "utilisation": 88.0, "memory_used": 2**30,
         "memory_total": 40 * 2**30, "temperature_c": 54.0}
    ]  # fmt: skip
    program.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(DeviceUnreadableError, match="nvidia-smi"):
        reader.read()


def test_a_machine_without_accelerators_is_read_without_a_word(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(device_readers.glob, "glob", lambda pattern: [])
    if Path("/dev/nvidiactl").exists():
        pytest.skip("THIS MACHINE HAS A GPU; this did NOT run.")
    readers, missing = open_readers()
    assert [type(reader) for reader in readers] == [CpuReader]
    assert missing == []


def test_a_tpu_without_its_package_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tpu_info", None)
    monkeypatch.setattr(device_readers.glob, "glob", lambda pattern: ["/dev/accel0"])
    _, missing = open_readers()
    assert any("pip install tpu-info" in sentence for sentence in missing)


def test_sums_by_device_are_means_and_maxima_of_what_is_known():
    def row(device: str, minute: int, **values: object) -> dict[str, object]:
        return {"time": f"2026-11-22T02:{minute:02d}:00+00:00", "host": "a", "device": device, "name": "x", **values}

    rows = [
        row("cuda:0", 1, utilisation=10, memory_used=3, temperature_c=50),
        row("cpu", 1),
        row("cuda:0", 2, utilisation=90.0, memory_used=2, memory_total=8, power_w=300),
        row("cuda:0", 3, utilisation=float("nan"), temperature_c="hot"),
        row("cuda:0", 3, utilisation=50) | {"host": "b"},
    ]
    gpu, cpu, other = summarise(rows)
    assert (gpu.device, gpu.host, gpu.num_samples) == ("cuda:0", "a", 3)
    assert (gpu.mean_utilisation, gpu.max_utilisation) == (50.0, 90.0)
    assert (gpu.max_memory, gpu.memory_total, gpu.max_temperature_c, gpu.max_power_w) == (3, 8, 50, 300)
    assert (gpu.first[14:16], gpu.last[14:16]) == ("01", "03")
    assert (cpu.device, cpu.mean_utilisation, cpu.max_memory, cpu.num_samples) == ("cpu", None, None, 1)
    assert (other.host, other.mean_utilisation) == ("b", 50.0)
    assert summarise([]) == []


def test_no_file_is_no_samples(tmp_path):
    assert list(read_samples(tmp_path / "devices.jsonl")) == []
