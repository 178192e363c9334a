"""`hnerv semantics RUN`: the CLIP head compared with its baselines."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hnerv.cli import add_device
from hnerv.flags import Parser


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder (its latest.pt), checkpoint or .hnerv file")
    parser.add_argument("--data", default="", metavar="PATH|CLIP", help="video, if it has moved since training")
    parser.add_argument("--clip-targets", default="", metavar="FILE", help="the run's target file, if it has moved")
    text = "text queries, one per line, if the encoder has a text tower (40 short captions shipped with hnerv)"
    parser.add_argument("--queries", type=Path, metavar="FILE", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Prints the table. Raises UserError."""
    import hnerv
    from hnerv.evaluation import head_table
    from hnerv.evaluation.head_comparison import read_queries

    queries = read_queries(args.queries) if args.queries else []
    video = hnerv.open(args.run, args.device)
    comparison = video.compare_head(args.data, clip_targets=args.clip_targets, queries=queries)
    print(json.dumps(comparison.to_dict(), indent=2) if args.json else head_table(comparison))
