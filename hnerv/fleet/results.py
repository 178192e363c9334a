"""Results of a finished run for the table of its fleet."""

from __future__ import annotations

from pathlib import Path

from hnerv.evaluation import combine, estimated_rate
from hnerv.model import joined_scene
from hnerv.presets import Choice
from hnerv.report.results import RunResults, read_run
from hnerv.runs import ChunkedFolder, chunks_of
from hnerv.training.chunks import log_chunks


def run_values(folder: Path) -> dict[str, object]:
    """Values of a table row, from config.json and metrics.jsonl. Raises UserError if they are damaged."""
    return _values([read_run(folder)], None)


def close_segments(folder: Path, choice: Choice, report_to: str) -> dict[str, object]:
    """Values of a segmented video with all segments trained; logs the combined values as the single command does."""
    runs = [read_run(chunk.path) for chunk in chunks_of(folder)]
    combined = combine([run.values for run in runs])
    log_chunks(ChunkedFolder(folder), combined, choice.config.train.epochs, len(runs), report_to)
    return _values(runs, combined)


def _values(runs: list[RunResults], combined: dict[str, float] | None) -> dict[str, object]:
    measured, records = runs[0].values if combined is None else combined, [run.record for run in runs]
    unseen = measured.get("Eval/Frame/val_clip_sim")
    values = {
        "psnr": measured.get("Eval/Frame/train_psnr_frame"),
        "psnr_unseen": measured.get("Eval/Frame/val_psnr_frame"),
        "bpp_estimate_8bit": estimated_rate(
            sum(r.parameters for r in records), joined_scene([r.scene for r in records])
        ),
        "clip_sim": measured.get("Eval/Frame/train_clip_sim") if unseen is None else unseen,
        "seconds": round(sum(seconds for run in runs for _, seconds in run.curves.get("seconds", [])), 3),
        "targets": runs[0].record.targets_label,
    }
    return {key: value for key, value in values.items() if value is not None}
