"""Hits of one query in all videos of a collection.

N frames, P patches, D embedding dimensions, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hnerv.search.collection import Collection, Member
from hnerv.search.hit_table import HIT_COLUMNS, hit_cells, hit_dict, patch_list
from hnerv.search.index import Index
from hnerv.search.ranking import Hit, find_hits, query_direction, score_patches
from hnerv.search.vectors import nearest, score_error
from hnerv.tables import Column, format_table

CANDIDATES, CANDIDATE_GROWTH = 50, 8
"""Vectors first requested from the index per requested hit, and the factor for each further request."""


class CollectionHit(NamedTuple):
    """A hit in one member of a collection. Its z-score is relative to all patches of all videos."""

    member: Member
    index: Index
    hit: Hit


def find_across(
    collection: Collection, wanted: Tensor, unwanted: Tensor | None, top: int, device: torch.device
) -> list[CollectionHit]:
    """wanted (Q, D), unwanted (Q', D) -> at most `top` hits of all members merged, best first. Raises UserError.

    The approximate index orders the members by their best score. Members are scored exactly in this order until no
    remaining one can hold a better hit. Vectors outside the probed lists (see `vectors.PROBED`) are missed.
    """
    direction = query_direction(wanted, unwanted).numpy()
    mean, deviation = collection.moments.spread(direction)
    slack = score_error(collection.vectors, direction)
    hits: list[CollectionHit] = []
    scored: set[str] = set()
    for member, bound in _members_by_bound(collection, direction, top):
        # `bound` is an approximate score: an exact one exceeds it by at most `slack`.
        if len(hits) == top and hits[-1].hit.score >= bound + slack:
            break
        if member and member.path not in scored:
            scored.add(member.path)
            index = collection.open(member, device)
            own = find_hits(score_patches(index.embeddings, wanted, unwanted).numpy(), top)
            hits = sorted((*hits, *(CollectionHit(member, index, hit) for hit in own)), key=_sort_key)[:top]
    return [entry._replace(hit=_with_z_score(entry.hit, mean, deviation)) for entry in hits]


def collection_hits_table(hits: Sequence[CollectionHit]) -> str:
    """One line per hit, best first."""
    width = max((len(entry.member.path) for entry in hits), default=0)
    number, time, *others = HIT_COLUMNS
    columns = [number, Column("video", str(width), gap=1), time._replace(gap=2), *others, Column("", "", gap=2)]
    rows = []
    for n, (member, index, hit) in enumerate(hits, start=1):
        first, *cells = hit_cells(n, hit, index.scene)
        rows.append((first, member.path, *cells, f"also {patch_list(hit)}" if hit.also else ""))
    return format_table(columns, rows)


def collection_hit_dict(entry: CollectionHit) -> dict[str, object]:
    """`hit_dict` of the hit, and `video`, the path of the member relative to the collection."""
    return {"video": entry.member.path, **hit_dict(entry.hit, entry.index.scene)}


def _members_by_bound(collection: Collection, direction: np.ndarray, top: int) -> Iterator[tuple[Member | None, float]]:
    """Yield (member, approximate score) by descending score, so the score bounds all later ones.

    Vectors of one scene lie close together and can fill all candidates, hence the growing requests. If the index is
    exhausted, all members follow with an infinite bound.
    """
    count = CANDIDATES * top
    while count < collection.vectors.ntotal:
        scores, ids = nearest(collection.vectors, direction, count)
        yield from ((collection.member_of(vector), score) for score, vector in zip(scores, ids, strict=True))
        if len(ids) < count:
            break
        count *= CANDIDATE_GROWTH
    yield from ((member, np.inf) for member in collection.members)


def _sort_key(entry: CollectionHit) -> tuple:
    return -entry.hit.score, entry.member.path, entry.hit.frame, entry.hit.patch


def _with_z_score(hit: Hit, mean: float, deviation: float) -> Hit:
    """The hit with its z-score among scores of this mean and standard deviation."""
    return hit._replace(z=(hit.score - mean) / deviation if deviation > 0 else 0.0)
