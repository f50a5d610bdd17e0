"""Judges the header of a file before any pixel is touched, and copies a white list of its values.

Enters an open file; leaves a frozen Header or BadFile: checks 4 to 9 of the order in errors.Reason. Values outside
the white list (names, dates, UIDs, comments, private tags) are never converted, so nothing can print them.
"""

from dataclasses import dataclass
from typing import Any, BinaryIO

from pydicom import Dataset, uid

from data_setup.dicom.elements import Elements, PixelElement, find_elements, touch, value
from data_setup.dicom.scan_pattern import ScanPattern, read_scan_pattern
from data_setup.errors import BadFile, Reason
from data_setup.volume import ReadOptions

OPT_STORAGE = "1.2.840.10008.5.1.4.1.1.77.1.5.4"  # Ophthalmic Tomography Image Storage
_PIXEL_DATA = (0x7FE0, 0x0010)  # the two lower elements of the group are float pixels
_MAX_TEXT = 64  # the length that DICOM allows for the VR LO; longer text is no maker's name

NATIVE_SYNTAXES = frozenset({uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian})
JPEG2000_SYNTAXES = frozenset({uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K})
COMPRESSED_SYNTAXES = JPEG2000_SYNTAXES | {
    uid.RLELossless,
    uid.JPEGLSLossless,
    uid.JPEGLSNearLossless,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGBaseline8Bit,
}


@dataclass(frozen=True, kw_only=True)
class Header:
    """All that we keep of a header: the image's form, the place of its pixels, the maker, the scan pattern."""

    syntax: uid.UID
    pixels: PixelElement
    frames: int
    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    inverted: bool
    vendor: str | None
    model: str | None
    protocol: str | None
    pattern: ScanPattern

    @property
    def frame_bytes(self) -> int:
        """Bytes of one decoded frame, all samples."""
        return self.rows * self.columns * self.samples * self.bits_allocated // 8

    @property
    def volume_bytes(self) -> int:
        """Bytes of all decoded frames."""
        return self.frames * self.frame_bytes

    @property
    def encapsulated(self) -> bool:
        """True if the transfer syntax compresses the frames."""
        return self.syntax not in NATIVE_SYNTAXES


def read_header(file: BinaryIO, size: int, options: ReadOptions) -> Header:
    """The header of an open file of `size` bytes; raises BadFile with the first check of 1 to 9 that fails."""
    elements = find_elements(file, size)
    _check_admitted(elements, options)
    if elements.pixels is None:
        raise BadFile(Reason.NO_PIXEL_DATA, "the header is complete and no pixel element follows")
    dataset = elements.dataset
    form = _image_form(dataset, elements.pixels)
    if elements.pixels.tag != _PIXEL_DATA:
        raise BadFile(Reason.UNSUPPORTED_PIXEL_FORMAT, "floating-point pixels")
    _check_budget(form, options.max_bytes)
    return Header(
        syntax=elements.syntax,
        pixels=elements.pixels,
        vendor=_text(dataset, "Manufacturer"),
        model=_text(dataset, "ManufacturerModelName"),
        protocol=(protocol := _text(dataset, "ProtocolName")),
        pattern=read_scan_pattern(dataset, form["frames"], protocol),
        **form,
    )


def _check_admitted(elements: Elements, options: ReadOptions) -> None:
    """Checks 4 to 7: class of the object, transfer syntax, part of a concatenation, burned-in annotation."""
    dataset, syntax = elements.dataset, elements.syntax
    sop_class = value(dataset, "SOPClassUID") or value(dataset.file_meta, "MediaStorageSOPClassUID")
    if sop_class != OPT_STORAGE and not options.any_sop_class:
        raise BadFile(Reason.UNSUPPORTED_SOP_CLASS, f"the object is {_standard_name(sop_class)}")
    if syntax not in NATIVE_SYNTAXES and syntax not in COMPRESSED_SYNTAXES:
        raise BadFile(Reason.UNSUPPORTED_TRANSFER_SYNTAX, f"the pixels are stored as {_standard_name(syntax)}")
    parts = value(dataset, "InConcatenationTotalNumber")
    parts = 1 if parts is None else touch("InConcatenationTotalNumber", lambda: int(parts))
    if parts > 1:
        raise BadFile(Reason.CONCATENATION_PART, f"the file is one of {parts} parts of a scan")
    burned_in = value(dataset, "BurnedInAnnotation")
    if str(burned_in).strip().upper() == "YES" and not options.allow_burned_in:
        raise BadFile(Reason.BURNED_IN_ANNOTATION, "BurnedInAnnotation is YES")


