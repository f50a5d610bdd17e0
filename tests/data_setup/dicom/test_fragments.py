"""Sizes that streams state, and where frames begin, against bytes put together by hand."""

import io
import struct

import pytest

from data_setup.dicom import BadFile
from data_setup.dicom.fragments import find_fragments, frame_starts, stated_size


def item(value: bytes, tag: tuple[int, int] = (0xFFFE, 0xE000)) -> bytes:
    return struct.pack("<HHL", *tag, len(value)) + value


END = item(b"", (0xFFFE, 0xE0DD))


def test_jpeg2000_states_its_size_without_the_image_offset() -> None:
    siz = struct.pack(">4sHH4L", b"\xff\x4f\xff\x51", 41, 0, 512, 496, 12, 6) + bytes(16) + struct.pack(">H", 1)
    assert stated_size(siz) == (490, 500, 1)
    assert stated_size(siz[:41]) is None


@pytest.mark.parametrize("marker", [0xC0, 0xC3, 0xF7])
def test_jpeg_and_jpegls_state_their_size_behind_other_segments(marker: int) -> None:
    table = b"\xff\xc4" + struct.pack(">H", 6) + bytes(4)  # a Huffman table, whose marker lies among the frame markers
    frame = bytes([0xFF, marker]) + struct.pack(">HBHHB", 11, 8, 496, 768, 1)
    assert stated_size(b"\xff\xd8" + table + frame) == (496, 768, 1)


@pytest.mark.parametrize(
    "noise", [b"", b"\xff\xd8", b"\xff\xd8" + b"\xff" * 40, bytes(64), b"\xff\xd8\xff\xe0\0\0" * 9]
)
def test_noise_states_no_size(noise: bytes) -> None:
    assert stated_size(noise) is None


def test_fragments_are_found_behind_their_offset_table() -> None:
    data = item(struct.pack("<2L", 0, 12)) + item(b"abcd") + item(b"ef") + END
    table, fragments = find_fragments(io.BytesIO(data), 0, len(data))
    assert table == (8, 8)
    assert [data[at : at + length] for at, length in fragments] == [b"abcd", b"ef"]


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_cut_anywhere_between_the_items_is_truncation(cut: int) -> None:
    data = item(b"") + item(b"abcd") + item(b"ef") + END
    assert len(data) == 38
    if cut < len(data):
        with pytest.raises(BadFile, match="pixel_data_truncated"):
            find_fragments(io.BytesIO(data[:cut]), 0, cut)
    else:
        assert len(find_fragments(io.BytesIO(data), 0, len(data))[1]) == 2


def test_frames_begin_where_the_table_or_the_streams_say() -> None:
    stream = b"\xff\xd8\xff\xf7"
    parts = item(stream) + item(b"rest") + item(stream) + item(b"rest")
    with_table = item(struct.pack("<2L", 0, 24)) + parts + END
    table, fragments = find_fragments(io.BytesIO(with_table), 0, len(with_table))
    starts = frame_starts(io.BytesIO(with_table), table, fragments, 2)
    assert [with_table[at : at + 4] for at in starts] == [stream, stream]
    without = item(b"") + parts + END
    table, fragments = find_fragments(io.BytesIO(without), 0, len(without))
    assert [without[at : at + 4] for at in frame_starts(io.BytesIO(without), table, fragments, 2)] == [stream] * 2
    assert len(frame_starts(io.BytesIO(without), table, fragments, 4)) == 4
