"""Which OCT format a file has: by its first bytes, and by its name only where the format has none of its own."""

import zlib
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

OtherFormat = Literal["heyex_vol", "heyex_xml", "e2e", "topcon", "zeiss_img", "nifti"]

_MAGIC: tuple[tuple[bytes, OtherFormat], ...] = (
    (b"HSF-OCT-", "heyex_vol"),
    (b"ep-v", "heyex_vol"),
    (b"CMDb", "e2e"),
    (b"E2EMultipleVolumeFile", "e2e"),
    (b"FOCT", "topcon"),
)
_NIFTI_1_MAGIC_AT, _NIFTI_2_MAGIC_AT = 344, 4
_LIBRARIES: dict[str, str] = {  # an .img has no header, and its reader needs numpy only
    "heyex_vol": "eyepy",
    "heyex_xml": "eyepy",
    "e2e": "eyepy",
    "topcon": "oct_converter",
    "nifti": "nibabel",
}


def sniff(path: Path, head: bytes) -> OtherFormat | None:
    """The format of a file of which `head` are the first bytes (512 are enough); None for DICOM and whatever is
    unknown. Nothing is opened.
    """
    if head[128:132] == b"DICM":
        return None
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if _is_nifti(head) or (head.startswith(b"\x1f\x8b") and _is_nifti(_unpacked(head))):
        return "nifti"
    if b"<HEDX" in head and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "heyex_xml"
    lower = path.name.lower()
    if lower.endswith((".nii", ".nii.gz")):  # a damaged one: its reader says how
        return "nifti"
    return "zeiss_img" if lower.endswith(".img") else None


def _is_nifti(head: bytes) -> bool:
    one, two = head[_NIFTI_1_MAGIC_AT:][:4], head[_NIFTI_2_MAGIC_AT:][:4]
    return one in (b"n+1\0", b"ni1\0") or two in (b"n+2\0", b"ni2\0")


def _unpacked(head: bytes) -> bytes:
    """The first 512 bytes of a gzip stream that is cut; nothing where it is none."""
    try:
        return zlib.decompressobj(wbits=31).decompress(head, 512)
    except zlib.error:
        return b""


def check_installed(formats: Collection[str]) -> None:
    """Raises ValueError, with the command that mends it, where a library of one of the formats is absent."""
    needed = {name: _LIBRARIES[name] for name in sorted(set(formats) & set(_LIBRARIES))}
    absent = {name: library for name, library in needed.items() if find_spec(library) is None}
    if absent:
        raise ValueError(
            f"data.formats asks for {', '.join(absent)}, which needs {', '.join(sorted(set(absent.values())))}: "
            "pip install 'octfm[formats]', or take the format out of data.formats"
        )
