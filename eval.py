"""Evaluate a checkpoint, a run folder or a .hnerv file against its video: a table, files, and the Eval/ tags."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from hnerv.command import one_line_errors, pick_device, set_up_torch
from hnerv.errors import UserError
from hnerv.flags import eval_parser

if TYPE_CHECKING:
    import torch

    from hnerv.evaluation import OpenedRun
    from hnerv.evaluation.whole import PartResult


def main() -> None:
    """The command: parse, measure, end with one line when it fails."""
    ask = eval_parser().parse_args()
    with one_line_errors("eval.py", ask.debug):
        measure(ask)


def measure(ask: argparse.Namespace) -> None:
    """Open, evaluate, write, report; of a video in segments each of them, then the whole."""
    set_up_torch(ask.threads)
    from hnerv.codec import has_parts

    device = pick_device(ask.device)
    if has_parts(ask.path):
        measure_whole(ask, device)
    else:
        measure_one(ask, device)


def measure_one(ask: argparse.Namespace, device: torch.device) -> None:
    """A video with one model."""
    from hnerv.codec import open_parts
    from hnerv.dataset import targets_label
    from hnerv.evaluation import add_to_summary, cost_of, eval_values, evaluate, table, write_files, write_images
    from hnerv.evaluation.fractional import check_half_grid, fractional_table, measure_fractional
    from hnerv.semantics import as_dict, text_of
    from hnerv.semantics import measure as measure_semantics

    ((_, opened),) = open_parts(ask.path, device, ask.data, ask.unseen, ask.clip_targets)
    run = opened()
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
        return
    print(table(eval_values(report), targets_label(run.record), report.unseen))
    if fractional:
        print(fractional_table(between, grid, report.unseen))
    if semantic:
        print(f"\n{text_of(beside)}\n")
    print(cost.line(device))
    if not run.same_pixels:
        print(f"NOT THE PIXELS IT WAS TRAINED ON: measured against {run.source}")
    print(f"files:     {run.folder / 'eval'}, of {run.checkpoint.name} at epoch {run.epoch}")


def measure_whole(ask: argparse.Namespace, device: torch.device) -> None:
    """A video in segments; one is in memory at a time."""
    from hnerv.codec import open_parts, whole_folder
    from hnerv.evaluation import table
    from hnerv.evaluation.whole import combined_cost, write_whole

    if ask.positions == "fractional":
        raise UserError("--positions fractional is measured of one segment: give its folder or its file")
    parts = []
    for first, opened in open_parts(ask.path, device, ask.data, ask.unseen, ask.clip_targets):
        parts.append(measure_part(first, opened(), ask.images))
    folder, size = whole_folder(ask.path), 0 if ask.path.is_dir() else ask.path.stat().st_size
    cost = combined_cost(parts, size)
    summary = write_whole(folder, ask.path, parts, cost, size)
    if ask.json:
        print(json.dumps(summary, indent=2))
        return
    print(table(summary, summary["targets"], ask.unseen))
    print(cost.line(device))
    if not summary["same_pixels_as_trained_on"]:
        print(f"NOT THE PIXELS IT WAS TRAINED ON: measured against {summary['video']}")
    print(f"files:     {folder / 'eval'}, of {len(parts)} segments, whose own are beside them")


def measure_part(first: int, run: OpenedRun, images: bool) -> PartResult:
    """A segment whose first frame is frame `first` of the whole: its files, and what the whole needs to know."""
    from hnerv.evaluation import cost_of, evaluate, write_files, write_images
    from hnerv.evaluation.whole import PartResult

    report = evaluate(run.model, run.store, run.config.model.unseen, progress=True)
    cost, scene = cost_of(run.model, run.coded_bytes), run.model.scene
    if images:
        write_images(run.folder / "eval" / "images", run.model, run.store, report, progress=True)
    summary = write_files(run, report, cost)
    return PartResult(first, scene.frames, scene.height * scene.width, run.folder, summary, cost)


if __name__ == "__main__":
    main()
