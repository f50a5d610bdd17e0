"""The folder of a run: config.yaml, train.log, metrics.jsonl, summary.json, checkpoints, prepared data.

`train.log` gets everything that the processes of the run print, tracebacks of native libraries included: the copy is
made below Python, at the file descriptors that children inherit.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunFolder:
    """Names inside `path`."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def log(self) -> Path:
        """All output."""
        return self.path / "train.log"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """What the run came to."""
        return self.path / "summary.json"

    @property
    def exits(self) -> Path:
        """Why each rank of the last start left, where it was not done."""
        return self.path / "exits"

    @property
    def prepared(self) -> Path:
        """The default place of prepared volumes."""
        return self.path / "prepared"

    @property
    def run_id(self) -> str:
        """The tracker's id of this run: the same after a restart in the same folder."""
        return hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:12]

    def create(self, config_yaml: str) -> None:
        """Makes the folder and writes the configuration; raises ValueError when that is not possible."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(self.config, config_yaml)
        except OSError as error:
            raise ValueError(
                f"output_dir {self.path} cannot be written ({error.strerror}); set output_dir=..."
            ) from error

    def tee_output(self) -> subprocess.Popen[bytes]:
        """From here on stdout and stderr of this process and its children also go to `train.log`.

        Close with `close_tee`, or the last lines may be missing.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        tee = subprocess.Popen(["tee", "-i", "-a", str(self.log)], stdin=subprocess.PIPE, start_new_session=True)
        assert tee.stdin is not None
        for descriptor in (1, 2):
            os.dup2(tee.stdin.fileno(), descriptor)
        tee.stdin.close()
        return tee

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json whole or not at all."""
        write_atomic(self.summary, json.dumps(summary, indent=1, allow_nan=False) + "\n")


def close_tee(tee: subprocess.Popen[bytes]) -> None:
    """Lets `tee` write its last line: it ends when the last writer has closed the pipe."""
    sys.stdout.flush()
    sys.stderr.flush()
    nothing = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    try:
        tee.wait(timeout=10)
    except subprocess.TimeoutExpired:
        tee.kill()  # some child still holds the pipe; what it prints now is nobody's


def write_atomic(path: Path, text: str) -> None:
    """Temporary name in the same folder, then rename."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
