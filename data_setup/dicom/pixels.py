"""Pixels of a judged header -> stored integers [D, H, W]: counted before decoding, looked at afterwards.

Checks 10 to 12 of the order in errors.Reason. Foreign decoders can abort the process that calls them; large runs
call this inside data_setup.isolate.
"""

from typing import BinaryIO

import numpy as np
from pydicom import uid
from pydicom.pixels import pixel_array

from data_setup.content import check_content
from data_setup.dicom.elements import UNDEFINED_LENGTH
from data_setup.dicom.fragments import check_frames
from data_setup.dicom.header import Header
from data_setup.errors import BadFile, Reason

_LITTLE_ENDIAN = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian)


def read_pixels(file: BinaryIO, size: int, header: Header) -> np.ndarray:
    """Stored integers [D, H, W] = [frame, row, column], C order, native byte order, bright = high.

    Raises BadFile with the first check of 10 to 12 that fails.
    """
    _check_length(header, size)
    if header.encapsulated:
        check_frames(file, size, header)
    plain = header.syntax in _LITTLE_ENDIAN and header.samples == 1 and header.bits_stored == header.bits_allocated
    voxels = _stored(file, header) if plain else _one_channel(_decode(file, header), header)
    if header.inverted:
        voxels = _inverted(voxels, header)
    voxels = np.ascontiguousarray(voxels, dtype=voxels.dtype.newbyteorder("="))
    check_content(voxels)
    return voxels


def _check_length(header: Header, size: int) -> None:
    """Check 10 for the element as a whole and, if native, for its frames; padding below one frame is tolerated."""
    length = header.pixels.length
    if length == 0:
        raise BadFile(Reason.PIXEL_DATA_EMPTY, "the pixel element has length 0")
    if length == UNDEFINED_LENGTH:
        if not header.encapsulated:
            raise BadFile(Reason.DECODE_FAILED, "native pixels of undefined length", "undefined length")
        return
    if header.pixels.offset + length > size:
        missing = header.pixels.offset + length - size
        raise BadFile(Reason.PIXEL_DATA_TRUNCATED, f"the file lacks {missing:,} of {length:,} bytes of pixels")
    if header.encapsulated:
        raise BadFile(Reason.DECODE_FAILED, "compressed pixels that are not cut into fragments", "no fragments")
    if not header.volume_bytes <= length < header.volume_bytes + header.frame_bytes:
        held = length // header.frame_bytes
        raise BadFile(Reason.FRAME_COUNT_MISMATCH, f"the header says {header.frames} frames, the data hold {held}")


def _stored(file: BinaryIO, header: Header) -> np.ndarray:
    """Native pixels that fill their bytes, as they stand in the file: 58 MB in 16 ms, by way of pydicom in 41.

    Raises BadFile(pixel_data_truncated) where the file has become shorter since its length was checked.
    """
    kind = np.dtype(f"<{'i' if header.signed else 'u'}{header.bits_allocated // 8}")
    voxels = np.empty((header.frames, header.rows, header.columns), kind)
    file.seek(header.pixels.offset)
    read = file.readinto(memoryview(voxels).cast("B"))  # type: ignore[attr-defined, arg-type]
    if read != voxels.nbytes:
        raise BadFile(Reason.PIXEL_DATA_TRUNCATED, f"the file ends after {read:,} of {voxels.nbytes:,} bytes of pixels")
    return voxels


def _decode(file: BinaryIO, header: Header) -> np.ndarray:
    """The array that the decoder gives, [D, H, W] or [D, H, W, samples]; raises BadFile(decode_failed,
    shape_mismatch).

    Every exception is converted, StopIteration among them: pydicom lets it out when frames are missing, and it would
    end the caller's own loop without a word.
    """
    try:
        decoded = pixel_array(file, decoding_plugin=decoding_plugin(header.syntax))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a decoder written in Rust is no Exception
        raise BadFile(Reason.DECODE_FAILED, "the decoder fails", type(error).__name__) from None
    expected: tuple[int, ...] = (header.frames, header.rows, header.columns)
    if header.samples > 1:
        expected = (*expected, header.samples)
    if header.frames == 1 and decoded.ndim == len(expected) - 1:
        decoded = decoded[None]
    if decoded.shape != expected or decoded.dtype.kind not in "iu":
        raise BadFile(
            Reason.SHAPE_MISMATCH,
            f"decoded {decoded.dtype} of shape {decoded.shape}, the header says {expected}",
        )
    return decoded


def decoding_plugin(syntax: uid.UID) -> str:
    """The one decoder for a syntax, so that a file decodes alike everywhere; "" lets native syntaxes pass.

    GDCM only where nothing else reads the syntax: it has an open crash (CVE-2026-3650).
    """
    match syntax:
        case uid.RLELossless:
            return "pylibjpeg"  # 1190 MB/s of pixels, against 145 of pydicom's own
        case uid.JPEGLSLossless | uid.JPEGLSNearLossless:
            return "pyjpegls"
        case uid.JPEGLossless | uid.JPEGLosslessSV1:
            return "gdcm"
        case uid.JPEGBaseline8Bit:
            return "pillow"
        case uid.ImplicitVRLittleEndian | uid.ExplicitVRLittleEndian | uid.ExplicitVRBigEndian:
            return ""
        case _:
            return "pylibjpeg"  # JPEG 2000 and HTJ2K


def _one_channel(decoded: np.ndarray, header: Header) -> np.ndarray:
    """[D, H, W] of [D, H, W] or of three equal channels; raises BadFile(colour_image) where they differ."""
    if header.samples == 1:
        return decoded
    grey = decoded[..., 0]
    if not all(np.array_equal(grey, decoded[..., channel]) for channel in range(1, header.samples)):
        raise BadFile(Reason.COLOUR_IMAGE, f"{header.samples} channels that differ")
    return grey


def _inverted(voxels: np.ndarray, header: Header) -> np.ndarray:
    """MONOCHROME1 to MONOCHROME2: 2^bits - 1 - x, and -1 - x where signed, within the same type."""
    if header.signed:
        return np.invert(voxels)
    top = voxels.dtype.type(2**header.bits_stored - 1)
    return top - np.minimum(voxels, top)
