"""`hnerv compare`: .hnerv files against x264, x265 and SVT-AV1 on the same frames."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hnerv.cli import add_device
from hnerv.errors import UserError
from hnerv.flags import Parser


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE.hnerv", help="files of one video, one rate point each"
    )
    parser.add_argument(
        "--data",
        default="",
        metavar="PATH|CLIP",
        help="the video; not needed if a file of that name is in the current folder",
    )
    parser.add_argument(
        "--against",
        default="x264,x265,svt-av1",
        metavar="CODECS",
        help="comma-separated, each NAME or NAME:PRESET: x264, x265 (preset medium), svt-av1 (preset 6); default: all",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="write the comparison here as CSV, JSON and a plot"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_device(parser)


def run(ask: argparse.Namespace) -> None:
    """Prints and writes the comparison. Raises UserError before anything is coded, where it can."""
    from hnerv.codec.comparison import compare_files, parse_codecs, text_table, to_dict, write_comparison
    from hnerv.command import pick_device

    codecs = parse_codecs(ask.against)
    if missing := [path for path in ask.files if not path.is_file()]:
        raise UserError(f"{missing[0]} is not a file: pass one written by `hnerv encode`")
    if ask.output and ask.output.exists() and not ask.output.is_dir():
        raise UserError(f"--output {ask.output} is a file: pass a folder")
    comparison = compare_files(ask.files, codecs, pick_device(ask.device), ask.data)
    print(json.dumps(to_dict(comparison), indent=2) if ask.json else text_table(comparison))
    if ask.output:
        written = [path.name for path in write_comparison(ask.output, comparison)]
        if not ask.json:
            print(f"files: {', '.join(written)} in {ask.output}")
