"""How fast a run is, when it will end, and what its devices really did: throughput and MFU beside their percent."""

import json
import math
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median

from oct_foundation.diagnostics.readings import Finding
from oct_foundation.tracking.device_sampler import FILE, DeviceUse, read_samples, summarise
from pretraining.config import load_config
from pretraining.health.losses import steps_per_epoch
from pretraining.health.sections import NOT_RECORDED, Section, Table, duration, number
from pretraining.report.gather import RunRecord
from pretraining.run_folder import RunFolder
from pretraining.tasks.build import build_objective

_RECENT = 20  # rows: what the machine does now, not what it did before the last restart
_HOT_C, _FULL = 85.0, 0.97  # NVIDIA's data-centre GPUs slow down from about 85 degrees on [their data sheets]
_GB = 1e9
PROVES_LITTLE = (
    "A utilisation of 100 % proves little: it says that some kernel ran at every look, not that it did much. A run at "
    "100 % was found at 8 GFLOP/s per GPU, far below 0.1 % of such a card. Judge by samples per second and MFU."
)


def devices_section(folder: Path, task: str, run: RunRecord, peak_tflops: float | None) -> Section:
    """RUN/devices.jsonl summed up, with throughput and MFU beside it."""
    uses = device_uses(folder)
    achieved = achieved_flops(folder, task, run)
    speed = [f"Throughput: {number(_recent(run, 'train/samples_per_sec'))} samples per second."]
    if achieved is None:
        speed.append(f"FLOP/s and MFU: {NOT_RECORDED}.")
    else:
        mfu = (
            f"MFU {achieved / (peak_tflops * 1e12 * _num_devices(run)):.2%} of {peak_tflops:g} TFLOP/s per device"
            if peak_tflops
            else "MFU unknown: give the peak of a device with --peak-tflops"
        )
        speed.append(f"The model's own arithmetic: {achieved / 1e9:,.3g} GFLOP/s in all; {mfu}.")
    if not uses:
        absent = (
            f"No device was sampled: {FILE} is not in the folder, so use, memory and temperature are {NOT_RECORDED}."
        )
        return Section(name="devices", title="Devices", lines=(absent, *speed, PROVES_LITTLE))
    rows = tuple(_device_row(use) for use in uses)
    header = ("device", "samples", "use mean (max)", "memory at most", "of", "temperature", "power")
    return Section(
        name="devices",
        title="Devices",
        lines=(*speed, PROVES_LITTLE),
        tables=(Table(header=header, rows=rows),),
    )


