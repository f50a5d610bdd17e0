"""Zeiss Cirrus .img, the bytes of a cube without a header -> the verified volume uint8 [D, H, W].

Own code, where a library exists: oct-converter 0.7.0 lets the 1024 rows run fastest, while retimat and three other
public readers agree that the columns do.
"""

import re
from pathlib import Path

import numpy as np

from data_setup.errors import BadFile, Reason
from data_setup.formats.found import FoundVolume, check_held, check_shape, eye, judged, opened
from data_setup.volume import ReadOptions, Volume

# [D, H, W] by size of the file: macular cube, disc and macular cube 200, 6x6 mm OCTA
_CUBES = {depth * 1024 * width: (depth, 1024, width) for depth, width in ((128, 512), (200, 200), (350, 350))}
# P1234_Macular Cube 512x128_1-31-2010_9-30-15_OD_sn1234_cube_z.img
_NAME = re.compile(r"(?P<patient>[^_]+)_.*_O[DS]_sn\d*_", re.IGNORECASE)


def read_zeiss_img(path: Path, options: ReadOptions) -> list[FoundVolume]:
    """The cube of a Cirrus .img; its size tells the shape, its **name** side and patient; raises BadFile.

    Rows lie in the file from the choroid up and columns from right to left. No spacing: the nominal field is
    6 x 6 x 2 mm, but nothing in the file says so.
    """
    with opened(path) as (file, size):
        if size not in _CUBES:
            sizes = ", ".join(f"{held:,}" for held in _CUBES)
            raise BadFile(Reason.SHAPE_MISMATCH, f"{size:,} bytes without a header; a Cirrus cube has {sizes}")
        shape = _CUBES[size]
        check_shape(shape, 1, options)
        voxels = np.frombuffer(file.read(size), np.uint8)
    check_held(size, len(voxels))
    sides = set(re.findall(r"(?<![A-Za-z0-9])(O[DS])(?![A-Za-z0-9])", path.stem.upper()))
    name = _NAME.match(path.name)
    volume = Volume(
        voxels=np.ascontiguousarray(voxels.reshape(shape)[:, ::-1, ::-1]),
        bits_stored=8,
        spacing_mm=(None, None, None),
        laterality=eye(sides.pop()) if len(sides) == 1 else None,
        vendor="Carl Zeiss Meditec",
        model=None,
        protocol=None,
        volumetric=None,
    )
    return [judged(volume, name["patient"] if name else None, options)]
