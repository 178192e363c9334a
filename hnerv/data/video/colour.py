"""RGB <-> the 4:2:0 that video codecs take, both ways with the same matrix, range, chroma position and rounding.

Unless a source says otherwise: BT.601 in limited range, what swscale assumes where a file says nothing, so that readers
which ignore the tags agree with those that follow them. Chroma sits where H.264 and HEVC have it unless they say
otherwise: left. PyAV's own conversion to 4:2:0 assumes another siting than the one back, and loses 2 dB at 40 dB;
without accurate rounding and full chroma it loses as much again.

Legend: H W pixels of a frame, both even.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from av.filter import Graph
    from av.video.frame import VideoFrame

UNKNOWN = 2
IDENTITY, BT601 = 0, 6
LIMITED, FULL = 1, 2
MATRICES = {1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020"}
"""Those that swscale converts with, by their number in H.273."""
HDR = {16: "PQ, as in HDR10", 18: "HLG"}
"""Transfer characteristics of high dynamic range, by their number in H.273."""
_SCALE_FLAGS = "flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp"


class Display(NamedTuple):
    """What a screen must know of the pixels: `primaries`, `transfer`, `matrix` as in ITU-T H.273, 2 where unknown.

    `range` is 1 for limited, 2 for full, 0 where unknown; a pixel is `wide` : `high`.
    """

    primaries: int = UNKNOWN
    transfer: int = UNKNOWN
    matrix: int = UNKNOWN
    range: int = 0
    wide: int = 1
    high: int = 1

    def to_dict(self) -> dict[str, int]:
        """What is known. Inverse of `from_dict`."""
        return {name: value for name, value in self._asdict().items() if value != self._field_defaults[name]}

    @classmethod
    def from_dict(cls, data: dict) -> Display:
        """Inverse of `to_dict`. Raises TypeError, ValueError for what is no display."""
        display = cls(**data)
        if any(type(number) is not int or not 0 <= number < 1 << 31 for number in display) or 0 in display[-2:]:
            raise ValueError("invalid display entry")
        return display


UNTAGGED = Display()


def tags_of(display: Display, pix_fmt: str) -> tuple[int, int]:
    """Matrix and range of pixels to be written: of yuv420p those of the source where swscale has them, else BT.601."""
    if pix_fmt != "yuv420p":
        return IDENTITY, FULL
    return display.matrix if display.matrix in MATRICES else BT601, FULL if display.range == FULL else LIMITED


def to_stored(rgb: np.ndarray, pix_fmt: str, display: Display = UNTAGGED) -> VideoFrame:
    """rgb (H, W, 3) uint8 -> a frame of a codec's `pix_fmt`, without time stamp, to be tagged with `tags_of`."""
    import av

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    options, aspect = _options("out", pix_fmt, display), f"{display.wide}/{display.high}"
    return _converted(_graph("rgb24", pix_fmt, *rgb.shape[:2], options, aspect), frame)


def to_yuv420(rgb: np.ndarray) -> VideoFrame:
    """`to_stored` of no tags. `to_rgb` undoes it but for what 4:2:0 cannot hold."""
    return to_stored(rgb, "yuv420p")


def to_rgb(frame: VideoFrame) -> np.ndarray:
    """yuv420p of `to_yuv420`, coded and decoded or not, whatever its tags say -> (H, W, 3) uint8."""
    import av

    bare = av.VideoFrame.from_ndarray(frame.to_ndarray(), format="yuv420p")
    options = _options("in", "yuv420p", UNTAGGED)
    return _converted(_graph("yuv420p", "rgb24", frame.height, frame.width, options), bare).to_ndarray()


def _options(side: str, pix_fmt: str, display: Display) -> str:
    if pix_fmt != "yuv420p":
        return _SCALE_FLAGS
    matrix, range_ = tags_of(display, pix_fmt)
    sides = f"color_matrix={MATRICES[matrix]}", f"range={'pc' if range_ == FULL else 'tv'}", "chroma_loc=left"
    return ":".join([_SCALE_FLAGS, *(f"{side}_{option}" for option in sides)])


@functools.lru_cache(maxsize=4)
def _graph(source: str, target: str, height: int, width: int, options: str, aspect: str = "1/1") -> Graph:
    from av.filter import Graph

    graph = Graph()
    graph.threads = 1
    entry = graph.add("buffer", f"video_size={width}x{height}:pix_fmt={source}:time_base=1/1:pixel_aspect=1/1")
    named = ("scale", options), ("format", target), ("setsar", f"sar={aspect}"), ("buffersink", "")
    graph.link_nodes(entry, *(graph.add(name, text) for name, text in named)).configure()
    return graph


def _converted(graph: Graph, frame: VideoFrame) -> VideoFrame:
    graph.push(frame)
    return graph.pull()
