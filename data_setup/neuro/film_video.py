"""A film file -> the pictures of each TR, decoded as a stream: never more than one TR is held.

Pictures are picked by the time at which they are shown, not by counting: 38 pictures a TR where the film shows 37.5
would be 19 s late at the end of a film of 946 TRs.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_setup.neuro.extras import extra

log = logging.getLogger(__name__)

_EPS_S = 1e-6  # times in a film are whole ticks; sums of them in floats are not


@dataclass(frozen=True, kw_only=True)
class PictureSettings:
    """tr in seconds; fps pictures a second, every frame_skip-th of which is taken; height and width after scaling."""

    tr: float
    fps: float
    frame_skip: int
    height: int
    width: int

    @property
    def frames(self) -> int:
        """Pictures of a TR: 10 for 1.5 s at 25 a second, every 4th."""
        return math.ceil(round(self.fps * self.tr) / self.frame_skip)

    def time_s(self, number: int) -> float:
        """When picture `number` of the film (from 0, all TRs counted on) is shown."""
        tr, place = divmod(number, self.frames)
        return tr * self.tr + place * self.frame_skip / self.fps


def read_pictures(path: Path, settings: PictureSettings, limit: int) -> np.ndarray:
    """uint8 [T, frames, height, width, 3] of the first `limit` whole TRs, or of all; raises ValueError."""
    shape = (settings.frames, settings.height, settings.width, 3)
    pictures = np.empty((limit, *shape), np.uint8)
    count = 0
    for pictures_of_tr in stream_pictures(path, settings):
        pictures[count] = pictures_of_tr
        count += 1
        if count == limit:
            break
    if not count:
        raise ValueError(f"the film {path.name} is shorter than one TR of {settings.tr:g} s")
    return pictures[:count]


def stream_pictures(path: Path, settings: PictureSettings) -> Iterator[np.ndarray]:
    """uint8 [frames, height, width, 3] of each TR that the film fills to the end; logs what is left of the last.

    Raises ValueError where the file is no film, is damaged, or its pictures have no times.
    """
    av = extra("av")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path.name} holds no pictures")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield from _whole_trs(container.decode(stream), 1 / _pace(stream, settings), settings)
    except av.FFmpegError as error:
        raise ValueError(f"the film {path.name} cannot be decoded ({error}); copy it again") from None


def _pace(stream: Any, settings: PictureSettings) -> float:
    """Pictures a second as the file says them, data.fps where it does not; warns where the two differ."""
    stated = float(stream.average_rate or 0) or settings.fps
    if abs(stated / settings.fps - 1) > 0.01:
        log.warning(
            "the film shows %.3f pictures a second, data.fps is %g: pictures are picked by time, at the pace of "
            "data.fps / data.frame_skip",
            stated,
            settings.fps,
        )
    return stated


def _whole_trs(frames: Iterator[Any], period_s: float, settings: PictureSettings) -> Iterator[np.ndarray]:
    """Stacks of pictures. A TR is whole if the film ends at most half a picture before it."""
    slack_s = period_s / 2
    picked: list[np.ndarray] = []
    number, done, end_s = 0, 0, 0.0
    for frame, end_s in _until(frames, period_s):
        picture = None
        while settings.time_s(number) < end_s - _EPS_S:
            if picture is None:
                picture = frame.to_ndarray(
                    format="rgb24", width=settings.width, height=settings.height, interpolation="AREA"
                )
            picked.append(picture)
            number += 1
        while len(picked) >= settings.frames and (done + 1) * settings.tr <= end_s + slack_s + _EPS_S:
            yield np.stack(picked[: settings.frames])
            del picked[: settings.frames]
            done += 1
    if end_s - done * settings.tr > slack_s:
        log.warning("the last %.2f s of the film do not fill a TR and are left out", end_s - done * settings.tr)


def _until(frames: Iterator[Any], period_s: float) -> Iterator[tuple[Any, float]]:
    """Each frame with the time at which the next takes its place, in seconds from the first."""
    shown, start_s = None, 0.0
    for frame in frames:
        if frame.time is None:
            raise ValueError("the film's pictures have no times; rewrite it, e.g. as .mp4 with ffmpeg")
        if shown is None:
            start_s = frame.time
        else:
            yield shown, frame.time - start_s
        shown = frame
    if shown is not None:
        yield shown, shown.time - start_s + period_s
