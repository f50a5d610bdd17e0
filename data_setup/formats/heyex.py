"""Heidelberg's exports (.vol, .xml with one image file per B-scan, .e2e) -> verified volumes uint8 [D, H, W], by eyepy.

eyepy parses and maps reflectivity to the greys that HEYEX shows. Its parsed parts are taken, not its EyeVolume: that
one refuses circles, needs a fundus image and layers, and takes every side of an .xml but R for the left.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_setup.errors import BadFile, Reason
from data_setup.formats.found import FoundVolume, check_held, check_shape, eye, judged, known, library, opened
from data_setup.volume import ReadOptions, Volume

_VENDOR = "Heidelberg Engineering"
_CIRCLE, _VOLUME, _FAST_VOLUME, _RADIAL = 2, 3, 4, 5  # scan patterns; 0 is unknown, 1 one line
_EVEN_STEPS = 0.10  # steps between scan lines that differ by less count as even, as for DICOM
_PARALLEL_COSINE = 0.9998  # 1.1 degrees; 24 radial scans are 7.5 degrees apart
_SAME_LINE = 1e-6  # far below the 0.002 of the finest voxel, in mm or in degrees

_VOL_MAGIC = (b"HSF-OCT-", b"ep-v")  # the device's export, and eyepy's writer
_VOL_HEADER_BYTES, _VOL_BSCAN_HEADER_BYTES = 2048, 256  # the second at least
_IMAGE_FORMATS = ("TIFF", "BMP", "PNG", "JPEG")  # what HEYEX writes; Pillow knows 40 more, some of them fragile
_E2E_HEADERS, _E2E_LAST_AT, _E2E_DIRECTORY_BYTES, _E2E_CHUNK_HEADER_BYTES = 88, 76, 52, 60


def read_heyex_vol(path: Path, options: ReadOptions) -> list[FoundVolume]:
    """The one scan of a .vol; raises BadFile. What the header promises is compared with the file's size first."""
    with opened(path) as (file, size):
        head = file.read(_VOL_HEADER_BYTES)
    if not head.startswith(_VOL_MAGIC):
        raise BadFile(Reason.INVALID_HEADER, "no Heidelberg .vol file")
    if len(head) < _VOL_HEADER_BYTES:
        raise BadFile(Reason.HEADER_TRUNCATED, "the file ends inside the header")
    width, frames, height = struct.unpack_from("<3I", head, 12)
    fundus_width, fundus_height = struct.unpack_from("<2I", head, 48)
    check_shape((frames, height, width), 1, options)
    bscan_bytes = _VOL_BSCAN_HEADER_BYTES + 4 * height * width
    check_held(_VOL_HEADER_BYTES + fundus_width * fundus_height + frames * bscan_bytes, size)
    with library("eyepy"):
        from eyepy.core.utils import from_vol_intensity
        from eyepy.io.he.vol_reader import HeVolReader

        scan = HeVolReader(path).parsed_file
        voxels = np.stack([from_vol_intensity(bscan.data.copy()) for bscan in scan.bscans])  # it writes into its input
        lines = [(bscan.start_x, bscan.start_y, bscan.end_x, bscan.end_y) for bscan in scan.bscans]
    step_mm, parallel = _verdict(lines, {scan.scan_pattern})
    spacing = known(scan.distance) or step_mm if parallel is not False else None, scan.scale_y, scan.scale_x
    return [_found(voxels, spacing, scan.scan_position, parallel, scan.patient_id, options)]


