"""Evaluate a checkpoint, a run folder or a .hnerv file against its video: a table, files, and the Eval/ tags."""

from __future__ import annotations

import argparse

from hnerv.command import one_line_errors, pick_device, set_up_torch
from hnerv.flags import eval_parser


def main() -> None:
    """The command: parse, measure, end with one line when it fails."""
    ask = eval_parser().parse_args()
    with one_line_errors("eval.py", ask.debug):
        measure(ask)


def measure(ask: argparse.Namespace) -> None:
    """Open, evaluate, write, report; of a video in segments each of them, then the whole."""
    set_up_torch(ask.threads)
    from hnerv.codec import has_several_chunks
    from hnerv.data.clip import warned_once
    from hnerv.measuring import measure_one, measure_whole

    device = pick_device(ask.device)
    with warned_once():
        if has_several_chunks(ask.path):
            measure_whole(ask, device)
        else:
            measure_one(ask, device)


if __name__ == "__main__":
    main()
