"""Pictures of a TR: which frames of a film are taken, by time, and what a last TR that is not full becomes."""

from pathlib import Path

import numpy as np
import pytest

from data_setup.neuro.film_video import PictureSettings, read_pictures, stream_pictures

av = pytest.importorskip("av", reason="PYAV ABSENT (pip install 'octfm[neuro]'): films were NOT decoded")


def write_film(path: Path, levels, fps=25, size=(8, 16)) -> Path:
    """Frame n is grey at levels[n]; FFV1 keeps it within rounding."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv444p"
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def greys(pictures: np.ndarray) -> list[int]:
    """The grey of each picture of a TR; a picture has only one."""
    assert np.ptp(pictures.reshape(len(pictures), -1), axis=1).max() <= 2
    return pictures.reshape(len(pictures), -1).mean(axis=1).round().astype(int).tolist()


SETTINGS = PictureSettings(tr=1.5, fps=25, frame_skip=4, height=4, width=6)


@pytest.mark.parametrize(
    ("fps", "tr", "skip", "frames"), [(25, 1.5, 4, 10), (25, 1.5, 1, 38), (24, 2.0, 5, 10), (10, 1.0, 10, 1)]
)
def test_pictures_of_a_tr(fps, tr, skip, frames) -> None:
    assert PictureSettings(tr=tr, fps=fps, frame_skip=skip, height=1, width=1).frames == frames


def test_pictures_are_picked_by_time_and_scaled(tmp_path: Path, caplog) -> None:
    path = write_film(tmp_path / "a.mkv", range(20, 20 + 120))  # 4.8 s: three TRs and 0.3 s
    pictures = read_pictures(path, SETTINGS, limit=100)
    assert pictures.shape == (3, 10, 4, 6, 3)
    assert pictures.dtype == np.uint8
    for tr, first in enumerate((0, 37, 75)):  # 37.5 frames a TR: at 1.5 s frame 37 is still shown
        np.testing.assert_allclose(greys(pictures[tr]), 20 + first + 4 * np.arange(10), atol=1)
    assert "last 0.30 s" in caplog.text


def test_no_more_is_decoded_than_is_asked_for(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mkv", range(120))
    assert len(read_pictures(path, SETTINGS, limit=1)) == 1
    first = next(stream_pictures(path, SETTINGS))
    np.testing.assert_array_equal(first, read_pictures(path, SETTINGS, limit=1)[0])


@pytest.mark.parametrize(("frames", "whole"), [(75, 2), (74, 1), (38, 1), (37, 1), (76, 2)])
def test_a_tr_is_whole_within_half_a_picture(tmp_path: Path, frames: int, whole: int) -> None:
    assert len(read_pictures(write_film(tmp_path / "a.mkv", [9] * frames), SETTINGS, limit=9)) == whole


def test_a_film_at_another_pace_is_told_and_stays_in_time(tmp_path: Path, caplog) -> None:
    path = write_film(tmp_path / "a.mkv", range(60), fps=10)
    pictures = read_pictures(path, SETTINGS, limit=9)
    assert "10.000 pictures a second, data.fps is 25" in caplog.text
    assert len(pictures) == 4
    times = 1.5 + 0.16 * np.arange(10)
    np.testing.assert_allclose(greys(pictures[1]), np.floor(times * 10 + 1e-9), atol=1)


def test_what_is_no_film_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mkv").write_bytes(b"no film" * 100)
    with pytest.raises(ValueError, match=r"a.mkv cannot be decoded"):
        read_pictures(tmp_path / "a.mkv", SETTINGS, limit=9)
    with pytest.raises(ValueError, match=r"shorter than one TR of 1\.5 s"):
        read_pictures(write_film(tmp_path / "b.mkv", [9] * 20), SETTINGS, limit=9)
