"""Evaluate a checkpoint, a run folder or a .hnerv file against its video: a table, files, and the Eval/ tags."""

from __future__ import annotations

import argparse
import json

from hnerv.command import one_line_errors, pick_device, set_up_torch
from hnerv.flags import eval_parser


def main() -> None:
    """The command: parse, measure, end with one line when it fails."""
    ask = eval_parser().parse_args()
    with one_line_errors("eval.py", ask.debug):
        measure(ask)


def measure(ask: argparse.Namespace) -> None:
    """Open, evaluate, write, report."""
    set_up_torch(ask.threads)
    from hnerv.codec import is_container, open_stream
    from hnerv.dataset import targets_label
    from hnerv.evaluation import add_to_summary, cost_of, eval_values, evaluate, table, write_files, write_images
    from hnerv.evaluation.fractional import check_half_grid, fractional_table, measure_fractional
    from hnerv.evaluation.opening import open_run
    from hnerv.semantics import as_dict, text_of
    from hnerv.semantics import measure as measure_semantics

    device = pick_device(ask.device)
    opener = open_stream if is_container(ask.path) else open_run
    run = opener(ask.path, device, data=ask.data, unseen=ask.unseen, clip_targets=ask.clip_targets)
    fractional, grid = ask.positions == "fractional", run.model.scene.grid
    if fractional:
        check_half_grid(grid)
    report = evaluate(run.model, run.store, run.config.model.unseen, progress=True)
    cost = cost_of(run.model, run.coded_bytes)
    summary = write_files(run, report, cost)
    if fractional:
        between = measure_fractional(run.model, run.store, report, progress=True)
        summary = add_to_summary(run.folder, summary, "fractional", between)
    if semantic := run.model.clip_head is not None:
        beside = measure_semantics(run, progress=True)
        summary = add_to_summary(run.folder, summary, "semantics", as_dict(beside))
    if ask.images:
        write_images(run.folder / "eval" / "images", run.model, run.store, report, progress=True)
    if ask.json:
        print(json.dumps(summary, indent=2))
    else:
        print(table(eval_values(report), targets_label(run.record), report.unseen))
        if fractional:
            print(fractional_table(between, grid, report.unseen))
        if semantic:
            print(f"\n{text_of(beside)}\n")
        print(cost.line(device))
        if not run.same_pixels:
            print(f"NOT THE PIXELS IT WAS TRAINED ON: measured against {run.source}")
        print(f"files:     {run.folder / 'eval'}, of {run.checkpoint.name} at epoch {run.epoch}")


if __name__ == "__main__":
    main()
