"""Conversion between RGB and the 4:2:0 of video codecs, with equal matrix, range, chroma siting and rounding both ways.

Untagged pixels are BT.601 in limited range, as swscale assumes, so that readers that ignore the tags agree with those
that follow them. Chroma is sited left, the default of H.264 and HEVC. PyAV's own conversion to 4:2:0 assumes another
siting than its conversion back, which costs 2 dB at 40 dB; fast rounding and chroma interpolation cost as much again.

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
"""Matrices that swscale implements, by their code in ITU-T H.273."""
HDR = {16: "PQ, as in HDR10", 18: "HLG"}
"""Transfer characteristics of high dynamic range, by their code in ITU-T H.273."""
_SCALE_FLAGS = "flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp"


class Display(NamedTuple):
    """How a screen shows the pixels: `primaries`, `transfer`, `matrix` by their codes in ITU-T H.273, 2 if unknown.

    `range` is 1 for limited, 2 for full, 0 if unknown. A pixel's width to height is `wide` : `high`.
    """

    primaries: int = UNKNOWN
    transfer: int = UNKNOWN
    matrix: int = UNKNOWN
    range: int = 0
    wide: int = 1
    high: int = 1

    def to_dict(self) -> dict[str, int]:
        """Entries other than the default. Inverse of `from_dict`."""
        return {name: value for name, value in self._asdict().items() if value != self._field_defaults[name]}

    @classmethod
    def from_dict(cls, data: dict) -> Display:
        """Inverse of `to_dict`. Raises TypeError or ValueError for invalid entries."""
        display = cls(**data)
        if any(type(number) is not int or not 0 <= number < 1 << 31 for number in display) or 0 in display[-2:]:
            raise ValueError("invalid display entry")
        return display


UNTAGGED = Display()


def coded_tags(display: Display, pix_fmt: str) -> tuple[int, int]:
    """Matrix and range to code pixels with: in yuv420p those of the source if swscale has them, else BT.601 limited."""
    if pix_fmt != "yuv420p":
        return IDENTITY, FULL
    return display.matrix if display.matrix in MATRICES else BT601, FULL if display.range == FULL else LIMITED


def to_coded(rgb: np.ndarray, pix_fmt: str, display: Display = UNTAGGED) -> VideoFrame:
    """rgb (H, W, 3) uint8 -> a frame in a codec's `pix_fmt`, to be tagged with `coded_tags`; it has no time stamp."""
    import av

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    aspect = f"{display.wide}/{display.high}"
    return _convert(_graph("rgb24", pix_fmt, *rgb.shape[:2], _scale_options("out", pix_fmt, display), aspect), frame)


def to_yuv420(rgb: np.ndarray) -> VideoFrame:
    """`to_coded` without tags. `to_rgb` inverts it up to the detail that 4:2:0 cannot hold."""
    return to_coded(rgb, "yuv420p")


def to_rgb(frame: VideoFrame) -> np.ndarray:
    """yuv420p from `to_yuv420`, coded and decoded or not, ignoring its tags -> (H, W, 3) uint8."""
    import av

    untagged = av.VideoFrame.from_ndarray(frame.to_ndarray(), format="yuv420p")
    options = _scale_options("in", "yuv420p", UNTAGGED)
    return _convert(_graph("yuv420p", "rgb24", frame.height, frame.width, options), untagged).to_ndarray()


def _scale_options(side: str, pix_fmt: str, display: Display) -> str:
    """Options of the scale filter; `side` names its YUV end, "in" or "out"."""
    if pix_fmt != "yuv420p":
        return _SCALE_FLAGS
    matrix, range_ = coded_tags(display, pix_fmt)
    options = f"color_matrix={MATRICES[matrix]}", f"range={'pc' if range_ == FULL else 'tv'}", "chroma_loc=left"
    return ":".join([_SCALE_FLAGS, *(f"{side}_{option}" for option in options)])


@functools.lru_cache(maxsize=4)
def _graph(source: str, target: str, height: int, width: int, options: str, aspect: str = "1/1") -> Graph:
    from av.filter import Graph

    graph = Graph()
    graph.threads = 1
    entry = graph.add("buffer", f"video_size={width}x{height}:pix_fmt={source}:time_base=1/1:pixel_aspect=1/1")
    # FFV1 stores the shape of a pixel in its frames, so the graph sets it there, not only in the container.
    filters = ("scale", options), ("format", target), ("setsar", f"sar={aspect}"), ("buffersink", "")
    graph.link_nodes(entry, *(graph.add(name, text) for name, text in filters)).configure()
    return graph


def _convert(graph: Graph, frame: VideoFrame) -> VideoFrame:
    graph.push(frame)
    return graph.pull()
