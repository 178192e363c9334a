"""`hnerv search`: search one video, or all videos of a folder, with a model alone."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hnerv.cli import add_device, add_model
from hnerv.errors import UserError
from hnerv.files import check_output
from hnerv.flags import Parser

if TYPE_CHECKING:
    from hnerv import NeuralVideo, VideoFolder
    from hnerv.search import Encoder, Query


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    add_model(parser, "; or a folder of many, searched together")
    add = parser.add_argument
    add(
        "query",
        nargs="*",
        metavar="QUERY",
        help="text to search for; several texts and images form one query (mean of their cosines); without any, "
        "queries are read from stdin, one per line",
    )
    add(
        "--not",
        dest="unwanted",
        action="append",
        default=[],
        metavar="TEXT",
        help="text to avoid: its cosine is subtracted; repeatable (mean of several)",
    )
    add("--image", action="append", type=Path, default=[], metavar="FILE", help="image file to search for; repeatable")
    add(
        "--embedding",
        action="append",
        default=[],
        metavar="FILE:FRAME,PATCH",
        help="an entry of 'embeddings' (N, P, D) in a safetensors file, or a file of one vector; needs no encoder; "
        "repeatable",
    )
    add("--top", type=int, default=5, metavar="N", help="number of hits to list (5)")
    add("--per-patch", action="store_true", help="list every patch as its own hit, instead of one hit per shot")
    add(
        "--prompts",
        default="plain",
        choices=("plain", "ensemble"),
        help="ensemble: mean embedding of several sentences built around the text (plain)",
    )
    add("--clip-weights", default="", metavar="TAG|FILE", help="the run's CLIP weights, if they have moved")
    add("--json", action="store_true", help="print hits as JSON; for queries from stdin, one object per line")
    add("--save", type=Path, metavar="SHEET.png", help="draw the hits, patches outlined; decodes only their frames")
    add("--heatmap", type=Path, metavar="FILE.png", help="draw the scores over the patches of the best frame")
    add("--overwrite", action="store_true", help="replace existing images")
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Search for the query of the command line, or for each line of stdin. Raises UserError."""
    _check(args)
    import hnerv
    from hnerv.runs import is_run

    if args.path.is_dir() and not is_run(args.path):
        if args.heatmap:
            raise UserError(
                f"--heatmap draws one video, but {args.path} is a folder of videos: pass one, or use --save"
            )
        source = hnerv.open_folder(args.path, args.device, args.clip_weights)
    else:
        source = hnerv.open(args.path, args.device, args.clip_weights)
    encoder = source.encoder
    if _has_query(args):
        _search(args, source, _queries(args, encoder), encoder.texts(args.unwanted, args.prompts))
        return
    encoder.check_text()
    encoder.teacher()  # slow and may fail: load it before the first prompt
    unwanted = encoder.texts(args.unwanted, args.prompts)
    for line in _lines():
        _search(args, source, encoder.texts([line], args.prompts), unwanted)


def _has_query(args: argparse.Namespace) -> bool:
    return bool(args.query or args.image or args.embedding)


def _check(args: argparse.Namespace) -> None:
    """Check the flags before anything heavy is loaded. Raises UserError."""
    if args.top < 1:
        raise UserError(f"--top {args.top} must be at least 1")
    if any(not text.strip() for text in (*args.query, *args.unwanted)):
        raise UserError("a query is empty: pass the text to search for")
    for path, flag in ((args.save, "--save"), (args.heatmap, "--heatmap")):
        if path is None:
            continue
        if not _has_query(args):
            raise UserError(f"{flag} draws a single query: pass it on the command line")
        if path.suffix.lower() != ".png":
            raise UserError(f"{flag} {path} does not end in .png: choose a name that does")
        check_output(path, flag, args.overwrite)


def _queries(args: argparse.Namespace, encoder: Encoder) -> list[Query]:
    """The queries of the command line, texts first."""
    from hnerv.search import embedding_query, read_image

    stored = [embedding_query(text, encoder.dim) for text in args.embedding]
    images = [(path.name, read_image(path)) for path in args.image]
    return [*encoder.texts(args.query, args.prompts), *encoder.images(images), *stored]


def _lines() -> Iterator[str]:
    """Non-blank lines of stdin, with a prompt on a terminal."""
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


def _search(args: argparse.Namespace, source: NeuralVideo | VideoFolder, wanted: list[Query], unwanted: list[Query]):
    """Print the hits of one query; draw them, and the scores of the best frame, on request."""
    from hnerv import VideoFolder
    from hnerv.search import collection_hits_table, contact_sheet, heat_map, hits_table

    if isinstance(source, VideoFolder):
        hits = source.search(*wanted, avoid=unwanted, top=args.top)
        fields = {"folder": str(source.path), "videos": len(source), "targets": hits[0].index.targets}
        text = collection_hits_table(hits)
    else:
        hits = source.search(*wanted, avoid=unwanted, top=args.top, per_patch=args.per_patch)
        fields, text = {"file": str(source.index.path), "targets": source.targets}, hits_table(hits)
    fields["hits"] = [hit.to_dict() for hit in hits]
    title = _print_hits(args, wanted, unwanted, fields, text)
    if args.save:
        contact_sheet(args.save, hits, title, source.device)
        _print_drawn(args, "hits", args.save)
    if args.heatmap:
        heat_map(args.heatmap, source.index, source.scores(*wanted, avoid=unwanted), title, source.device)
        _print_drawn(args, "scores of the best frame", args.heatmap)


def _print_hits(
    args: argparse.Namespace, wanted: list[Query], unwanted: list[Query], fields: dict[str, object], table: str
) -> str:
    """Print one answer, as JSON with `fields` or as a table -> its title."""
    labels = [query.label for query in wanted], [query.label for query in unwanted]
    title = " - ".join([" + ".join(labels[0]), *labels[1]])
    if args.json:
        record = {"query": labels[0], "not": labels[1], **fields}
        print(json.dumps(record, indent=2 if _has_query(args) else None), flush=True)
    else:
        print(f"{title}\n{table}\ntargets: {fields['targets']}", flush=True)
    return title


def _print_drawn(args: argparse.Namespace, subject: str, path: Path) -> None:
    """Print where a drawing is; on stderr if stdout is JSON."""
    print(f"{subject} drawn to {path}", file=sys.stderr if args.json else sys.stdout, flush=True)
