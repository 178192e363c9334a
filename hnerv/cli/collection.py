"""`hnerv search` of a folder of many videos."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hnerv.errors import UserError

if TYPE_CHECKING:
    import torch

    from hnerv.search import Collection, Query


def open_folder(ask: argparse.Namespace, device: torch.device) -> Collection:
    """The collection of `ask.path`. Raises UserError, also for what is drawn of one video only."""
    from hnerv.search import open_collection

    if ask.heatmap:
        raise UserError(f"--heatmap draws one video, but {ask.path} is a folder of videos: pass one, or use --save")
    return open_collection(ask.path, device)


def answer_across(
    ask: argparse.Namespace, collection: Collection, wanted: list[Query], unwanted: list[Query], device: torch.device
) -> None:
    """Prints the hits of one query in all videos, and draws what was asked for."""
    import torch

    from hnerv.search import collection_hit_dict, collection_hits_table, contact_sheet_across, find_across

    vectors = torch.stack([query.vector for query in wanted])
    against = torch.stack([query.vector for query in unwanted]) if unwanted else None
    hits = find_across(collection, vectors, against, ask.top, device)
    title = " + ".join(query.label for query in wanted) + "".join(f" - {query.label}" for query in unwanted)
    targets = hits[0].index.targets
    if ask.json:
        found = {
            "query": [query.label for query in wanted],
            "not": [query.label for query in unwanted],
            "folder": str(collection.folder),
            "videos": len(collection.members),
            "targets": targets,
            "hits": [collection_hit_dict(hit) for hit in hits],
        }
        print(json.dumps(found, indent=2 if ask.query or ask.image or ask.embedding else None), flush=True)
    else:
        print(f"{title}\n{collection_hits_table(hits)}\ntargets: {targets}", flush=True)
    if ask.save:
        drawn = [(found.member.path, found.index, found.hit) for found in hits]
        contact_sheet_across(ask.save, drawn, title, device)
        tell_drawn(ask, "hits", ask.save)


def tell_drawn(ask: argparse.Namespace, what: str, path: Path) -> None:
    """What was drawn, and where; on stderr where stdout is JSON."""
    print(f"{what} drawn to {path}", file=sys.stderr if ask.json else sys.stdout, flush=True)
