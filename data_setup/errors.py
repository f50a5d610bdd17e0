"""The one error of the reader: a reason code for counting, and a sentence for the person who has to mend the file.

Nothing here may identify a patient: messages hold numbers, fixed words and names of DICOM standards; never a path, a
UID of the file, a date or a value of group 0010. `detail` is a type name or how a decoder ended, never a text of
theirs.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a file is refused; the order of the members is the order of the checks, and the first that fails counts."""

    MISSING_FILE = "missing_file"
    TRANSFER_MISMATCH = "transfer_mismatch"
    EMPTY_FILE = "empty_file"
    NOT_DICOM = "not_dicom"
    HEADER_TRUNCATED = "header_truncated"
    INVALID_HEADER = "invalid_header"
    UNSUPPORTED_SOP_CLASS = "unsupported_sop_class"
    UNSUPPORTED_TRANSFER_SYNTAX = "unsupported_transfer_syntax"
    CONCATENATION_PART = "concatenation_part"
    BURNED_IN_ANNOTATION = "burned_in_annotation"
    NO_PIXEL_DATA = "no_pixel_data"
    COLOUR_IMAGE = "colour_image"
    UNSUPPORTED_PIXEL_FORMAT = "unsupported_pixel_format"
    TOO_LARGE = "too_large"
    PIXEL_DATA_EMPTY = "pixel_data_empty"
    PIXEL_DATA_TRUNCATED = "pixel_data_truncated"
    FRAME_COUNT_MISMATCH = "frame_count_mismatch"
    SHAPE_MISMATCH = "shape_mismatch"
    DECODE_FAILED = "decode_failed"
    CONSTANT_IMAGE = "constant_image"
    MOSTLY_BLANK = "mostly_blank"
    NOT_VOLUMETRIC = "not_volumetric"


_COPY_AGAIN = "Copy the file from its source again and compare size and checksum."
_EXPORT_AGAIN = "Export the scan again from the device or the archive."

REMEDY: dict[Reason, str] = {
    Reason.MISSING_FILE: "Check the path, the mount and the read permission.",
    Reason.TRANSFER_MISMATCH: _COPY_AGAIN,
    Reason.EMPTY_FILE: _COPY_AGAIN,
    Reason.NOT_DICOM: "DICOM is read, and what data.formats names: add the format there, or keep such files out.",
    Reason.HEADER_TRUNCATED: _COPY_AGAIN,
    Reason.INVALID_HEADER: _EXPORT_AGAIN,
    Reason.UNSUPPORTED_SOP_CLASS: "Only ophthalmic tomography (OPT) is read; data.any_sop_class=true admits others.",
    Reason.UNSUPPORTED_TRANSFER_SYNTAX: "Convert to explicit little endian, RLE, JPEG-LS, JPEG lossless or JPEG 2000.",
    Reason.CONCATENATION_PART: "Join the parts of the concatenation into one file first.",
    Reason.BURNED_IN_ANNOTATION: "Pixels may show names; data.allow_burned_in=true admits it after you have looked.",
    Reason.NO_PIXEL_DATA: "The file holds no image, or was cut exactly before it: keep reports out, or copy it again.",
    Reason.COLOUR_IMAGE: "One grey channel, or three equal ones, is needed: keep photographs and screenshots out.",
    Reason.UNSUPPORTED_PIXEL_FORMAT: "Integer pixels of 8 or 16 bits allocated are needed: " + _EXPORT_AGAIN.lower(),
    Reason.TOO_LARGE: "If a scan truly is this large, raise data.max_file_bytes; else the header is damaged.",
    Reason.PIXEL_DATA_EMPTY: _EXPORT_AGAIN,
    Reason.PIXEL_DATA_TRUNCATED: _COPY_AGAIN,
    Reason.FRAME_COUNT_MISMATCH: _EXPORT_AGAIN,
    Reason.SHAPE_MISMATCH: _EXPORT_AGAIN,
    Reason.DECODE_FAILED: _COPY_AGAIN,
    Reason.CONSTANT_IMAGE: _EXPORT_AGAIN,
    Reason.MOSTLY_BLANK: _EXPORT_AGAIN,
    Reason.NOT_VOLUMETRIC: "Radial, circular and single scans are none; data.include_nonvolumetric=true admits them.",
}


# For readers of the report, who know scans and not DICOM.
MEANING: dict[Reason, str] = {
    Reason.MISSING_FILE: "The file is listed but could not be opened.",
    Reason.TRANSFER_MISMATCH: "What arrived differs in size or checksum from what the source lists.",
    Reason.EMPTY_FILE: "The file has no content.",
    Reason.NOT_DICOM: "The content is not DICOM.",
    Reason.HEADER_TRUNCATED: "The file ends in the middle of its header.",
    Reason.INVALID_HEADER: "The header contradicts itself or cannot be read.",
    Reason.UNSUPPORTED_SOP_CLASS: "A DICOM file, but of another kind than OCT.",
    Reason.UNSUPPORTED_TRANSFER_SYNTAX: "The pixels are compressed in a way that is not read.",
    Reason.CONCATENATION_PART: "One part of a scan that was split over several files.",
    Reason.BURNED_IN_ANNOTATION: "The file says that text is drawn into its pixels; it may name a person.",
    Reason.NO_PIXEL_DATA: "A DICOM file without an image.",
    Reason.COLOUR_IMAGE: "A colour picture, no grey OCT.",
    Reason.UNSUPPORTED_PIXEL_FORMAT: "Pixels of a number format that OCT does not use.",
    Reason.TOO_LARGE: "The header promises more pixels than the limit allows.",
    Reason.PIXEL_DATA_EMPTY: "There is a place for the image, and nothing in it.",
    Reason.PIXEL_DATA_TRUNCATED: "The file ends in the middle of the image.",
    Reason.FRAME_COUNT_MISMATCH: "More or fewer B-scans than the header says.",
    Reason.SHAPE_MISMATCH: "The image has another size than the header says.",
    Reason.DECODE_FAILED: "The compressed image is damaged, or its decoder failed.",
    Reason.CONSTANT_IMAGE: "Every pixel has the same value.",
    Reason.MOSTLY_BLANK: "More than half of the B-scans are blank.",
    Reason.NOT_VOLUMETRIC: "The B-scans are not parallel planes, so they form no volume.",
}


class UnreadableInput(Exception):
    """A sample of a prepared or audited data set cannot be read; str() names it and what was found."""


class BadFile(Exception):
    """A file that cannot become a volume: `reason`, `message` (what was found, how to mend it), `detail` (or "")."""

    def __init__(self, reason: Reason, found: str, detail: str = "") -> None:
        super().__init__(reason, found, detail)  # the arguments, so that the error survives pickling
        self.reason = reason
        self.found = found
        self.detail = detail

    @property
    def message(self) -> str:
        """What was found and how to mend it, free of anything that identifies."""
        return f"{self.found}. {REMEDY[self.reason]}"

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class StopPreparing(Exception):
    """The machine or the bucket fails, not a file: disk full, permission revoked, bucket gone or silent.

    The text is ours: it names a bucket or a folder that the user gave, never a file. Everything finished is kept.
    """
