"""`hnerv report RUN [RUN ...]`: one HTML page that can be sent."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from hnerv.cli import add_device, place
from hnerv.command import pick_device
from hnerv.errors import UserError
from hnerv.files import check_output
from hnerv.flags import Parser


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    runs_help = "run folder, or fleet folder at a path or an address; several runs appear side by side"
    output_help = "page to write (RUN/report.html; for several runs, report.html next to the first run folder)"
    parser.add_argument("runs", nargs="+", type=place, metavar="RUN", help=runs_help)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=output_help)
    parser.add_argument("--out", dest="output", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--frames", type=int, default=12, metavar="N", help="frames shown by the slider (12)")
    parser.add_argument("--data", default="", metavar="PATH|CLIP", help="video, if it has moved since training")
    parser.add_argument("--clip-targets", default="", metavar="FILE", help="the run's target file, if it has moved")
    parser.add_argument("--overwrite", action="store_true", help="replace the file given by --output")
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Writes the page. Evaluates first where an evaluation is missing or older than the checkpoint."""
    from hnerv.fleet.status import is_fleet
    from hnerv.report.contents import ReportOptions, collect
    from hnerv.report.page import write_report
    from hnerv.storage import is_remote

    if args.frames < 1:
        raise UserError(f"--frames {args.frames} must be at least 1")
    if len(args.runs) == 1 and is_fleet(args.runs[0]):
        report_fleet(args)
        return
    if wrong := [run for run in args.runs if os.path.isfile(run) or is_remote(str(run))]:
        raise UserError(f"{wrong[0]} is not a run folder: pass a folder such as output/NAME, or one fleet alone")
    first = args.runs[0]
    path = args.output or (first if len(args.runs) == 1 else first.resolve().parent) / "report.html"
    check_output(path, "--output", overwrite=args.overwrite or not args.output)
    options = ReportOptions(pick_device(args.device), args.data, args.clip_targets, args.frames)
    reports = collect(args.runs, options)
    for report in reports:
        for sentence in report.missing:
            logging.getLogger("hnerv").warning("%s: %s", report.run.name, sentence)
    print(f"report:    {path} ({size_text(write_report(path, reports))})")


def report_fleet(args: argparse.Namespace) -> None:
    """The table of a fleet, written into it unless --output names another place."""
    from hnerv.fleet.status import fleet_statuses
    from hnerv.fleet.table import cells_of, similarity_targets, summary
    from hnerv.report.page import render_fleet, save_page
    from hnerv.storage import Storage

    storage = Storage(str(args.runs[0]))
    if args.output:
        check_output(args.output, "--output", args.overwrite)
    statuses = fleet_statuses(storage)
    rows = [cells_of(name, status) for name, status in statuses.items()]
    text = render_fleet(storage.address.rsplit("/", 1)[-1], summary(statuses), similarity_targets(statuses), rows)
    if args.output:
        save_page(args.output, text)
    else:
        storage.write("report.html", text.encode())
    print(f"report:    {args.output or f'{storage.address}/report.html'} ({size_text(len(text.encode()))})")


def size_text(size: int) -> str:
    """2345678 -> '2.3 MB'; below 1 MB in kB."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
