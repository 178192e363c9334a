"""`hnerv doctor`: what this machine can do, and how to mend what it cannot."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hnerv.flags import Parser

USES_TORCH = False
"""A torch that cannot be imported is a finding here, not an end."""


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    parser.add_argument("--online", action="store_true", help="check the hub for CLIP weights that are not cached")
    parser.add_argument(
        "--output", type=Path, default=Path("output"), metavar="FOLDER",
        help="folder that holds all runs, to check its disk (output)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def run(ask: argparse.Namespace) -> None:
    """One line a check; exit status 1 when a fault stands."""
    from hnerv.cli.doctoring import check_all

    checks = check_all(ask.output, ask.online)
    if ask.json:
        print(json.dumps([check._asdict() for check in checks], indent=2))
    else:
        print("\n".join(check.line() for check in checks))
    if any(check.level == "fault" for check in checks):
        sys.exit(1)
