"""Hits as rows of a text table and as dictionaries for JSON."""

from __future__ import annotations

from collections.abc import Sequence

from hnerv.model import Scene
from hnerv.search.collection import CollectionHit
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
    """One line per hit, best first. `also` lists patches."""
    columns = [*HIT_COLUMNS, Column("frames", "13", gap=2), Column("also", "", gap=1)]
    rows = [(*hit_cells(n, hit, scene), f"{hit.first}-{hit.last}", patch_list(hit)) for n, hit in enumerate(hits, 1)]
    return format_table(columns, rows)


def collection_hits_table(hits: Sequence[CollectionHit]) -> str:
    """One line per hit, best first, with the path of its video."""
    width = max((len(found.member.path) for found in hits), default=0)
    number, time, *others = HIT_COLUMNS
    columns = [number, Column("video", str(width), gap=1), time._replace(gap=2), *others, Column("", "", gap=2)]
    rows = []
    for n, (member, index, hit) in enumerate(hits, start=1):
        first, *cells = hit_cells(n, hit, index.scene)
        rows.append((first, member.path, *cells, f"also {patch_list(hit)}" if hit.also else ""))
    return format_table(columns, rows)


def hit_cells(number: int, hit: Hit, scene: Scene) -> list[object]:
    """Cells for HIT_COLUMNS. `number` is the rank, from 1."""
    row, col = scene.grid.coords_of(hit.patch)
    time = time_code(scene.clock.seconds(hit.frame))
    return [number, time, hit.frame, hit.patch, f"{row},{col}", hit.score, hit.z]


def patch_list(hit: Hit) -> str:
    """'3,7': the other patches of the hit, '' if it has none."""
    return ",".join(map(str, hit.also))


def hit_dict(hit: Hit, scene: Scene) -> dict[str, object]:
    """A hit as JSON types: `first` and `last` are frames, `also` patches, `seconds` the start of `frame`."""
    row, col = scene.grid.coords_of(hit.patch)
    seconds = scene.clock.seconds(hit.frame)
    fields = hit._asdict() | {"also": list(hit.also)}
    return {"time": time_code(seconds), "seconds": seconds, **fields, "row": row, "col": col}


def collection_hit_dict(found: CollectionHit) -> dict[str, object]:
    """`hit_dict` of the hit, and `video`, the path of the member relative to the collection."""
    return {"video": found.member.path, **hit_dict(found.hit, found.index.scene)}
