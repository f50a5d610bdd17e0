"""Which code and which versions ran: for summary.json and for every checkpoint."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("octfm", "torch", "torch-xla", "libtpu", "monai", "pydicom", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results; a package that is absent is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_sha() -> str:
    """Commit of the checkout, with `-dirty` where files differ; `unknown` outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()
