"""`hnerv report RUN [RUN ...]`: one HTML page that can be sent."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from hnerv.cli import add_device
from hnerv.command import pick_device
from hnerv.errors import UserError
from hnerv.files import check_output
from hnerv.flags import Parser


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folder or fleet folder; several runs appear side by side"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help="page to write (RUN/report.html; for several runs, report.html next to the first run folder)",
    )  # fmt: skip
    parser.add_argument("--out", dest="output", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--frames", type=int, default=12, metavar="N", help="frames shown by the slider (12)")
    parser.add_argument("--data", default="", metavar="PATH|CLIP", help="video, if it has moved since training")
    parser.add_argument("--clip-targets", default="", metavar="FILE", help="the run's target file, if it has moved")
    parser.add_argument("--overwrite", action="store_true", help="replace the file given by --output")
    add_device(parser)


def run(ask: argparse.Namespace) -> None:
    """Evaluates first where eval/ is missing or older than the checkpoint."""
    from hnerv.fleet import table
    from hnerv.fleet.page import write_page as fleet_page
    from hnerv.report.making import Wishes, tell
    from hnerv.report.page import write_page

    if ask.frames < 1:
        raise UserError(f"--frames {ask.frames} must be at least 1")
    if files := [path for path in ask.runs if path.is_file()]:
        raise UserError(f"{files[0]} is not a run folder: pass a folder such as output/NAME")
    path = ask.output or page_path(ask.runs)
    check_output(path, "--output", overwrite=ask.overwrite or not ask.output)
    if len(ask.runs) == 1 and table.is_fleet(ask.runs[0]):
        size = fleet_page(path, ask.runs[0].resolve().name, table.read_rows(ask.runs[0]))
        print(f"report:    {path} ({size_text(size)})")
        return
    for folder in ask.runs:
        table.check_no_fleet(folder)
    stories = tell(ask.runs, Wishes(pick_device(ask.device), ask.data, ask.clip_targets, ask.frames))
    for story in stories:
        for sentence in story.missing:
            logging.getLogger("hnerv").warning("%s: %s", story.run.name, sentence)
    size = write_page(path, stories)
    print(f"report:    {path} ({size_text(size)})")


def size_text(size: int) -> str:
    """2345678 -> '2.3 MB'; below 1 MB in kB."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def page_path(runs: list[Path]) -> Path:
    """Where the page goes unless told otherwise."""
    return runs[0] / "report.html" if len(runs) == 1 else runs[0].resolve().parent / "report.html"
