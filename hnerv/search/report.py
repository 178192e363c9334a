"""Hits for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence

from hnerv.model import Scene
from hnerv.search.ranking import Hit
from hnerv.tables import Column, format_table
from hnerv.timeline import time_code

HIT_COLUMNS = (
    Column("", ">3"),
    Column("time", "12", gap=1),
    Column("frame", ">6", gap=1),
    Column("patch", ">6", gap=1),
    Column("row,col", ">8", gap=1),
    Column("score", ">8", ".4f", gap=1),
    Column("z", ">6", ".2f", gap=1),
)


def hits_table(hits: Sequence[Hit], scene: Scene) -> str:
    """A line per hit, best first; `also` are patches."""
    columns = [*HIT_COLUMNS, Column("frames", "13", gap=2), Column("also", "", gap=1)]
    rows = [(*hit_cells(n, hit, scene), f"{hit.first}-{hit.last}", patch_list(hit)) for n, hit in enumerate(hits, 1)]
    return format_table(columns, rows)


def hit_cells(number: int, hit: Hit, scene: Scene) -> list[object]:
    """Cells of HIT_COLUMNS."""
    row, col = scene.grid.coords_of(hit.patch)
    time = time_code(scene.clock.seconds(hit.frame))
    return [number, time, hit.frame, hit.patch, f"{row},{col}", hit.score, hit.z]


def patch_list(hit: Hit) -> str:
    """'3,7': the patches beside the hit's own, '' where there are none."""
    return ",".join(map(str, hit.also))


def as_dict(hit: Hit, scene: Scene) -> dict[str, object]:
    """A hit as a plain dictionary; `first` and `last` are frames, `also` patches, `seconds` is where `frame` begins."""
    row, col = scene.grid.coords_of(hit.patch)
    seconds = scene.clock.seconds(hit.frame)
    fields = hit._asdict() | {"also": list(hit.also)}
    return {"time": time_code(seconds), "seconds": seconds, **fields, "row": row, "col": col}
