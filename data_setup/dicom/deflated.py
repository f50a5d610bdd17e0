"""A deflated data set (transfer syntax 1.2.840.10008.1.2.1.99) as the plain file that it stands for.

1 MB may inflate to 1 GB before its first element can be judged, so inflating has a budget of its own.
"""

import io
import zlib
from typing import BinaryIO

from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from data_setup.errors import BadFile, Reason

_PREAMBLE = 128
_HEADER_BYTES = 1 << 26  # allowed on top of the pixels; the largest real header at hand has 63 kB
_STEP_BYTES = 1 << 20


def inflated(file: BinaryIO, size: int, max_bytes: int) -> tuple[BinaryIO, int]:
    """The file and its size; of a deflated one its explicit little endian form in memory.

    A cut stream gives what is there, for the checks of elements and pixels to judge. Raises BadFile: too_large beyond
    `max_bytes` and a header, invalid_header where nothing can be inflated.
    """
    meta = _deflated_meta(file)
    if meta is None:
        return file, size
    start = file.tell()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plain = io.BytesIO()
    plain.write(b"\0" * _PREAMBLE + b"DICM")
    try:
        write_file_meta_info(plain, meta, enforce_standard=False)
    except Exception as error:  # unknown VRs, UIDs that are no texts
        raise BadFile(Reason.INVALID_HEADER, "the file meta cannot be read", type(error).__name__) from None
    file.seek(start)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        while (step := file.read(_STEP_BYTES)) and not stream.eof:
            while step and not stream.eof:  # a byte of padding may follow the end of the stream
                plain.write(stream.decompress(step, _STEP_BYTES))
                step = stream.unconsumed_tail
                if plain.tell() > max_bytes + _HEADER_BYTES:
                    raise BadFile(Reason.TOO_LARGE, f"the deflated data set is larger than {max_bytes:,} bytes")
        plain.write(stream.flush())
    except zlib.error:
        raise BadFile(Reason.INVALID_HEADER, "the deflated data set cannot be inflated", "zlib.error") from None
    total = plain.tell()
    plain.seek(0)
    return plain, total


def _deflated_meta(file: BinaryIO) -> FileMetaDataset | None:
    """The file meta, read to its end, if it says that the data set is deflated; else None."""
    file.seek(_PREAMBLE)
    if file.read(4) != b"DICM":
        return None
    try:  # the file meta is always explicit little endian, and ends where group 0002 ends
        meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
        deflated = meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
        return FileMetaDataset(meta) if deflated else None
    except Exception:  # a damaged meta: the reader of elements fails on it again and gets the right code
        return None
