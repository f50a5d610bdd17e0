"""What every benchmark shares: the arguments, the facts about machine and versions, and the last line of output.

That line is one JSON object: name, figures, ratios, machine, versions. Documentation quotes only such lines.
"""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = (
    "torch",
    "torch_xla",
    "transformers",
    "monai",
    "numpy",
    "pillow",
    "pydicom",
    "pylibjpeg-openjpeg",
    "pyjpegls",
)


def parse_arguments(description: str, argv: Sequence[str] | None = None, *, parts: str = "") -> argparse.Namespace:
    """`--quick`: fewer repetitions, for a look rather than for a claim. `--part`: some of the letters in `parts`."""
    parser = argparse.ArgumentParser(description=description)
    if parts:
        parser.add_argument("--part", default=parts, help=f"some of {parts}; all by default")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: a look, not a claim")
    return parser.parse_args(argv)


def machine_facts() -> dict[str, object]:
    """Processor, cores, threads, GPU and load: what a figure means nothing without; no name of the host."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_1min": round(os.getloadavg()[0], 2),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor_name() -> str:
    """The model name that the kernel gives, else the architecture."""
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of those of PACKAGES that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_memory_mib() -> float | None:
    """The largest resident size of this process so far, in MiB; None where the kernel does not tell (not Linux).

    Not getrusage: its maximum is inherited through fork and exec, so a child would report its parent's.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    facts = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(facts["VmHWM"].split()[0]) / 1024


def median(values: Sequence[float], digits: int = 4) -> float:
    """Median, rounded to `digits` significant digits."""
    return float(f"{statistics.median(values):.{digits}g}")


def print_report(name: str, figures: Mapping[str, object], ratios: Mapping[str, float]) -> None:
    """Prints the JSON object as the last line of stdout."""
    report = {
        "name": name,
        "figures": figures,
        "ratios": ratios,
        "machine": machine_facts(),
        "versions": versions(),
    }
    print(json.dumps(report), flush=True)
