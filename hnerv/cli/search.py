"""`hnerv search`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hnerv.cli import add_device, add_model
from hnerv.cli.collection import answer_across, open_folder, tell_drawn
from hnerv.errors import UserError
from hnerv.files import check_output
from hnerv.flags import Parser

if TYPE_CHECKING:
    import torch

    from hnerv.search import Encoder, Index, Query


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    add_model(parser, "; or a folder of many, searched together")
    add = parser.add_argument
    add(
        "query", nargs="*", metavar="QUERY",
        help="text to search for; several texts and images form one query (mean of their cosines); without any, "
        "queries are read from stdin, one per line",
    )  # fmt: skip
    add(
        "--not", dest="unwanted", action="append", default=[], metavar="TEXT",
        help="text to avoid: its cosine is subtracted; repeatable (mean of several)",
    )  # fmt: skip
    add(
        "--image", action="append", type=Path, default=[], metavar="FILE",
        help="image file to search for; repeatable",
    )  # fmt: skip
    add(
        "--embedding", action="append", default=[], metavar="FILE:FRAME,PATCH",
        help="an entry of 'embeddings' (N, P, D) in a safetensors file, or a file of one vector; needs no encoder; "
        "repeatable",
    )  # fmt: skip
    add("--top", type=int, default=5, metavar="N", help="number of hits to list (5)")
    add("--per-patch", action="store_true", help="list every patch as its own hit, instead of one hit per shot")
    add(
        "--prompts", default="plain", choices=("plain", "ensemble"),
        help="ensemble: mean embedding of several sentences built around the text (plain)",
    )  # fmt: skip
    add("--clip-weights", default="", metavar="TAG|FILE", help="the run's CLIP weights, if they have moved")
    add("--json", action="store_true", help="print hits as JSON; for queries from stdin, one object per line")
    add("--save", type=Path, metavar="SHEET.png", help="draw the hits, patches outlined; decodes only their frames")
    add("--heatmap", type=Path, metavar="FILE.png", help="draw the scores over the patches of the best frame")
    add("--overwrite", action="store_true", help="replace existing images")
    add_device(parser)


def run(ask: argparse.Namespace) -> None:
    """Answers the query of the command line, or those that are typed. Raises UserError."""
    _check(ask)
    from hnerv.command import pick_device
    from hnerv.search import Encoder, is_collection, open_index

    device = pick_device(ask.device)
    if is_collection(ask.path):
        opened, answer = open_folder(ask, device), answer_across
        index = opened.teacher(device)
    else:
        opened = index = open_index(ask.path, device)
        answer = _answer
    encoder = Encoder(index, ask.clip_weights, device)
    if _asks(ask):
        answer(ask, opened, _given(ask, index, encoder), encoder.texts(ask.unwanted, ask.prompts), device)
        return
    encoder.check_text()
    encoder.teacher()  # what is slow, or fails, comes before the first prompt
    unwanted = encoder.texts(ask.unwanted, ask.prompts)
    for line in _lines():
        answer(ask, opened, encoder.texts([line], ask.prompts), unwanted, device)


def _asks(ask: argparse.Namespace) -> bool:
    """Whether the command line holds a query."""
    return bool(ask.query or ask.image or ask.embedding)


def _check(ask: argparse.Namespace) -> None:
    """Before anything heavy is loaded. Raises UserError."""
    if ask.top < 1:
        raise UserError(f"--top {ask.top} must be at least 1")
    if any(not text.strip() for text in (*ask.query, *ask.unwanted)):
        raise UserError("a query is empty: pass the text to search for")
    for path, flag in ((ask.save, "--save"), (ask.heatmap, "--heatmap")):
        if path is None:
            continue
        if not _asks(ask):
            raise UserError(f"{flag} draws a single query: pass it on the command line")
        if path.suffix.lower() != ".png":
            raise UserError(f"{flag} {path} does not end in .png: choose a name that does")
        check_output(path, flag, ask.overwrite)


def _given(ask: argparse.Namespace, index: Index, encoder: Encoder) -> list[Query]:
    """The queries of the command line, texts first."""
    from hnerv.search import embedding_query, read_image

    dim = index.embeddings.shape[-1]
    stored = [embedding_query(text, dim) for text in ask.embedding]
    images = [(path.name, read_image(path)) for path in ask.image]
    return [*encoder.texts(ask.query, ask.prompts), *encoder.images(images), *stored]


def _lines() -> Iterator[str]:
    """Queries from standard input, blank lines left out; on a terminal with a prompt."""
    terminal = sys.stdin.isatty()
    while True:
        if terminal:
            sys.stderr.write("query (Ctrl-D to quit): ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _answer(
    ask: argparse.Namespace, index: Index, wanted: list[Query], unwanted: list[Query], device: torch.device
) -> None:
    """Prints the hits of one query and draws what was asked for."""
    import torch

    from hnerv.search import contact_sheet, find_hits, heat_map, hit_dict, hits_table, score_patches

    vectors = torch.stack([query.vector for query in wanted])
    against = torch.stack([query.vector for query in unwanted]) if unwanted else None
    scores = score_patches(index.embeddings, vectors, against).numpy()
    hits = find_hits(scores, ask.top, ask.per_patch)
    title = " + ".join(query.label for query in wanted) + "".join(f" - {query.label}" for query in unwanted)
    if ask.json:
        found = {
            "query": [query.label for query in wanted],
            "not": [query.label for query in unwanted],
            "file": str(index.path),
            "targets": index.targets,
            "hits": [hit_dict(hit, index.scene) for hit in hits],
        }
        print(json.dumps(found, indent=2 if _asks(ask) else None), flush=True)
    else:
        targets = f"targets: {index.targets}"
        print(f"{title}\n{hits_table(hits, index.scene)}\n{targets}", flush=True)
    if ask.save:
        contact_sheet(ask.save, index, hits, title, device)
        tell_drawn(ask, "hits", ask.save)
    if ask.heatmap:
        heat_map(ask.heatmap, index, scores, title, device)
        tell_drawn(ask, "scores of the best frame", ask.heatmap)
