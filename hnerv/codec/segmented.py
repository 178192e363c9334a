"""A video as one file: several files of one model each behind an index, or a single one, seen alike.

docs/format.md, «Segmented files», is its definition. Opening reads the index alone; a segment is read when it is asked
for.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hnerv.codec.container import SEGMENTED, is_segmented_file, pack_header, read_header
from hnerv.codec.file import Bitstream
from hnerv.data.video.colour import Display
from hnerv.errors import UserError
from hnerv.files import replacing
from hnerv.geometry import PatchGrid
from hnerv.model import Scene
from hnerv.model.scene import MAX_SIZE

FACTS = ("height", "width", "rows", "cols", "fps", "clip_dim")
"""What all segments of a file have in common, as `Scene` calls it."""


class FilePart(NamedTuple):
    """A segment: its first frame in the whole, its frames, where it begins in the file, its bytes."""

    first: int
    frames: int
    offset: int
    size: int


@dataclass(frozen=True)
class Film:
    """An opened file. `facts` are FACTS of every segment; `header_bytes` what stands in front of the first one."""

    path: Path
    size: int
    facts: dict
    parts: list[FilePart]
    header_bytes: int

    @property
    def frames(self) -> int:
        return self.parts[-1].first + self.parts[-1].frames

    @property
    def grid(self) -> PatchGrid:
        return PatchGrid(*(self.facts[name] for name in FACTS[:4]))

    @property
    def fps(self) -> float:
        return self.facts["fps"]

    @property
    def display(self) -> Display:
        """How its frames are to be shown. Raises UserError as `stream`."""
        return self.stream(self.parts[0]).record.video.display

    def stream(self, part: FilePart) -> Bitstream:
        """A segment. Raises UserError where it is damaged, or not what the index says."""
        if len(self.parts) == 1 and not self.header_bytes:
            return Bitstream(self.path)
        stream = Bitstream(self.path, part.offset, part.size)
        if stream.scene.frames != part.frames or facts_of(stream.scene) != self.facts:
            raise UserError(
                f"{self.path} has a segment at frame {part.first} that does not match its index: encode the run again"
            )
        return stream

    @functools.cached_property
    def streams(self) -> list[tuple[FilePart, Bitstream]]:
        """All segments in order, their headers read."""
        return [(part, self.stream(part)) for part in self.parts]

    def by_part(self, frames: Sequence[int]) -> Iterator[tuple[FilePart, Iterator[int]]]:
        """Frames of the whole, each stretch of them with the segment that holds it."""
        firsts = [part.first for part in self.parts]
        for number, group in itertools.groupby(frames, lambda frame: bisect.bisect_right(firsts, frame) - 1):
            yield self.parts[number], group


def facts_of(scene: Scene) -> dict:
    """{name: value} of FACTS."""
    return {name: getattr(scene, name) for name in FACTS}


def open_film(path: Path) -> Film:
    """Any file of ours. Raises UserError for what is none, is damaged in its index, or is cut short."""
    if not is_segmented_file(path):
        stream = Bitstream(path)
        return Film(path, stream.size, facts_of(stream.scene), [FilePart(0, stream.scene.frames, 0, stream.size)], 0)
    header, header_bytes, size = read_header(path, SEGMENTED)
    try:
        facts = {name: header["facts"][name] for name in FACTS}
        parts = _parts(header["segments"], header_bytes)
        _check(facts, parts, size)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not follow the .hnerv format (index: {error}): encode the run again") from error
    return Film(path, size, facts, parts, header_bytes)


def write_film(path: Path, files: Sequence[Path]) -> None:
    """Puts files of one model each, of the same geometry and in the order of the video, behind one index.

    Whole or not at all, and never more than a buffer of it in memory. Raises UserError.
    """
    facts, rows = None, []
    for file in files:
        stream = Bitstream(file)
        facts = facts or facts_of(stream.scene)
        if facts_of(stream.scene) != facts:
            raise UserError(
                f"{file} and {files[0]} differ in frame size, patch grid, frame rate or CLIP dimensions: join segments "
                "of one run"
            )
        rows.append([stream.scene.frames, stream.size])
    header = {"facts": facts, "segments": rows}
    try:
        with replacing(path) as whole:
            whole.write(pack_header(header, sum(size for _, size in rows), SEGMENTED))
            for file in files:
                with file.open("rb") as part:
                    shutil.copyfileobj(part, whole)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): choose another -o, or free disk space") from error


def _parts(rows: list, offset: int) -> list[FilePart]:
    parts, first = [], 0
    for frames, size in rows:
        if type(frames) is not int or type(size) is not int or frames < 1 or size < 1 or first + frames > MAX_SIZE:
            raise ValueError(f"invalid segment {len(parts)}")
        parts.append(FilePart(first, frames, offset, size))
        first, offset = first + frames, offset + size
    return parts


def _check(facts: dict, parts: list[FilePart], size: int) -> None:
    if not parts or parts[-1].offset + parts[-1].size != size:
        raise ValueError("invalid segment lengths")
    Scene.from_dict({"frames": 1, "train": [0], "val": [], **facts})
