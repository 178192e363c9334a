"""Hits for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence

from hnerv.model import Scene
from hnerv.search.ranking import Hit
from hnerv.timeline import time_code


def hits_table(hits: Sequence[Hit], scene: Scene) -> str:
    """A line per hit, best first; `also` are patches."""
    clock = scene.clock
    head = f"{'':>3} {'time':12} {'frame':>6} {'patch':>6} {'row,col':>8} {'score':>8} {'z':>6}  {'frames':13} also"
    rows = [head]
    for number, hit in enumerate(hits, start=1):
        row, col = scene.grid.coords_of(hit.patch)
        place = f"{row},{col}"
        rows.append(
            f"{number:>3} {time_code(clock.seconds(hit.frame)):12} {hit.frame:>6} {hit.patch:>6} {place:>8} "
            f"{hit.score:>8.4f} {hit.z:>6.2f}  {f'{hit.first}-{hit.last}':13} {patch_list(hit)}".rstrip()
        )
    return "\n".join(rows)


def patch_list(hit: Hit) -> str:
    """'3,7': the patches beside the hit's own, '' where there are none."""
    return ",".join(map(str, hit.also))


def as_dict(hit: Hit, scene: Scene) -> dict[str, object]:
    """A hit as a plain dictionary; `first` and `last` are frames, `also` patches, `seconds` is where `frame` begins."""
    row, col = scene.grid.coords_of(hit.patch)
    seconds = scene.clock.seconds(hit.frame)
    fields = hit._asdict() | {"also": list(hit.also)}
    return {"time": time_code(seconds), "seconds": seconds, **fields, "row": row, "col": col}
