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
    from hnerv.codec import BitstreamFile
    from hnerv.codec.description import chunks_table, info_dict, origin_lines, parts_table

    file = BitstreamFile(args.file)
    for chunk in file.opened_chunks:
        chunk.check()
    if args.json:
        print(json.dumps(info_dict(file), indent=2))
        return
    tables = [origin_lines(file), parts_table(file)]
    if len(file.chunks) > 1:
        tables.append(chunks_table(file))
    print("\n\n".join(tables))
