"""How the frames of a phone video are put upright."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


class Orientation(NamedTuple):
    """How to put a decoded frame upright: transpose first, then flip. Source: FFmpeg's libavutil/display.h."""

    transpose: bool = False
    flip_rows: bool = False
    flip_cols: bool = False

    def upright_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) as stored -> (H, W) as shown."""
        return (width, height) if self.transpose else (height, width)

    def upright(self, frame: np.ndarray) -> np.ndarray:
        """(h, w, 3) as stored -> (H, W, 3) as shown, contiguous."""
        frame = frame.transpose(1, 0, 2) if self.transpose else frame
        return np.ascontiguousarray(frame[:: -1 if self.flip_rows else 1, :: -1 if self.flip_cols else 1])


_TURNS = {1: Orientation(True, True, False), 2: Orientation(False, True, True), 3: Orientation(True, False, True)}
"""Quarter turns against the clock."""


def orientation_of(frame: VideoFrame) -> Orientation:
    """From the display matrix: x' = a x + c y, y' = b x + d y; angles between go to the nearest right one."""
    from av.sidedata.sidedata import Type

    try:
        matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # side data of a kind that PyAV has no name for, such as EXIF: the angle is still known
        return _TURNS.get(round(frame.rotation / 90) % 4, Orientation())
    if matrix is None:
        return Orientation()
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(matrix), np.int32)[:5])
    if abs(b) > abs(a):
        return Orientation(True, b < 0, c < 0)
    return Orientation(False, d < 0, a < 0)