def read_heyex_xml(path: Path, options: ReadOptions) -> list[FoundVolume]:
    """The one scan of a HEYEX XML export, from the images that lie beside it; raises BadFile.

    eyepy says what the XML says. The images are decoded here: it would take the red channel of a coloured one. Of an
    XML with several scans it would make one stack, so that is refused.
    """
    with opened(path):
        pass
    if path.suffix != ".xml":
        raise BadFile(Reason.INVALID_HEADER, "the name of a HEYEX XML must end in .xml, eyepy searches a folder else")
    with library("eyepy"):
        from eyepy.io.he.xml_reader import HeXmlReader, get_xml_root

        try:
            reader = HeXmlReader(path)
            bscans = reader.bscan_meta
        finally:
            get_xml_root.cache_clear()  # it would keep the last four files, names of patients included
        scans = [one for one in reader.xml_root.iter("Series") if one.findall("Image/ImageType[Type='OCT']")]
        facts = reader.parsed_values
        shape = (len(bscans), int(facts["size_y"]), int(facts["size_x"])) if scans else (0, 0, 0)
    if len(scans) != 1:
        raise BadFile(Reason.INVALID_HEADER if scans else Reason.NO_PIXEL_DATA, f"{len(scans)} OCT scans in one XML")
    check_shape(shape, 1, options)
    voxels = np.stack([_image(path.parent / Path(bscan["scan_name"]).name, *shape[1:]) for bscan in bscans])
    step_mm, parallel = _verdict([(*bscan["start_pos"], *bscan["end_pos"]) for bscan in bscans], set())
    spacing = step_mm, facts["scale_y"], facts["scale_x"]
    side, model, protocol = (
        scans[0].findtext(tag) for tag in ("Laterality", "GeneralEquipment/ManufacturerModelName", "Type")
    )
    return [_found(voxels, spacing, side, parallel, facts["patient_id"], options, model, protocol)]


def _image(path: Path, height: int, width: int) -> np.ndarray:
    """One image file as uint8 [H, W]; raises BadFile. Three equal channels count as one, as for DICOM."""
    try:
        with library("Pillow"), Image.open(path, formats=_IMAGE_FORMATS) as image:
            if image.size != (width, height):
                raise BadFile(Reason.SHAPE_MISMATCH, f"a B-scan of another size than the {height} x {width} of the XML")
            if image.mode not in ("L", "P", "RGB", "RGBA"):
                raise BadFile(Reason.UNSUPPORTED_PIXEL_FORMAT, "a B-scan that has no 8 bits per pixel")
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB")).reshape(height, width, -1)
    except BadFile as bad:
        if bad.detail in ("FileNotFoundError", "IsADirectoryError"):
            raise BadFile(Reason.MISSING_FILE, "a B-scan that the XML names lies not beside it", bad.detail) from None
        raise
    if (pixels != pixels[..., :1]).any():
        raise BadFile(Reason.COLOUR_IMAGE, "a B-scan whose channels differ")
    return pixels[..., 0]


def read_e2e(path: Path, options: ReadOptions) -> list[FoundVolume]:
    """The scans of an .e2e or .sdb, of both eyes and many visits; raises BadFile, the first one where no scan passes: a
    visit holds lines and circles beside its volume, and one of them refuses no other.

    A cut file is told here: eyepy ends its list of chunks in silence at the first that it cannot parse.
    """
    with opened(path) as (file, size):
        head = file.read(_E2E_HEADERS)
    if not head.startswith(b"CMDb"):
        raise BadFile(Reason.INVALID_HEADER, "no single .e2e file; of several joined in one, eyepy reads none")
    if len(head) < _E2E_HEADERS:
        raise BadFile(Reason.HEADER_TRUNCATED, "the file ends inside the header")
    (last,) = struct.unpack_from("<I", head, _E2E_LAST_AT)
    check_held(last + _E2E_DIRECTORY_BYTES, size)
    volumes: list[FoundVolume] = []
    refused: list[BadFile] = []
    with library("eyepy"):
        from eyepy.io.he.e2e_format import TypesEnum
        from eyepy.io.he.e2e_reader import HeE2eReader

        with HeE2eReader(path) as reader:
            folders = getattr(reader.file_hierarchy, "all_folders", [])
            if max((folder.start for folder in folders), default=0) < last:
                raise BadFile(Reason.INVALID_HEADER, "the chain of chunks breaks before the last directory")
            for folder in folders:  # others lie beyond the end where HEYEX has made a file anonymous
                if folder.type == TypesEnum.image:
                    check_held(folder.start + _E2E_CHUNK_HEADER_BYTES + folder.size, size)
            folders.clear()  # it would hold every decoded image until the end
            for series in reader.series:
                bscans = [one for _, one in sorted(series.slices.items()) if TypesEnum.bscanmeta in one.folders]
                try:
                    volumes += [_e2e_scan(series, bscans, options)] if bscans else []
                except BadFile as bad:
                    refused.append(bad)
    if not volumes:
        raise refused[0] if refused else BadFile(Reason.NO_PIXEL_DATA, "the file holds no B-scan")
    return volumes


