"""`hnerv info`."""

from __future__ import annotations

import argparse
import json

from hnerv.cli import add_bitstream
from hnerv.flags import Parser


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    add_bitstream(parser)
    parser.add_argument("--json", action="store_true", help="print everything, including the configuration, as JSON")


def run(args: argparse.Namespace) -> None:
    """Verifies every section and prints what the file contains. Raises UserError."""
    import hnerv

    video = hnerv.open(args.file)
    info = video.info()
    print(json.dumps(info, indent=2) if args.json else video.description)
