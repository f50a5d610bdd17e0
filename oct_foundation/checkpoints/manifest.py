"""The manifest: the small file, written last, that alone makes a checkpoint; it carries its own sha256.

In goes what the run knows about a step; out comes canonical JSON, and back.
"""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from oct_foundation.checkpoints.host_state import FileDigest
from oct_foundation.checkpoints.store import Corrupt

FORMAT = "octfm-checkpoint/1"
STATE_FILE = "state.pt"
MANIFEST_FILE = "manifest.json"
QUARANTINE_FILE = "quarantine.json"

# Eight digits, so that names sort by step up to a hundred million.
_FOLDER = re.compile(r"step-(\d{8,})-([A-Za-z0-9][A-Za-z0-9_-]*)")


@dataclass(frozen=True, kw_only=True, order=True)
class CheckpointName:
    """One checkpoint of a run: the step it was taken after and the attempt (start of the run) that took it.

    Sorts by age: by step, then by attempt, whose names begin with the time of their start.
    """

    step: int
    attempt: str

    def __post_init__(self) -> None:
        if _FOLDER.fullmatch(self.folder) is None:
            raise ValueError(
                f"checkpoint of step {self.step}, attempt {self.attempt!r}: a step is >= 0, an attempt is "
                "made of letters, digits, '-' and '_' and begins with a letter or a digit"
            )

    @property
    def folder(self) -> str:
        """The first part of its keys: step-00000010-<attempt>."""
        return f"step-{self.step:08d}-{self.attempt}"

    def key(self, file: str) -> str:
        """The key of one of its files."""
        return f"{self.folder}/{file}"

    @classmethod
    def of_key(cls, key: str) -> "CheckpointName | None":
        """The checkpoint that a key belongs to; None for keys of another kind."""
        found = _FOLDER.fullmatch(key.partition("/")[0])
        return None if found is None else cls(step=int(found[1]), attempt=found[2])


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint holds and where it comes from.

    metrics: host floats of that step, None where a value was not finite; facts: JSON values that the run adds
    (samples seen, world size, global batch, config sha256, versions, git sha, tracker run id).
    """

    run: str
    step: int
    attempt: str
    time_utc: str
    files: dict[str, FileDigest]
    metrics: dict[str, float | None]
    facts: dict[str, Any]
    format: str = FORMAT
    sha256: str = ""

    @property
    def name(self) -> CheckpointName:
        """Its place in the order of checkpoints."""
        return CheckpointName(step=self.step, attempt=self.attempt)

    def sealed(self) -> "Manifest":
        """The same with its own sha256 in it. Raises TypeError or ValueError for facts that are no JSON."""
        return replace(self, sha256=_own_sha256(asdict(self)))

    def to_bytes(self) -> bytes:
        """Readable JSON of a sealed manifest."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Reads and checks a manifest. Raises Corrupt unless its hash, format and fields are right."""
        try:
            fields = json.loads(data)
            if fields["sha256"] != _own_sha256(fields):
                raise Corrupt("its manifest does not have the sha256 that it names")
            if fields["format"] != FORMAT:
                raise Corrupt(f"its format is {fields['format']!r}; this version reads {FORMAT!r}")
            files = {name: FileDigest(**digest) for name, digest in fields.pop("files").items()}
            return cls(files=files, **fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Corrupt(f"its manifest is not readable: {error!r}") from error


def finite_or_none(metrics: dict[str, float]) -> dict[str, float | None]:
    """Metrics as JSON can hold them: NaN and infinities become None."""
    return {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}


def _own_sha256(fields: dict[str, Any]) -> str:
    """Hash of all fields but the hash itself, as JSON without spaces and with sorted keys."""
    rest = {name: value for name, value in fields.items() if name != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
