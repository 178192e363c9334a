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


def run(ask: argparse.Namespace) -> None:
    """Checks every section, and prints what is in them. Raises UserError."""
    from hnerv.codec.describing import as_dict, origin_lines, parts_table, segments_table
    from hnerv.codec.segmented import open_film

    film = open_film(ask.file)
    for _, stream in film.streams:
        stream.check()
    if ask.json:
        print(json.dumps(as_dict(film), indent=2))
        return
    tables = [origin_lines(film), parts_table(film)] + [segments_table(film)] * bool(film.header_bytes)
    print("\n\n".join(tables))
