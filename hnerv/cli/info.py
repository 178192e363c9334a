"""`hnerv info`."""

from __future__ import annotations

import argparse
import json

from hnerv.cli import add_bitstream
from hnerv.flags import Parser


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    add_bitstream(parser)
    parser.add_argument("--json", action="store_true", help="everything, the configuration too, as JSON")


def run(ask: argparse.Namespace) -> None:
    """Checks every section, and prints what is in them. Raises UserError."""
    from hnerv.codec.describing import as_dict, origin_lines, parts_table
    from hnerv.codec.file import Bitstream

    stream = Bitstream(ask.file)
    stream.check()
    print(json.dumps(as_dict(stream), indent=2) if ask.json else f"{origin_lines(stream)}\n\n{parts_table(stream)}")
