"""`ckpt_dir` as the user wrote it -> a type, parsed once: LocalPath, GcsUri, or None where it was not set.

After this no code looks at the text again, so that `str(None)` can never become a bucket or a folder called
"None".
"""

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

UNSET_SPELLINGS = frozenset({"", "none", "null", "~"})
ALLOWED_FORMS = "allowed: a local path, file:///absolute/path, gs://bucket/prefix, or null for OUTPUT_DIR/checkpoints"

_SCHEME = re.compile(r"([^/:]*):(.*)", re.DOTALL)
_BUCKET_PART = re.compile(r"[a-z0-9_-]{1,63}")
_BUCKET_ENDS = re.compile(r"[a-z0-9].*[a-z0-9]")


@dataclass(frozen=True, kw_only=True)
class LocalPath:
    """A folder of this machine (also a mounted one), absolute."""

    path: Path


@dataclass(frozen=True, kw_only=True)
class GcsUri:
    """A prefix in a bucket of Google Cloud Storage; `prefix` has no slash at either end and may be empty."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        """The gs:// address."""
        return f"gs://{self.bucket}/{self.prefix}".rstrip("/")


CheckpointLocation = LocalPath | GcsUri


class _Refused(Exception):
    """Why a text names no place."""


def parse_ckpt_dir(value: str | None, key: str = "checkpoint.ckpt_dir") -> CheckpointLocation | None:
    """Reads `ckpt_dir`; None, "", "None", "null" and "~" in any case and padding are unset: None.

    A relative path counts from the working directory, "~/x" from the home folder. Raises ValueError, naming `key`,
    the value and the allowed forms, for everything that is neither a path nor a gs:// address, and for what
    looks like an unset variable: "$" left in, or a part called none or null.
    """
    try:
        return _parse(value)
    except _Refused as refused:
        raise ValueError(f"{key} is {value!r}: {refused}; {ALLOWED_FORMS}") from None


def _parse(value: str | None) -> CheckpointLocation | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise _Refused(f"it is a {type(value).__name__}, not a text")
    text = value.strip()
    if text.lower() in UNSET_SPELLINGS:
        return None
    if not text.isprintable():
        raise _Refused("it holds a control character")
    if "$" in text:
        raise _Refused("a variable in it was not expanded")
    scheme = _SCHEME.fullmatch(text)
    if scheme is None:
        return _local(text)
    match scheme[1], scheme[2].startswith("//"):
        case "gs", True:
            return _gcs(scheme[2][2:])
        case "file", True:
            return _file_url(text)
        case "gs", False:
            raise _Refused("gs: takes two slashes")
        case _:
            raise _Refused(f"scheme {scheme[1]!r} is unknown (a local name with a colon is written ./a:b)")


def _check_parts(parts: tuple[str, ...]) -> None:
    if ".." in parts:
        raise _Refused("'..' is not taken")
    if unset := [part for part in parts if part.lower() in {"none", "null"}]:
        raise _Refused(f"its part {unset[0]!r} looks like a value that was never set")


def _local(text: str) -> LocalPath:
    path = Path(text)
    _check_parts(path.parts)
    if not text.startswith("~"):
        return LocalPath(path=path.absolute())
    try:
        return LocalPath(path=path.expanduser().absolute())
    except RuntimeError as error:  # "~name" of a user that this machine does not know
        raise _Refused(str(error)) from error


def _file_url(text: str) -> LocalPath:
    url = urlsplit(text)
    if url.netloc not in ("", "localhost") or not url.path.startswith("/") or url.query or url.fragment:
        raise _Refused("file: takes three slashes and an absolute path, nothing else")
    path = unquote(url.path)
    if "\0" in path:
        raise _Refused("it holds a control character")
    return _local(path)


def _gcs(rest: str) -> GcsUri:
    bucket, _, prefix = rest.partition("/")
    if problem := bucket_problem(bucket):
        raise _Refused(f"{bucket!r} is no bucket name: {problem}")
    prefix = prefix.strip("/")
    if "//" in prefix or "." in prefix.split("/"):
        raise _Refused("an empty part or '.' in the prefix")
    _check_parts(PurePosixPath(prefix).parts)
    return GcsUri(bucket=bucket, prefix=prefix)


def bucket_problem(bucket: str) -> str | None:
    """Why `bucket` cannot be a bucket of Google Cloud Storage, or None when it can.

    Rules: "Bucket naming guidelines" of Cloud Storage; besides, "none" and "null" are refused: they are unset
    values.
    """
    if bucket.lower() in UNSET_SPELLINGS:
        return "it looks like a value that was never set"
    if not 3 <= len(bucket) <= (222 if "." in bucket else 63):
        return "3 to 63 characters (222 with dots) are allowed"
    if not all(_BUCKET_PART.fullmatch(part) for part in bucket.split(".")):
        return "small letters, digits, '-', '_' and single dots are allowed, at most 63 characters between dots"
    if not _BUCKET_ENDS.fullmatch(bucket):
        return "the first and the last character must be a small letter or a digit"
    if bucket.startswith("goog") or "google" in bucket:
        return "names with 'google' are reserved"
    try:
        IPv4Address(bucket)
    except AddressValueError:
        return None
    return "it is an IP address"
