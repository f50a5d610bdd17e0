"""A file of any admitted format -> the volumes in it, as one record whatever the format.

DICOM is the default; the others are asked for by name, so that the same command finds the same volumes on every
machine, whatever happens to be installed there.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from data_setup.dicom.read import read_patient_id, read_volume
from data_setup.errors import BadFile, Reason
from data_setup.formats.sniff import OtherFormat, check_installed, sniff
from data_setup.volume import ReadOptions, Volume

ScanFormat = Literal["dicom", "heyex_vol", "heyex_xml", "e2e", "topcon", "zeiss_img", "nifti"]
ALL_FORMATS: tuple[ScanFormat, ...] = get_args(ScanFormat)

_SNIFFED_BYTES = 512
# Names that promise a scan: a .json or a screenshot beside the scans is no damaged scan.
_SUFFIXES: dict[ScanFormat, tuple[str, ...]] = {
    "dicom": ("", ".dcm", ".dicom", ".ima"),
    "heyex_vol": (".vol",),
    "heyex_xml": (),
    "e2e": (".e2e", ".sdb"),
    "topcon": (".fda", ".fds"),
    "zeiss_img": (".img",),
    "nifti": (".nii", ".nii.gz"),
}


class FoundScan(NamedTuple):
    """A volume, the format it came in, and the patient's id as the file spells it: to be turned into a code at once."""

    format: ScanFormat
    volume: Volume
    patient: str | None


def check_formats(formats: tuple[ScanFormat, ...]) -> None:
    """Raises ValueError, with the remedy, where a format is unknown or its library is not installed."""
    unknown = set(formats) - set(ALL_FORMATS)
    if unknown or not formats:
        raise ValueError(
            f"data.formats must be some of {', '.join(ALL_FORMATS)}; found {', '.join(sorted(unknown)) or 'none'}"
        )
    check_installed([name for name in formats if name != "dicom"])


def promises_a_scan(location: str, formats: tuple[ScanFormat, ...]) -> bool:
    """True if a file's name says that it is a scan of one of the formats."""
    name = location.rsplit("/", 1)[-1].lower()
    suffix = ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix
    return any(suffix in _SUFFIXES[form] for form in formats)


def read_scans(path: Path, formats: tuple[ScanFormat, ...], options: ReadOptions) -> list[FoundScan]:
    """The volumes of a file, at least one; raises BadFile, and nothing else, for whatever is wrong with the file."""
    other = _other_format(path)
    if other is not None and other in formats:
        return [FoundScan(other, scan.volume, scan.patient) for scan in _read_other(other, path, options)]
    if "dicom" not in formats:
        raise BadFile(Reason.NOT_DICOM, f"found none of the formats {', '.join(formats)}")
    volume = read_volume(path, **asdict(options))
    return [FoundScan("dicom", volume, read_patient_id(path))]


def _other_format(path: Path) -> OtherFormat | None:
    try:
        with open(path, "rb") as file:
            head = file.read(_SNIFFED_BYTES)
    except OSError as error:
        raise BadFile(Reason.MISSING_FILE, "the file cannot be opened or read", type(error).__name__) from None
    return sniff(path, head)


def _read_other(form: OtherFormat, path: Path, options: ReadOptions) -> list:
    """Each reader's libraries are imported when its first file comes."""
    match form:
        case "heyex_vol":
            from data_setup.formats.heyex import read_heyex_vol as read
        case "heyex_xml":
            from data_setup.formats.heyex import read_heyex_xml as read
        case "e2e":
            from data_setup.formats.heyex import read_e2e as read
        case "topcon":
            from data_setup.formats.topcon import read_topcon as read
        case "zeiss_img":
            from data_setup.formats.zeiss import read_zeiss_img as read
        case "nifti":
            from data_setup.formats.nifti import read_nifti as read
    return read(path, options)
