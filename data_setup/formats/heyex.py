"""Heidelberg's two exports of a scan: one binary .vol, or an .xml that names one image file per B-scan.

Enters a path, leaves verified volumes. A .vol is 2048 bytes of header, the fundus image, then each B-scan with a
header of its own. eyepy gives the same pixels, but it refuses circles, takes every side of an .xml but R for left,
and keeps the last four .xml, names included, in a cache.
"""

import re
import struct
from functools import partial
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from data_setup.errors import BadFile, Reason
from data_setup.formats.found import (
    FoundVolume,
    check_held,
    check_shape,
    eye,
    judged,
    known,
    opened,
    planes,
    quiet,
    text,
    those_that_pass,
)
from data_setup.volume import ReadOptions, Volume

_VOL_HEADER = struct.Struct("<12s3I3d2I2dId4sQiI16s16sI24s")  # the first 164 of 2048 bytes; dates and visits follow
_VOL_HEADER_BYTES = 2048
_VOL_MAGIC = (b"HSF-OCT-", b"ep-v")  # the device's export, and eyepy's writer
_BSCAN_HEADER = struct.Struct("<12sI4d")  # the first 48 of at least 256 bytes
_BSCAN_HEADER_BYTES = 256
_LINE, _CIRCLE, _VOLUME, _FAST_VOLUME, _RADIAL = 1, 2, 3, 4, 5  # scan patterns of .vol; 0 is unknown

_IMAGE_FORMATS = ("TIFF", "BMP", "PNG", "JPEG")  # what HEYEX writes; Pillow knows 40 more, some of them fragile
_MAX_XML_BYTES = 1 << 26  # 188 bytes per A-scan in the file at hand: 9 MB for 97 x 512

VENDOR = "Heidelberg Engineering"


def grey(intensity: np.ndarray) -> np.ndarray:
    """Reflectivity of 0..1, float32 of any shape, -> uint8 as HEYEX shows it; 0 where there is no signal (3.4e38).

    (ln(x + 0.000244) + 8.3) / 8.285, eyepy's fit to the images that HEYEX exports, so that .vol, .e2e and .xml of one
    scan look alike. A linear scale would leave 88 % of the voxels of our line scan below 2.
    """
    with np.errstate(invalid="ignore"):  # a damaged file holds signalling NaN
        signal = intensity < 3e38
        shown = np.clip(np.where(signal, intensity, 0.0), 0.0, 1.0) + np.float32(2.44e-4)
    np.log(shown, out=shown)
    shown = np.clip((shown + 8.3) * (255.0 / 8.285), 0.0, 255.0)
    return np.where(signal, np.rint(shown), 0.0).astype(np.uint8)


def read_heyex_vol(path: Path, options: ReadOptions) -> list[FoundVolume]:
    """The one scan of a .vol as uint8 [D, H, W]; raises BadFile. Layers and the fundus image are not read."""
    with opened(path) as (file, size):
        head = file.read(_VOL_HEADER_BYTES)
        if not head.startswith(_VOL_MAGIC):
            raise BadFile(Reason.INVALID_HEADER, "no Heidelberg .vol file")
        if len(head) < _VOL_HEADER_BYTES:
            raise BadFile(Reason.HEADER_TRUNCATED, "the file ends inside the header")
        header = _VOL_HEADER.unpack_from(head)
        width, frames, height = header[1:4]
        scale_x, distance, scale_y = header[4:7]
        side, pattern, patient = header[13], header[15], header[20]
        slo_width, slo_height = header[7:9]
        shape = (frames, height, width)
        check_shape(shape, 1, options)
        start = _VOL_HEADER_BYTES + slo_width * slo_height
        check_held(start + frames * (_BSCAN_HEADER_BYTES + 4 * height * width), size)
        voxels, lines = _vol_bscans(file, start, shape, size)
    step_mm, parallel = planes(lines)
    if pattern in (_LINE, _CIRCLE, _RADIAL):
        parallel = False
    elif pattern in (_VOLUME, _FAST_VOLUME) and parallel is None:
        parallel = True
    volume = Volume(
        voxels=voxels,
        bits_stored=8,
        spacing_mm=(known(distance) or step_mm if parallel is not False else None, known(scale_y), known(scale_x)),
        laterality=eye(text(side)),
        vendor=VENDOR,
        model=None,
        protocol=None,
        volumetric=parallel,
    )
    return [judged(volume, text(patient), options)]


