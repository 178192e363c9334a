"""How a video is divided into chunks, each with its own network. Positions count the frames chosen by --frames, from 0.

Imports the readers of videos only where one is read, so that the parser of the command line can use the options.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from hnerv.errors import UserError

CHUNK_INITS = ("none", "previous")
REMUXED = (".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".flv")
"""Containers without an index of key frames whose codecs Matroska also holds."""


class ChunkOptions(NamedTuple):
    """The --segment-* flags: most frames of a chunk (0: no limit), whether cuts start one, how its weights start."""

    frames: int = 0
    scenes: bool = False
    init: str = "none"

    @property
    def divides(self) -> bool:
        """Whether these options divide a video."""
        return bool(self.frames or self.scenes)

    def checked(self) -> ChunkOptions:
        """These options. Raises UserError where they are invalid or contradict each other."""
        if self.frames and self.frames < 3:
            raise UserError(f"--segment-frames {self.frames} must be at least 3, or 0 for no limit")
        if self.init not in CHUNK_INITS:
            raise UserError(f"--segment-init {self.init[:40]!r} does not exist: choose from {', '.join(CHUNK_INITS)}")
        if self.init != "none" and not self.divides:
            raise UserError("--segment-init needs a video in segments: pass --segment-frames N or --segment-scenes")
        return self


class PlannedChunk(NamedTuple):
    """`frames` is its slice of the source, as --frames takes it; it covers positions first ... first + count - 1."""

    number: int
    frames: str
    first: int
    count: int

    @property
    def name(self) -> str:
        """Name of its folder; names sort in the order of the video."""
        return f"{self.number:05d}"


class ChunkPlan(NamedTuple):
    """A divided video: the options, the slice `frames` that was divided of a source of `total` frames, the chunks."""

    options: ChunkOptions
    frames: str
    total: int
    chunks: tuple[PlannedChunk, ...]

    @property
    def count(self) -> int:
        """Frames of all chunks together."""
        return sum(chunk.count for chunk in self.chunks)


def plan_video(data: str, frames: str, options: ChunkOptions, progress: bool = False, raw_video: str = "") -> ChunkPlan:
    """Divides the `frames` of a video; `options.scenes` decodes them once to find cuts, one frame in memory at a time.

    Raises UserError for a video that cannot be read, or where `frames` selects nothing.
    """
    from hnerv.data.cuts import find_cuts
    from hnerv.data.video import frame_count, seeks, slice_positions

    total = frame_count(data, frames, raw_video)
    chosen = slice_positions(frames, total)
    if not chosen:
        raise UserError(f"--frames {frames!r} selects no frames of {data}: pass a wider start:stop:step")
    if not seeks(data, raw_video):
        remux = f": try remuxing with ffmpeg -i {data} -c copy out.mkv" if data.lower().endswith(REMUXED) else ""
        logging.getLogger("hnerv").warning(
            "%s cannot be read from a key frame, so every segment decodes all frames before it%s", data, remux
        )
    cuts = find_cuts(data, chosen, progress, raw_video) if options.scenes else []
    return ChunkPlan(options, frames, total, divide(chosen, options.frames, cuts))


def divide(chosen: range, longest: int, cuts: Sequence[int] = ()) -> tuple[PlannedChunk, ...]:
    """Chunks of the `chosen` positions of the source; one starts at 0 and at each of `cuts` (indices into `chosen`).

    n frames between two cuts become p = ceil(n / longest) chunks (`longest` 0: one), bounded by floor(n k / p) for
    k = 0 ... p: their sizes differ by at most one, so no short chunk is left over at the end.
    """
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(chosen)}), len(chosen)]
    starts: list[int] = []
    for start, stop in zip(bounds, bounds[1:], strict=False):
        pieces = -(-(stop - start) // longest) if longest else 1
        starts += [start + (stop - start) * k // pieces for k in range(pieces)]
    ends = [*starts[1:], len(chosen)]
    return tuple(
        PlannedChunk(number, slice_text(chosen[start:stop]), start, stop - start)
        for number, (start, stop) in enumerate(zip(starts, ends, strict=True))
    )


def slice_text(chosen: range) -> str:
    """range(4, 20, 2) -> '4:20:2', the syntax of --frames. A range that runs down to frame 0 has no stop."""
    step = f":{chosen.step}" if chosen.step != 1 else ""
    stop = "" if chosen.stop < 0 else chosen.stop
    return f"{chosen.start}:{stop}{step}"