def device_uses(folder: Path) -> list[DeviceUse]:
    """Empty without a readable file."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return summarise(read_samples(folder / FILE))
    return []


def device_findings(folder: Path) -> list[Finding]:
    """Memory that is nearly full, and heat."""
    found = []
    for use in device_uses(folder):
        if use.device != "cpu" and use.max_memory and use.memory_total and use.max_memory > _FULL * use.memory_total:
            share = use.max_memory / use.memory_total
            found.append(_device_finding("device_memory_full", use, f"used {share:.1%} of its memory", _LESS_MEMORY))
        if use.max_temperature_c is not None and use.max_temperature_c >= _HOT_C:
            found.append(_device_finding("device_hot", use, f"reached {use.max_temperature_c:.0f} °C", _COOL))
    return found


_LESS_MEMORY = "One longer sample ends the run. Lower batch.per_core_batch_size, or compute activations again."
_COOL = "It slows down by itself. Look at the cooling, or cap its power."


def performance_section(folder: Path, run: RunRecord, step: int, total: int | None, *, finished: bool) -> Section:
    """Time per update and per epoch, where it went, and when an unfinished run will end."""
    update = _recent(run, "train/seconds_per_step")
    per_epoch = steps_per_epoch(run)
    wall = wall_seconds_per_step(folder)
    lines = [
        f"Time per update: {NOT_RECORDED if update is None else duration(update)} (median of the last {_RECENT} rows)."
    ]
    if update is not None and per_epoch:
        lines.append(f"Time per epoch: about {duration(update * per_epoch)} ({per_epoch:,.4g} updates).")
    if wall is not None:
        lines.append(f"With readings, saving and everything else: {duration(wall)} per update.")
    if not finished:
        lines.append(forecast(step, total, wall if wall is not None else update, last_time(folder)))
    spent = (run.summary or {}).get("wall_seconds")
    tables = []
    if isinstance(spent, dict):
        whole = {name: value for name, value in spent.items() if isinstance(value, int | float) and name != "total"}
        sum_of_all = sum(whole.values()) or 1.0
        rows = tuple(
            (name.replace("_", " "), duration(v), f"{v / sum_of_all:.1%}") for name, v in whole.items() if v > 0
        )
        tables.append(Table(header=("where the time went", "time", "share"), rows=rows))
    return Section(name="performance", title="Performance", lines=tuple(lines), tables=tuple(tables))


def forecast(step: int, total: int | None, seconds: float | None, now: float | None) -> str:
    """When the run will end, counted from its last row, or why nobody can say."""
    if total is None or seconds is None or not math.isfinite(seconds):
        return "Forecast of the end: not possible; planned updates or their time are not recorded."
    if step >= total:
        return "All planned updates are done."
    left = (total - step) * seconds
    text = f"Forecast: {total - step:,} of {total:,} updates are left, about {duration(left)} of training"
    if now is None:
        return f"{text}."
    with suppress(OverflowError, OSError, ValueError):
        end = datetime.fromtimestamp(now + left, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
        return f"{text}; if it still runs, it ends about {end}."
    return f"{text}."


def wall_seconds_per_step(folder: Path) -> float | None:
    """From the times of the record's rows; pauses between restarts, longer than ten usual gaps, do not count."""
    stamps = _stamps(folder)
    gaps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(stamps) if b[0] > a[0]]
    if not gaps:
        return None
    usual = median(seconds / steps for steps, seconds in gaps)
    kept = [(steps, seconds) for steps, seconds in gaps if 0 <= seconds <= 10 * usual * steps]
    return sum(seconds for _, seconds in kept) / sum(steps for steps, _ in kept) if kept else None


def last_time(folder: Path) -> float | None:
    """Of the last whole row, seconds since the epoch."""
    stamps = _stamps(folder)
    return stamps[-1][1] if stamps else None


def achieved_flops(folder: Path, task: str, run: RunRecord) -> float | None:
    """Per second, of all devices, by the model's own count per sample; None where configuration or speed is unknown.

    Not for the multi-modal task: what a sample costs depends on which images it has.
    """
    speed = _recent(run, "train/samples_per_sec")
    if speed is None or task == "multimodal":
        return None
    try:
        return build_objective(load_config(RunFolder(folder).config)).sample_flops() * speed
    except (ValueError, OSError, TypeError):
        return None


def _stamps(folder: Path) -> list[tuple[int, float]]:
    """(step, time) of whole rows; of several of one step the last, behind its reading."""
    found: dict[int, float] = {}
    with suppress(OSError):
        for line in RunFolder(folder).metrics.read_bytes().splitlines():
            with suppress(ValueError, TypeError, KeyError):
                row = json.loads(line)
                found[int(row["step"])] = float(row["time"])
    return list(found.items())


def _recent(run: RunRecord, metric: str) -> float | None:
    values = [value for _, value in run.series(metric)[-_RECENT:] if math.isfinite(value)]
    return median(values) if values else None


def _num_devices(run: RunRecord) -> int:
    found = (run.summary or {}).get("world_size")
    return found if isinstance(found, int) and found > 0 else 1


def _device_row(use: DeviceUse) -> tuple[str, ...]:
    percent = (
        NOT_RECORDED
        if use.mean_utilisation is None
        else f"{use.mean_utilisation:.0f} % ({number(use.max_utilisation, 3)} %)"
    )
    return (
        " ".join(dict.fromkeys(filter(None, (use.host, use.device, use.name)))),
        f"{use.num_samples:,}",
        percent,
        _gigabytes(use.max_memory),
        _gigabytes(use.memory_total),
        NOT_RECORDED if use.max_temperature_c is None else f"{use.max_temperature_c:.0f} °C",
        NOT_RECORDED if use.max_power_w is None else f"{use.max_power_w:.0f} W",
    )


def _gigabytes(count: float | None) -> str:
    return NOT_RECORDED if count is None else f"{count / _GB:.1f} GB"


def _device_finding(name: str, use: DeviceUse, what: str, remedy: str) -> Finding:
    return Finding(name=name, severity="warning", step=0, evidence=f"{use.device} {what}.", remedy=remedy)
