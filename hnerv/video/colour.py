"""RGB <-> the 4:2:0 that video codecs take, both ways with the same matrix, range, siting of chroma and care.

BT.601 in limited range: what swscale assumes where a file says nothing, so that readers which ignore the tags agree
with those that follow them. Chroma sits where H.264 and HEVC have it unless they say otherwise: left. PyAV's own
conversion knows no siting: it takes one for granted going there, another coming back from a decoder, and loses 2 dB at
40 dB; without accurate rounding and full chroma it loses as much again.

Legend: H W pixels of a frame, both even.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av.filter import Graph
    from av.video.frame import VideoFrame

MATRIX = 6
"""SMPTE 170M, that of BT.601, by its number in H.273."""
LIMITED_RANGE = 1
_CARE = "flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp"
_YUV = "color_matrix=smpte170m", "range=tv", "chroma_loc=left"


def to_yuv420(rgb: np.ndarray) -> VideoFrame:
    """rgb (H, W, 3) uint8 -> yuv420p without timestamp. `to_rgb` undoes it but for what 4:2:0 cannot hold."""
    import av

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    options = ":".join([_CARE, *(f"out_{option}" for option in _YUV)])
    return _converted(_graph("rgb24", "yuv420p", *rgb.shape[:2], options), frame)


def to_rgb(frame: VideoFrame) -> np.ndarray:
    """yuv420p of `to_yuv420`, coded and decoded or not, whatever its tags say -> (H, W, 3) uint8."""
    import av

    bare = av.VideoFrame.from_ndarray(frame.to_ndarray(), format="yuv420p")
    options = ":".join([_CARE, *(f"in_{option}" for option in _YUV)])
    return _converted(_graph("yuv420p", "rgb24", frame.height, frame.width, options), bare).to_ndarray()


@functools.lru_cache(maxsize=4)
def _graph(source: str, target: str, height: int, width: int, options: str) -> Graph:
    from av.filter import Graph

    graph = Graph()
    graph.threads = 1
    entry = graph.add("buffer", f"video_size={width}x{height}:pix_fmt={source}:time_base=1/1:pixel_aspect=1/1")
    chain = [entry, graph.add("scale", options), graph.add("format", target), graph.add("buffersink")]
    graph.link_nodes(*chain).configure()
    return graph


def _converted(graph: Graph, frame: VideoFrame) -> VideoFrame:
    graph.push(frame)
    return graph.pull()
