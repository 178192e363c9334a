"""`hnerv diagnose RUN`: findings on the curves of a run, in words."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hnerv.flags import Parser


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, finished or not")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> None:
    """Reads the files of training and eval.py; exit status 1 if one of the findings is a warning."""
    from hnerv.errors import UserError
    from hnerv.fleet.status import is_fleet
    from hnerv.report.findings import findings_of, has_warning
    from hnerv.report.results import read_run

    if is_fleet(args.run):
        raise UserError(f"{args.run} is a fleet folder: pass the folder of one of its runs")
    data = read_run(args.run)
    findings = findings_of(data)
    if args.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        print(f"{data.name}: {data.epoch} of {data.epochs} epochs, evaluated at epoch {data.values_epoch or '-'}")
        print("\n".join(finding.line() for finding in findings))
        print(f"similarity is measured against the targets: {data.targets}")
    if has_warning(findings):
        sys.exit(1)
