"""Evaluate a checkpoint, a run folder or a .hnerv file against its video: a table, files, and the Eval/ tags."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from hnerv.command import one_line_errors, pick_device, set_up_torch
from hnerv.errors import UserError
from hnerv.flags import eval_parser

if TYPE_CHECKING:
    from hnerv.evaluation import EvaluatedChunk, OpenedRun


def main() -> None:
    """The command: parse, evaluate, exit with one line on an error."""
    args = eval_parser().parse_args()
    with one_line_errors("eval.py", args.debug):
        evaluate_path(args)


def evaluate_path(args: argparse.Namespace) -> None:
    """Open the chunks of the video, mostly one, evaluate each, join the results, and print them."""
    set_up_torch(args.threads)
    from hnerv.codec import evaluation_folder, has_several_chunks, open_chunks
    from hnerv.data.clip import warned_once
    from hnerv.evaluation import cost_line, table, write_joint_evaluation

    device, divided, fractional = (
        pick_device(args.device),
        has_several_chunks(args.path),
        args.positions == "fractional",
    )
    if fractional and divided:
        raise UserError("--positions fractional works on one segment only: pass its folder or its file")
    with warned_once():
        chunks = [
            evaluate_chunk(first, open_chunk(), fractional, baselines=not divided, images=args.images)
            for first, open_chunk in open_chunks(args.path, device, args.data, args.unseen, args.clip_targets)
        ]
    folder, summary = chunks[0].folder, chunks[0].summary
    files = f"{Path(summary['checkpoint']).name} at epoch {summary['epoch']}"
    if divided:
        folder = evaluation_folder(args.path)
        summary = write_joint_evaluation(folder, args.path, chunks)
        files = f"all {len(chunks)} segments; each segment also has an eval folder"
    if args.json:
        print(json.dumps(summary, indent=2))
        return
    print(table(summary, summary["targets"], summary["unseen"]))
    for text in (text for chunk in chunks for text in chunk.tables):
        print(text)
    print(cost_line(summary, device))
    if not summary["same_pixels_as_trained_on"]:
        print(f"NOT THE PIXELS IT WAS TRAINED ON: measured against {summary['video']}")
    print(f"files:     {folder / 'eval'} ({files})")


def evaluate_chunk(first: int, run: OpenedRun, fractional: bool, baselines: bool, images: bool) -> EvaluatedChunk:
    """Evaluate a model of the frames from position `first` of the video on, and write its files.

    The model and its frames are released on return: one chunk is in memory at a time.
    """
    from hnerv.codec import head_bytes
    from hnerv.evaluation import (
        EvaluatedChunk,
        add_to_summary,
        compare_head,
        cost_of,
        evaluate,
        head_table,
        write_evaluation,
        write_images,
    )
    from hnerv.evaluation.fractional import check_half_grid, fractional_table, measure_fractional

    grid, tables = run.model.scene.grid, []
    if fractional:
        check_half_grid(grid)
    report = evaluate(run.model, run.store, run.config.model.unseen, progress=True)
    summary = write_evaluation(run, report, cost_of(run))
    if fractional:
        values = measure_fractional(run.model, run.store, report, progress=True)
        summary = add_to_summary(run.folder, summary, "fractional", values)
        tables.append(fractional_table(values, grid, report.unseen))
    if baselines and run.model.clip_head is not None:
        comparison = compare_head(run, head_bytes(run), progress=True)
        summary = add_to_summary(run.folder, summary, "semantics", comparison.to_dict())
        tables.append(f"\n{head_table(comparison)}\n")
    if images:
        write_images(run.folder / "eval" / "images", run.model, run.store, report, progress=True)
    return EvaluatedChunk(first, run.model.scene, run.folder, summary, tables)


if __name__ == "__main__":
    main()
