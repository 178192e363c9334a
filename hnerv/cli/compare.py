"""`hnerv compare`: .hnerv files against x264, x265 and SVT-AV1 on the same frames."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hnerv.cli import add_device
from hnerv.errors import UserError
from hnerv.flags import Parser, add_vmaf


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    add = parser.add_argument
    add("files", type=Path, nargs="+", metavar="FILE.hnerv", help="files of one video, one rate point each")
    data = "the video; not needed if a file of that name is in the current folder"
    add("--data", default="", metavar="PATH|CLIP", help=data)
    codecs = "comma-separated, each NAME or NAME:PRESET: x264, x265 (preset medium), svt-av1 (preset 6); default: all"
    add("--against", default="x264,x265,svt-av1", metavar="CODECS", help=codecs)
    output = "write the comparison here as CSV, JSON and a plot"
    add("-o", "--output", type=Path, metavar="FOLDER", help=output)
    add("--json", action="store_true", help="print JSON instead of a table")
    add_vmaf(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Prints and writes the comparison. Raises UserError before anything is coded, where it can."""
    import hnerv
    from hnerv.codec.comparison.table import to_dict, write_comparison

    if args.output and args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output} is a file: pass a folder")
    comparison = hnerv.compare(args.files, args.against, data=args.data, vmaf=args.vmaf, device=args.device)
    print(json.dumps(to_dict(comparison), indent=2) if args.json else comparison)
    if args.output:
        written = [path.name for path in write_comparison(args.output, comparison)]
        if not args.json:
            print(f"files: {', '.join(written)} in {args.output}")
