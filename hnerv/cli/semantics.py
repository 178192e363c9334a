"""`hnerv semantics RUN`: what the CLIP head is worth beside its baselines."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hnerv.cli import add_device
from hnerv.errors import UserError
from hnerv.flags import Parser


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder (its latest.pt), checkpoint or .hnerv file")
    parser.add_argument("--data", default="", metavar="PATH|CLIP", help="video, if it has moved since training")
    parser.add_argument("--clip-targets", default="", metavar="FILE", help="the run's target file, if it has moved")
    parser.add_argument(
        "--queries", type=Path, metavar="FILE",
        help="text queries, one per line, if the encoder has a text tower (40 short captions shipped with hnerv)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_device(parser)


def run(ask: argparse.Namespace) -> None:
    """Prints the table. Raises UserError."""
    from hnerv.codec import is_container, open_coded_run
    from hnerv.command import pick_device
    from hnerv.data.clip import warned_once
    from hnerv.evaluation import open_run
    from hnerv.evaluation.semantics import as_dict, measure, read_queries, text_of

    if ask.clip_targets == "none":
        raise UserError(
            "--clip-targets none leaves out the CLIP head, which this command measures: pass the target file"
        )
    queries = read_queries(ask.queries) if ask.queries else []
    opener = open_coded_run if is_container(ask.run) else open_run
    with warned_once():
        opened = opener(ask.run, pick_device(ask.device), data=ask.data, clip_targets=ask.clip_targets)
        found = measure(opened, queries, progress=True)
    print(json.dumps(as_dict(found), indent=2) if ask.json else text_of(found))
