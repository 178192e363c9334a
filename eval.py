"""Evaluate a checkpoint, a run folder or a .hnerv file against its video: a table, files, and the Eval/ tags."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hnerv.command import one_line_errors, set_up_torch
from hnerv.flags import eval_parser


def main() -> None:
    """The command: parse, evaluate, exit with one line on an error."""
    args = eval_parser().parse_args()
    with one_line_errors("eval.py", args.debug):
        evaluate_path(args)


def evaluate_path(args: argparse.Namespace) -> None:
    """Open the model, measure every frame against the source, write the files, and print the results."""
    set_up_torch(args.threads)
    import hnerv

    report = hnerv.open(args.path, args.device).evaluate(
        args.data,
        clip_targets=args.clip_targets,
        unseen=args.unseen,
        fractional=args.positions == "fractional",
        images=args.images,
        vmaf=args.vmaf,
        save=True,
        progress=True,
    )
    if args.json:
        print(json.dumps(report.summary, indent=2))
        return
    print(report)
    segments = report.summary.get("segments")
    files = f"{Path(report.summary['checkpoint']).name} at epoch {report.summary['epoch']}"
    if segments:
        files = f"all {segments} segments; each segment also has an eval folder"
    print(f"files:     {report.folder} ({files})")


if __name__ == "__main__":
    main()