def _standard_name(found: object) -> str:
    """The standard's name of a UID; other UIDs may belong to a device or a person and stay unnamed."""
    if not found:
        return "not named"
    known = isinstance(found, str) and found in uid.UID_dictionary
    return uid.UID_dictionary[found][0] if known else "of a private or unknown kind"


def _image_form(dataset: Dataset, pixels: PixelElement) -> dict[str, Any]:
    """Check 8: frames, rows, columns, samples, bits, sign and polarity as the fields of Header; raises BadFile."""
    rows, columns, samples, allocated = (
        _positive(dataset, keyword) for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
    )
    if pixels.tag == _PIXEL_DATA:
        stored = _positive(dataset, "BitsStored")
        signed = _whole(dataset, "PixelRepresentation") == 1
    else:  # float pixels have neither element, and are refused for what they are
        stored, signed = allocated, True
    if stored > allocated:
        raise BadFile(Reason.INVALID_HEADER, f"BitsStored {stored} is more than BitsAllocated {allocated}")
    frames = 1 if value(dataset, "NumberOfFrames") is None else _positive(dataset, "NumberOfFrames")
    photometric = value(dataset, "PhotometricInterpretation")
    if not isinstance(photometric, str):
        raise BadFile(Reason.INVALID_HEADER, "PhotometricInterpretation is absent")
    # Some exports store grey as three equal channels; whether they are equal is seen after decoding.
    if samples not in (1, 3) or (samples == 1 and photometric not in ("MONOCHROME1", "MONOCHROME2")):
        raise BadFile(Reason.COLOUR_IMAGE, f"{samples} samples per pixel, not grey")
    if allocated not in (8, 16):
        raise BadFile(Reason.UNSUPPORTED_PIXEL_FORMAT, f"{allocated} bits allocated per pixel")
    return {
        "frames": frames,
        "rows": rows,
        "columns": columns,
        "samples": samples,
        "bits_allocated": allocated,
        "bits_stored": stored,
        "signed": signed,
        "inverted": photometric == "MONOCHROME1",
    }


def _check_budget(form: dict[str, Any], max_bytes: int) -> None:
    """Check 9: raises BadFile(too_large) before anything is allocated; 1.9 kB of RLE may ask for 4.3 GB."""
    asked = form["frames"] * form["rows"] * form["columns"] * form["samples"] * form["bits_allocated"] // 8
    if asked > max_bytes:
        raise BadFile(
            Reason.TOO_LARGE,
            f"the header asks for {asked:,} bytes ({form['frames']} frames of {form['rows']} x {form['columns']}); "
            f"allowed: {max_bytes:,}",
        )


def _whole(dataset: Dataset, keyword: str) -> int:
    """The integer value of an element; raises BadFile(invalid_header) where it is absent or no whole number."""
    found = value(dataset, keyword)
    if found is None:
        raise BadFile(Reason.INVALID_HEADER, f"{keyword} is absent")
    number = touch(keyword, lambda: int(found))
    if touch(keyword, lambda: number != found):
        raise BadFile(Reason.INVALID_HEADER, f"{keyword} is no whole number")
    return number


def _positive(dataset: Dataset, keyword: str) -> int:
    """The same for a number above zero."""
    number = _whole(dataset, keyword)
    if number < 1:
        raise BadFile(Reason.INVALID_HEADER, f"{keyword} is {number}; it must be at least 1")
    return number


def _text(dataset: Dataset, keyword: str) -> str | None:
    """The printable text of an element, at most 64 characters; None where it is absent, empty or a list."""
    found = value(dataset, keyword)
    text = "".join(sign for sign in found if sign.isprintable()).strip() if isinstance(found, str) else ""
    return text[:_MAX_TEXT] or None
