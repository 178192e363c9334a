"""Which frames make a segment. Positions count the frames that --frames chooses, from 0."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from hnerv.errors import UserError
from hnerv.data.cuts import find_cuts
from hnerv.data.video import frame_count, seeks, slice_positions

_log = logging.getLogger("hnerv")
REMUXED = (".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".flv")
"""Containers in which key frames are not found, of codecs that Matroska takes."""


class Wishes(NamedTuple):
    """The --segment- flags: most frames of one (0: no limit), whether cuts begin one, what its weights start as."""

    frames: int = 0
    scenes: bool = False
    init: str = "none"


class Segment(NamedTuple):
    """`frames` is its slice of the source, as --frames takes it; it holds positions first ... first + count - 1."""

    number: int
    frames: str
    first: int
    count: int

    @property
    def name(self) -> str:
        """Of its folder: sorts as the video runs."""
        return f"{self.number:05d}"


class Plan(NamedTuple):
    """A divided video: what was asked for, the slice that was divided of a source of `total` frames, its segments."""

    wishes: Wishes
    frames: str
    total: int
    segments: tuple[Segment, ...]

    @property
    def count(self) -> int:
        """Frames of all segments together."""
        return sum(segment.count for segment in self.segments)


def plan_video(data: str, frames: str, wishes: Wishes, progress: bool = False, raw_video: str = "") -> Plan:
    """Divides what `frames` chooses of a video; with `wishes.scenes` it is decoded once for that, in little memory.

    Raises UserError for a video that cannot be read, or of which `frames` chooses none.
    """
    total = frame_count(data, frames, raw_video)
    chosen = slice_positions(frames, total)
    if not chosen:
        raise UserError(f"--frames {frames!r} selects no frames of {data}: pass a wider start:stop:step")
    if not seeks(data, raw_video):
        remux = f": try remuxing with ffmpeg -i {data} -c copy out.mkv" if data.lower().endswith(REMUXED) else ""
        _log.warning("%s cannot be read from a key frame, so every segment decodes all frames before it%s", data, remux)
    cuts = find_cuts(data, chosen, progress, raw_video) if wishes.scenes else []
    return Plan(wishes, frames, total, divide(chosen, wishes.frames, cuts))


def divide(chosen: range, longest: int, cuts: Sequence[int] = ()) -> tuple[Segment, ...]:
    """`chosen` positions of the source, a segment beginning at 0 and at each of `cuts` (positions among the chosen).

    One of more than `longest` frames (0: any number) is divided further into as few as can be, of sizes that differ by
    one at most: no short one is left over at the end.
    """
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(chosen)}), len(chosen)]
    starts: list[int] = []
    for start, stop in zip(bounds, bounds[1:], strict=False):
        pieces = -(-(stop - start) // longest) if longest else 1
        starts += [start + (stop - start) * k // pieces for k in range(pieces)]
    ends = [*starts[1:], len(chosen)]
    return tuple(
        Segment(number, slice_text(chosen[start:stop]), start, stop - start)
        for number, (start, stop) in enumerate(zip(starts, ends, strict=True))
    )


def slice_text(chosen: range) -> str:
    """range(4, 20, 2) -> '4:20:2', what --frames takes; a range that runs down to the first frame has no stop."""
    step = f":{chosen.step}" if chosen.step != 1 else ""
    stop = "" if chosen.stop < 0 else chosen.stop
    return f"{chosen.start}:{stop}{step}"
