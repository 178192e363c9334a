"""What a finished run says of itself, for the table of its fleet."""

from __future__ import annotations

from pathlib import Path

from hnerv.dataset import targets_label
from hnerv.evaluation.cost import estimated_rate
from hnerv.model import Scene
from hnerv.report.reading import read_run


def numbers_of(folder: Path) -> dict[str, object]:
    """The values of a row of the table, from config.json and metrics.jsonl. Raises UserError for a damaged one."""
    run = read_run(folder)
    unseen = run.values.get("Eval/Frame/val_clip_sim")
    values = {
        "psnr": run.values.get("Eval/Frame/train_psnr_frame"),
        "psnr_unseen": run.values.get("Eval/Frame/val_psnr_frame"),
        "bpp_estimate_8bit": _rate(run.record),
        "clip_sim": run.values.get("Eval/Frame/train_clip_sim") if unseen is None else unseen,
        "seconds": round(sum(seconds for _, seconds in run.curves.get("seconds", [])), 3),
        "targets": targets_label(run.record),
    }
    return {key: value for key, value in values.items() if value is not None}


def _rate(record: dict) -> float:
    return estimated_rate(sum(record["model"]["coded_parameters"].values()), Scene.from_dict(record["scene"]))
