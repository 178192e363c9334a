"""The evaluation that eval.py makes of one model: all measurements, and their files."""

from __future__ import annotations

from hnerv.evaluation.files import EvaluatedChunk, summary_of, write_evaluation
from hnerv.evaluation.fractional import check_half_grid, fractional_table, measure_fractional
from hnerv.evaluation.head_comparison import compare_head
from hnerv.evaluation.head_table import head_table
from hnerv.evaluation.measure import evaluate_run
from hnerv.evaluation.pictures import write_images
from hnerv.runs.models import OpenedRun


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
        more["fractional"] = measure_fractional(model, store, report, progress)
        tables.append(fractional_table(more["fractional"], model.scene.grid, report.unseen))
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
