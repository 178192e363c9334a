"""Hits of a search, in one video or in many, as objects, as a text table and as dictionaries for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hnerv.search.index import Index
from hnerv.search.ranking import Hit
from hnerv.tables import Column, format_table
from hnerv.timeline import time_code


@dataclass(frozen=True, repr=False)
class SearchHit:
    """A patch that a search found, in the video of `index`.

    `video` is the path of the video relative to the folder that was searched, '' for a search in one video.
    """

    hit: Hit
    index: Index
    video: str = ""

    @property
    def frame(self) -> int:
        """The frame where the score peaks."""
        return self.hit.frame

    @property
    def time(self) -> float:
        """Seconds from the start of the video to that frame."""
        return self.index.scene.clock.seconds(self.hit.frame)

    @property
    def patch(self) -> int:
        """Numbered row by row from 0."""
        return self.hit.patch

    @property
    def row(self) -> int:
        return self.index.scene.grid.coords_of(self.hit.patch)[0]

    @property
    def col(self) -> int:
        return self.index.scene.grid.coords_of(self.hit.patch)[1]

    @property
    def score(self) -> float:
        """Mean cosine with the queries, minus the mean with those to avoid, in [-2, 2]."""
        return self.hit.score

    @property
    def z(self) -> float:
        """The score in standard deviations from the mean, over all patches that were searched."""
        return self.hit.z

    @property
    def first(self) -> int:
        """From this frame to `last`, the score stays close to the peak."""
        return self.hit.first

    @property
    def last(self) -> int:
        return self.hit.last

    @property
    def also(self) -> tuple[int, ...]:
        """Other patches of these frames with a score close to the peak, best first."""
        return self.hit.also

    @property
    def time_code(self) -> str:
        """The time as h:mm:ss.mmm."""
        return time_code(self.time)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        fields = self.hit._asdict() | {"also": list(self.also)}
        name = {"video": self.video} if self.video else {}
        return {**name, "time": self.time_code, "seconds": self.time, **fields, "row": self.row, "col": self.col}

    def __repr__(self) -> str:
        video = f"video={self.video!r}, " if self.video else ""
        return (
            f"SearchHit({video}frame={self.frame}, time={self.time:.3f}, patch={self.patch}, score={self.score:.4f}, "
            f"z={self.z:.2f})"
        )


HIT_COLUMNS = (
    Column("", ">3"),
    Column("time", "12", gap=1),
    Column("frame", ">6", gap=1),
    Column("patch", ">6", gap=1),
    Column("row,col", ">8", gap=1),
    Column("score", ">8", ".4f", gap=1),
    Column("z", ">6", ".2f", gap=1),
)


def hits_table(hits: Sequence[SearchHit]) -> str:
    """One line per hit in one video, best first. `also` lists patches."""
    columns = [*HIT_COLUMNS, Column("frames", "13", gap=2), Column("also", "", gap=1)]
    rows = [(*hit_cells(n, hit), f"{hit.first}-{hit.last}", patch_list(hit)) for n, hit in enumerate(hits, 1)]
    return format_table(columns, rows)


def collection_hits_table(hits: Sequence[SearchHit]) -> str:
    """One line per hit in many videos, best first, with the path of its video."""
    width = max((len(hit.video) for hit in hits), default=0)
    number, time, *others = HIT_COLUMNS
    columns = [number, Column("video", str(width), gap=1), time._replace(gap=2), *others, Column("", "", gap=2)]
    rows = []
    for n, hit in enumerate(hits, start=1):
        first, *cells = hit_cells(n, hit)
        rows.append((first, hit.video, *cells, f"also {patch_list(hit)}" if hit.also else ""))
    return format_table(columns, rows)


def hit_cells(number: int, hit: SearchHit) -> list[object]:
    """Cells for HIT_COLUMNS. `number` is the rank, from 1."""
    return [number, hit.time_code, hit.frame, hit.patch, f"{hit.row},{hit.col}", hit.score, hit.z]


def patch_list(hit: SearchHit) -> str:
    """'3,7': the other patches of the hit, '' if it has none."""
    return ",".join(map(str, hit.also))
