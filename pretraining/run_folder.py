"""The folder of a run: config.yaml, train.log, metrics.jsonl, summary.json, checkpoints, prepared data.

`train.log` gets everything that the processes of the run print, tracebacks of native libraries included: the copy is
made below Python, at the file descriptors that children inherit.
"""

import errno
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

# Errors that last until a person has changed output_dir or its rights; a full or failing disk is another matter.
_OF_THE_USER = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP,
     errno.ENAMETOOLONG, errno.EINVAL}
)  # fmt: skip
_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK})  # link(2)
_RUN_ID = re.compile(r"[0-9a-f]{12}")
# A shutdown sends TERM to every process, a closed terminal HUP and PIPE: training still has something to say then.
_TEE = 'trap "" TERM INT HUP PIPE; exec tee -a "$1"'


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
    def pictures(self) -> Path:
        """What a report shows of a few held-out volumes, a file per reading."""
        return self.path / "diagnostics"

    @property
    def prepared(self) -> Path:
        """The default place of prepared volumes."""
        return self.path / "prepared"

    @property
    def run_id(self) -> str:
        """The tracker's id of this run: 12 hex digits, random, the same for all processes and after a restart.

        Raises ValueError where the file holds something else, OSError where it cannot be made.
        """
        path = self.path / "run_id"
        if not path.exists():
            _write_once(path, secrets.token_hex(6) + "\n")
        found = path.read_text(errors="replace").strip()
        if not _RUN_ID.fullmatch(found):
            raise ValueError(f"{path} holds {found!r}; 12 hex digits are allowed. Delete the file for a new id")
        return found

    def create(self, config_yaml: str) -> None:
        """Makes the folder, and in it the run's id and the configuration where there are none yet.

        A configuration that is there belongs to what else is there, until a run with this one has been accepted
        (`replace_config`): a start that is refused must not change the record of a run.
        Raises ValueError for what the user has to change, OSError for a disk that is full or fails.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.config.exists():
                write_atomic(self.config, config_yaml)
            _ = self.run_id
        except OSError as error:
            text = f"output_dir {self.path} cannot be written ({error.strerror})"
            if error.errno in _OF_THE_USER:
                raise ValueError(f"{text}; set output_dir=...") from error
            raise OSError(error.errno, f"{text}; free some space there or set output_dir=...") from error

    def replace_config(self, config_yaml: str) -> None:
        """Writes the configuration of the run that goes on here."""
        write_atomic(self.config, config_yaml)

    def tee_output(self) -> subprocess.Popen[bytes]:
        """From here on stdout and stderr of this process and its children also go to `train.log`.

        Close with `close_tee`, or the last lines may be missing.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        resource_tracker.ensure_running()  # Python's, else made by the first child, and the pipe's last holder
        tee = subprocess.Popen(["sh", "-c", _TEE, "sh", str(self.log)], stdin=subprocess.PIPE, start_new_session=True)
        assert tee.stdin is not None
        for descriptor in (1, 2):
            os.dup2(tee.stdin.fileno(), descriptor)
        tee.stdin.close()
        return tee

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json whole or not at all."""
        write_atomic(self.summary, json.dumps(summary, indent=1, allow_nan=False) + "\n")


def close_tee(tee: subprocess.Popen[bytes]) -> None:
    """Lets `tee` write its last line: it ends when the last writer has closed the pipe. No error where it is gone."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    # The parent of loader workers holds the pipe, too, and would end only after us.
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    nothing = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    try:
        tee.wait(timeout=10)
    except subprocess.TimeoutExpired:
        tee.kill()  # some child still holds the pipe; what it prints now is nobody's


def write_atomic(path: Path, text: str) -> None:
    """Temporary name in the same folder, then rename; raises OSError and leaves nothing behind."""
    with _durable_copy(path, text) as temporary:
        os.replace(temporary, path)


def _write_once(path: Path, text: str) -> None:
    """Of several processes the first one writes, the others find its text; no one ever sees a part."""
    with _durable_copy(path, text) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.replace(temporary, path)  # on such a disk (exFAT, SMB) the last one counts


@contextmanager
def _durable_copy(path: Path, text: str) -> Iterator[str]:
    """`text` on the disk beside `path`, under a name that is gone after the block."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
