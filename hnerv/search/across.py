"""The hits of one query over a whole collection.

N frames, P patches, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hnerv.search.collection import Collection, Member
from hnerv.search.index import Index
from hnerv.search.ranking import Hit, direction_of, find_hits, score_patches
from hnerv.search.report import HIT_COLUMNS, as_dict, hit_cells, patch_list
from hnerv.search.vectors import error_of, nearest
from hnerv.tables import Column, format_table

CANDIDATES, MORE = 50, 8
"""Vectors that the index is first asked for, per hit that is wanted, and how many times more it is asked for then."""


class Found(NamedTuple):
    """A hit in a member of a collection; its z-score is that among all patches of all videos."""

    member: Member
    index: Index
    hit: Hit


def find_across(
    collection: Collection, wanted: Tensor, unwanted: Tensor | None, top: int, device: torch.device
) -> list[Found]:
    """wanted (Q, D), unwanted (Q', D) -> at most `top` hits, best first: those of each member by itself, merged.

    The index says in which members the best scores are; these are scored exactly, in that order, until none that is
    left can hold a better hit. What the index overlooks (see `vectors.PROBED`) is missed. Raises UserError.
    """
    direction = direction_of(wanted, unwanted).numpy()
    mean, deviation = collection.moments.spread(direction)
    slack = error_of(collection.vectors, direction)
    hits: list[Found] = []
    done: set[str] = set()
    for member, bound in _by_promise(collection, direction, top):
        if len(hits) == top and hits[-1].hit.score >= bound + slack:
            break
        if member and member.path not in done:
            done.add(member.path)
            index = collection.open(member, device)
            own = find_hits(score_patches(index.embeddings, wanted, unwanted).numpy(), top)
            hits = sorted((*hits, *(Found(member, index, hit) for hit in own)), key=_rank)[:top]
    return [found._replace(hit=_among(found.hit, mean, deviation)) for found in hits]


def found_table(hits: Sequence[Found]) -> str:
    """A line per hit, best first."""
    width = max((len(found.member.path) for found in hits), default=0)
    number, time, *others = HIT_COLUMNS
    columns = [number, Column("video", str(width), gap=1), time._replace(gap=2), *others, Column("", "", gap=2)]
    rows = []
    for n, (member, index, hit) in enumerate(hits, start=1):
        first, *cells = hit_cells(n, hit, index.scene)
        rows.append((first, member.path, *cells, f"also {patch_list(hit)}" if hit.also else ""))
    return format_table(columns, rows)


def found_dict(found: Found) -> dict[str, object]:
    """`as_dict` of the hit, and `video`, the path of the member in its collection."""
    return {"video": found.member.path, **as_dict(found.hit, found.index.scene)}


def _by_promise(collection: Collection, direction: np.ndarray, top: int) -> Iterator[tuple[Member | None, float]]:
    """Members, and the score in the index that none of those to follow exceeds; at last all, without such a score.

    The index is asked for more and more vectors, since those of one scene lie close together.
    """
    count = CANDIDATES * top
    while count < collection.vectors.ntotal:
        scores, ids = nearest(collection.vectors, direction, count)
        yield from ((collection.member_of(vector), score) for score, vector in zip(scores, ids, strict=True))
        if len(ids) < count:
            break
        count *= MORE
    yield from ((member, np.inf) for member in collection.members)


def _rank(found: Found) -> tuple:
    return -found.hit.score, found.member.path, found.hit.frame, found.hit.patch


def _among(hit: Hit, mean: float, deviation: float) -> Hit:
    """With its z-score among scores of this mean and standard deviation."""
    return hit._replace(z=(hit.score - mean) / deviation if deviation > 0 else 0.0)