def _vol_bscans(file: BinaryIO, start: int, shape: tuple[int, int, int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [D, H, W], scan lines in mm, float [D, 2, 2]) of the B-scans from byte `start` on; raises BadFile.

    Each B-scan tells its own header's length: eyepy's writer states another one in the header of the file.
    """
    frames, height, width = shape
    voxels = np.empty(shape, np.uint8)
    lines = np.empty((frames, 2, 2))
    for frame in range(frames):
        check_held(start + _BSCAN_HEADER_BYTES, size)
        file.seek(start)
        _, header_bytes, *line = _BSCAN_HEADER.unpack(file.read(_BSCAN_HEADER.size))
        if header_bytes < _BSCAN_HEADER_BYTES:
            raise BadFile(Reason.INVALID_HEADER, f"the header of B-scan {frame} says {header_bytes} bytes")
        lines[frame] = np.reshape(line, (2, 2))
        start += header_bytes
        check_held(start + 4 * height * width, size)
        file.seek(start)
        raw = np.frombuffer(file.read(4 * height * width), "<f4")
        voxels[frame] = grey(raw.reshape(height, width))
        start += 4 * height * width
    return voxels, lines


def read_heyex_xml(path: Path, options: ReadOptions) -> list[FoundVolume]:
    """The scans of a HEYEX XML export, uint8 [D, H, W] each, from the images that lie beside it; raises BadFile."""
    with opened(path) as (file, size):
        if size > _MAX_XML_BYTES:
            raise BadFile(Reason.TOO_LARGE, f"an XML file of {size:,} bytes, {_MAX_XML_BYTES:,} are read")
        data = file.read()
    root = _xml_root(data)
    scans = [
        partial(_xml_scan, path.parent, series, images, (patient.findtext("PatientID") or "").strip() or None, options)
        for patient in root.iter("Patient")
        for series in patient.iter("Series")
        if (images := [image for image in series.findall("Image") if image.findtext("ImageType/Type") == "OCT"])
    ]
    return those_that_pass(scans)


def _xml_root(data: bytes) -> ElementTree.Element:
    """The root of a HEYEX XML; raises BadFile(header_truncated, invalid_header). Entities are refused: HEYEX writes
    none, and nested ones are a bomb.
    """
    document = data.decode("utf-8-sig", "replace")  # names in Latin-1 occur; none of them is looked at
    if "<!ENTITY" in document:
        raise BadFile(Reason.INVALID_HEADER, "an XML file that defines entities")
    try:
        root = ElementTree.fromstring(document)
    except (ElementTree.ParseError, ValueError) as error:
        cut = "</HEDX>" not in document
        reason = Reason.HEADER_TRUNCATED if cut else Reason.INVALID_HEADER
        raise BadFile(reason, "the XML cannot be parsed" + cut * " to its end", type(error).__name__) from None
    if root.tag != "HEDX":
        raise BadFile(Reason.INVALID_HEADER, "no HEYEX XML file")
    return root


def _xml_scan(
    folder: Path,
    series: ElementTree.Element,
    images: list[ElementTree.Element],
    patient: str | None,
    options: ReadOptions,
) -> FoundVolume:
    """One series; raises BadFile. Its B-scans must agree in size, their scale is that of the first."""
    contexts = [_child(image, "OphthalmicAcquisitionContext") for image in images]
    sizes = {(int(_number(context, "Height")), int(_number(context, "Width"))) for context in contexts}
    if len(sizes) > 1:
        raise BadFile(Reason.SHAPE_MISMATCH, f"B-scans of {len(sizes)} sizes")
    height, width = sizes.pop()
    shape = (len(images), height, width)
    check_shape(shape, 1, options)
    lines = np.array([_scan_line(context) for context in contexts])
    step_mm, parallel = planes(lines)
    voxels = np.empty(shape, np.uint8)
    for out, image in zip(voxels, images, strict=True):
        name = re.split(r"[\\/]", image.findtext("ImageData/ExamURL") or "")[-1]  # a path on the exporting machine
        out[...] = _bscan(folder / name, height, width)
    volume = Volume(
        voxels=voxels,
        bits_stored=8,
        spacing_mm=(step_mm, known(_number(contexts[0], "ScaleY", 0.0)), known(_number(contexts[0], "ScaleX", 0.0))),
        laterality=eye(series.findtext("Laterality")),
        vendor=VENDOR,
        model=series.findtext("GeneralEquipment/ManufacturerModelName"),
        protocol=series.findtext("Type"),
        volumetric=parallel,
    )
    return judged(volume, patient, options)


def _child(element: ElementTree.Element, tag: str) -> ElementTree.Element:
    """The first child of that name; raises BadFile(invalid_header)."""
    found = element.find(tag)
    if found is None:
        raise BadFile(Reason.INVALID_HEADER, f"a B-scan without {tag}")
    return found


def _number(element: ElementTree.Element, path: str, absent: float | None = None) -> float:
    """A finite number; raises BadFile(invalid_header) where it is none, or absent without a value for that."""
    found = element.findtext(path)
    if found is None and absent is not None:
        return absent
    try:
        number = float(found or "")
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise BadFile(Reason.INVALID_HEADER, f"{path} of a B-scan is absent or no number")
    return number


def _scan_line(context: ElementTree.Element) -> list[list[float]]:
    """Start and end of a B-scan on the fundus in mm, [[x, y], [x, y]]; zeros where they are absent."""
    return [[_number(context, f"{end}/Coord/{axis}", 0.0) for axis in "XY"] for end in ("Start", "End")]


def _bscan(path: Path, height: int, width: int) -> np.ndarray:
    """One image file as uint8 [H, W]; raises BadFile. Three equal channels count as one, as for DICOM."""
    try:
        with quiet(), Image.open(path, formats=_IMAGE_FORMATS) as image:
            if image.size != (width, height):
                raise BadFile(Reason.SHAPE_MISMATCH, f"a B-scan of another size than the {height} x {width} of the XML")
            if image.mode not in ("L", "P", "RGB", "RGBA"):
                raise BadFile(Reason.UNSUPPORTED_PIXEL_FORMAT, "a B-scan that has no 8 bits per pixel")
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except BadFile:
        raise
    except (FileNotFoundError, IsADirectoryError) as error:
        raise BadFile(
            Reason.MISSING_FILE, "a B-scan that the XML names lies not beside it", type(error).__name__
        ) from None
    except Exception as error:  # Pillow documents none of its decoders' errors
        raise BadFile(Reason.DECODE_FAILED, "the image of a B-scan cannot be decoded", type(error).__name__) from None
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise BadFile(Reason.COLOUR_IMAGE, "a B-scan whose channels differ")
        pixels = pixels[..., 0]
    return pixels
