"""`octfm prepare` from a bucket, killed with SIGKILL at random moments and restarted, against an undisturbed run.

`python -m tests.faults.kill_prepare --volumes 601 --kills 20` uses phantoms of four devices, 15 % of them broken, in
an emulated bucket, and `--source DIR` a folder. Exit code 1 where any byte of the index or of a volume differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_setup.index import PreparedSet
from data_setup.phantom import PhantomSettings, write_phantoms
from tests.faults.gcs_emulator import GcsEmulator, running_emulator

PROJECT = Path(__file__).resolve().parents[2]
DEVICES = ("Spectralis", "Maestro2", "Cirrus", "Triton")
BOOKS = ("journal.jsonl", ".lock")


@dataclass(frozen=True)
class Outcome:
    """How often it was killed while it worked, inputs that were finished twice, and files that differ."""

    kills: int
    done_twice: int
    different: list[str]
    seconds: float


def upload_phantoms(gcs: GcsEmulator, folder: Path, num_volumes: int, scale: float) -> str:
    """The bucket's gs:// address."""
    settings = PhantomSettings(num_volumes=num_volumes, devices=DEVICES, broken_fraction=0.15, scale=scale)
    bucket = gcs.create_bucket(f"phantoms-{os.getpid()}-{num_volumes}")
    for path in write_phantoms(folder, settings):
        gcs.put(bucket, f"scans/{path.name}", path.read_bytes())
    return f"gs://{bucket}/scans"


def prepare_command(source: str, out: Path, *settings: str) -> list[str]:
    return [sys.executable, "-m", "pretraining.cli", "prepare", source, "--out", str(out), "--workers", "2", *settings]


def kill_and_compare(
    source: str, folder: Path, environment: Mapping[str, str], *settings: str, kills: int, seed: int
) -> Outcome:
    """Prepares `source` twice into `folder`: in one go, and with `kills` kills spread over the work.

    A quarter falls into the start, the others a moment after some more files are done: alike on slow and fast machines.
    """
    env = {**os.environ, **environment}
    calm, killed = folder / "calm", folder / "killed"
    start = time.monotonic()
    subprocess.run(prepare_command(source, calm, *settings), cwd=PROJECT, env=env, check=True, capture_output=True)
    killed.mkdir()
    (killed / ".source_key").write_bytes((calm / ".source_key").read_bytes())
    rng, happened, most_files = random.Random(seed), 0, max(1, _num_done(calm) // (2 * kills))
    for _ in range(kills):
        child = subprocess.Popen(
            prepare_command(source, killed, *settings), cwd=PROJECT, env=env,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        pause_s, num_files = (rng.uniform(0.1, 1.0), 0) if rng.random() < 0.25 else (rng.uniform(0, 0.1), most_files)
        wanted = _num_done(killed) + rng.randint(0, num_files)
        while child.poll() is None and _num_done(killed) < wanted:
            time.sleep(0.01)
        try:
            child.wait(pause_s)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            happened += 1
        child.wait()
    subprocess.run(prepare_command(source, killed, *settings), cwd=PROJECT, env=env, check=True, capture_output=True)
    return Outcome(happened, _done_twice(killed), _different(calm, killed), time.monotonic() - start)


def _num_done(out: Path) -> int:
    """Lines of the journal so far."""
    return sum(journal.read_bytes().count(b"\n") for journal in out.glob("*/journal.jsonl"))


def _done_twice(out: Path) -> int:
    """Inputs with more than one line in the journal: work that a kill made the next call repeat."""
    lines = next(out.glob("*/journal.jsonl")).read_text().splitlines()
    return len(lines) - len({line[: line.index(",")] for line in lines})


def _different(one: Path, other: Path) -> list[str]:
    """Names of files that are not the same bytes in both sets."""

    def contents(root: Path) -> dict[str, bytes]:
        files = (path for path in root.rglob("*") if path.is_file() and path.name not in BOOKS)
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}

    first, second = contents(one), contents(other)
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=601)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", help="a folder instead of phantoms in a bucket")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, running_emulator() as gcs:
        folder = Path(scratch)
        source = arguments.source or upload_phantoms(gcs, folder / "dicom", arguments.volumes, arguments.scale)
        settings = ("model.image_size=[16,128,128]", "data.include_nonvolumetric=true")
        outcome = kill_and_compare(
            source, folder, gcs.environment, *settings, kills=arguments.kills, seed=arguments.seed
        )
        info = PreparedSet.load(folder / "killed").info
        print(f"{info['accepted']} of {info['files']} accepted, {info['rejected']}, {info['vendors']}")
    print(outcome)
    return 1 if outcome.different or outcome.done_twice else 0


if __name__ == "__main__":
    sys.exit(main())
