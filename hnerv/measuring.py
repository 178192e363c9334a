"""What eval.py does: a video with one model, or each segment of one and then the whole; printed and written."""

from __future__ import annotations

import argparse
import json

import torch

from hnerv.codec import open_parts, whole_folder
from hnerv.errors import UserError
from hnerv.evaluation import (
    OpenedRun,
    add_to_summary,
    cost_of,
    eval_values,
    evaluate,
    table,
    write_files,
    write_images,
)  # fmt: skip
from hnerv.evaluation.fractional import check_half_grid, fractional_table, measure_fractional
from hnerv.evaluation.semantics import as_dict, text_of
from hnerv.evaluation.semantics import measure as measure_semantics
from hnerv.evaluation.whole import PartResult, combined_cost, write_whole


def measure_one(ask: argparse.Namespace, device: torch.device) -> None:
    """A video with one model. `ask` is the command line of eval.py. Raises UserError."""
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
    print(table(eval_values(report), run.record.targets_label, report.unseen))
    if fractional:
        print(fractional_table(between, grid, report.unseen))
    if semantic:
        print(f"\n{text_of(beside)}\n")
    print(cost.line(device))
    if not run.same_pixels:
        print(f"NOT THE PIXELS IT WAS TRAINED ON: measured against {run.source}")
    print(f"files:     {run.folder / 'eval'} ({run.checkpoint.name} at epoch {run.epoch})")


def measure_whole(ask: argparse.Namespace, device: torch.device) -> None:
    """A video in segments; one is in memory at a time. Raises UserError."""
    if ask.positions == "fractional":
        raise UserError("--positions fractional works on one segment only: pass its folder or its file")
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
    print(f"files:     {folder / 'eval'} (all {len(parts)} segments; each segment also has an eval folder)")


def measure_part(first: int, run: OpenedRun, images: bool) -> PartResult:
    """A segment whose first frame is frame `first` of the whole: its files, and what the whole needs to know."""
    report = evaluate(run.model, run.store, run.config.model.unseen, progress=True)
    cost, scene = cost_of(run.model, run.coded_bytes), run.model.scene
    if images:
        write_images(run.folder / "eval" / "images", run.model, run.store, report, progress=True)
    summary = write_files(run, report, cost)
    return PartResult(first, scene.frames, scene.height * scene.width, run.folder, summary, cost)