def _e2e_scan(series: Any, bscans: list[Any], options: ReadOptions) -> FoundVolume:
    """One of eyepy's series, with those of its slices that are B-scans; raises BadFile.

    The lateral spacing and the distance of B-scans are stored in degrees only, and stay unknown.
    """
    from eyepy.core.utils import from_e2e_intensity
    from eyepy.io.he.e2e_format import TypesEnum

    if len(set(np.diff([bscan.id for bscan in bscans]))) > 1:  # they count 0, 2, 4, ...
        raise BadFile(Reason.FRAME_COUNT_MISMATCH, f"B-scans are missing between {bscans[0].id} and {bscans[-1].id}")
    with library("eyepy"):
        metas = [bscan.get_meta() for bscan in bscans]
        shape = (len(metas), metas[0]["size_y"], metas[0]["size_x"])
        check_shape(shape, 1, options)
        if not all(TypesEnum.image in bscan.folders for bscan in bscans):
            raise BadFile(Reason.NO_PIXEL_DATA, "a B-scan without its image")
        voxels = np.empty(shape, np.uint8)
        for out, bscan in zip(voxels, bscans, strict=True):
            image = bscan.get_bscan()
            if image.shape != out.shape:
                raise BadFile(Reason.SHAPE_MISMATCH, f"a B-scan of {image.shape} in a volume of {shape}")
            out[...] = from_e2e_intensity(image)
            bscan.folders.clear()  # and with them the decoded image
        sides = {folder.data.laterality.name for folder in series.folders.get(TypesEnum.laterality, [])}
        patients = [folder.data.patient_id for folder in series.patient.folders.get(TypesEnum.patient, [])]
    _, parallel = _verdict(
        [(*meta["start_pos"], *meta["end_pos"]) for meta in metas], {meta["scan_pattern"] for meta in metas}
    )
    side = sides.pop() if len(sides) == 1 else None
    return _found(voxels, (None, metas[0]["scale_y"], None), side, parallel, (*patients, None)[0], options)


def _found(
    voxels: np.ndarray,
    spacing_mm: tuple[float | None, float | None, float | None],
    side: str | None,
    parallel: bool | None,
    patient: str | None,
    options: ReadOptions,
    model: str | None = None,
    protocol: str | None = None,
) -> FoundVolume:
    """The record of one decoded scan uint8 [D, H, W]; raises BadFile."""
    depth, height, width = map(known, spacing_mm)
    volume = Volume(
        voxels=voxels,
        bits_stored=8,
        spacing_mm=(depth, height, width),
        laterality=eye(side),
        vendor=_VENDOR,
        model=model,
        protocol=protocol,
        volumetric=parallel,
    )
    return judged(volume, (patient or "").strip(" \0") or None, options)


def _verdict(lines: Sequence[tuple[float, ...]], patterns: set[int]) -> tuple[float | None, bool | None]:
    """As planes(), of start x, y, end x, y of each B-scan; the scan pattern outranks lines that look like a raster."""
    step, parallel = planes(np.array(lines, np.float64).reshape(-1, 2, 2))
    if patterns & {_CIRCLE, _RADIAL}:
        return None, False
    return step, True if parallel is None and patterns and patterns <= {_VOLUME, _FAST_VOLUME} else parallel


def planes(lines: np.ndarray) -> tuple[float | None, bool | None]:
    """(distance between neighbours, verdict) of scan lines float [D, 2, 2] = [frame, start or end, x or y].

    True for parallel, evenly spaced lines; False for one line, lines that turn, or two in one place; None where
    positions are absent or uneven. The distance, in the unit of the lines, is known only with True.
    """
    if len(lines) == 1:
        return None, False
    if not (np.abs(lines) < 1e6).all() or not lines.any():
        return None, None
    along = lines[:, 1] - lines[:, 0]
    lengths = np.linalg.norm(along, axis=1)
    if lengths.min() < _SAME_LINE:  # a circle has no direction; its neighbours may have one
        return None, False
    direction = along / lengths[:, None]
    if np.abs(direction @ direction[0]).min() < _PARALLEL_COSINE:
        return None, False
    normal = np.array([-direction[0, 1], direction[0, 0]])
    offsets = lines.mean(axis=1) @ normal
    if np.diff(np.sort(offsets)).min() < _SAME_LINE:
        return None, False
    steps = np.diff(offsets)
    mean = float(steps.mean())
    even = np.abs(steps - mean).max() <= _EVEN_STEPS * abs(mean)
    return (abs(mean), True) if even else (None, None)
