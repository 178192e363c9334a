"""The evaluation that eval.py makes: all measurements of a model, and their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hnerv.evaluation.cost import cost_line
from hnerv.evaluation.files import EvaluatedChunk, summary_of, write_evaluation
from hnerv.evaluation.fractional import check_half_grid, fractional_table, measure_fractional
from hnerv.evaluation.head_comparison import compare_head
from hnerv.evaluation.head_table import head_table
from hnerv.evaluation.measure import evaluate_run
from hnerv.evaluation.pictures import write_images
from hnerv.evaluation.summary import table
from hnerv.runs.models import OpenedRun


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation: `summary` is eval/summary.json, `report[tag]` one of its values, str() the table.

    `folder` is where the files of the evaluation are, or would be; `device` is the kind that decoded.
    """

    summary: dict[str, Any]
    folder: Path
    device: str
    tables: tuple[str, ...] = ()

    def __getitem__(self, tag: str) -> float:
        return self.summary[tag]

    def __str__(self) -> str:
        lines = [table(self.summary, self.summary["targets"], self.summary["unseen"]), *self.tables]
        lines.append(cost_line(self.summary, torch.device(self.device)))
        if not self.summary["same_pixels_as_trained_on"]:
            lines.append(f"NOT THE PIXELS IT WAS TRAINED ON: measured against {self.summary['video']}")
        return "\n".join(lines)


def evaluate_chunk(
    run: OpenedRun,
    first: int = 0,
    *,
    fractional: bool = False,
    baselines: bool = True,
    images: bool = False,
    vmaf: bool = False,
    save: bool = True,
    progress: bool = True,
) -> EvaluatedChunk:
    """Evaluate a model of the frames from position `first` of the video on.

    `fractional` also measures patches shifted by half a patch, `baselines` compares the CLIP head with others. With
    `save` the files are written to eval/ of the run's folder, with `images` also pictures of all frames.
    """
    model, store, tables = run.model, run.store, []
    more: dict[str, object] = {}
    if fractional:
        check_half_grid(model.scene.grid)
    report = evaluate_run(run, vmaf, progress)
    if fractional:
        values = measure_fractional(model, store, report, progress)
        more["fractional"] = values
        tables.append(fractional_table(values, model.scene.grid, report.unseen))
    if baselines and model.clip_head is not None:
        comparison = compare_head(run, progress=progress)
        more["semantics"] = comparison.to_dict()
        tables.append(f"\n{head_table(comparison)}\n")
    summary = summary_of(run, report, **more)
    if save:
        write_evaluation(run, report, summary)
        if images:
            write_images(run.folder / "eval" / "images", model, store, report, progress)
    return EvaluatedChunk(first, model.scene, run.folder, summary, tables)
