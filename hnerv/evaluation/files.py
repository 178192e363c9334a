"""What eval.py leaves in a run's folder: eval/summary.json, the CSV files, the Eval/ tags under tensorboard/eval/."""

from __future__ import annotations

from pathlib import Path

from hnerv.errors import UserError
from hnerv.evaluation.cost import Cost
from hnerv.evaluation.measure import Report
from hnerv.evaluation.summary import log_report, write_csv
from hnerv.files import write_json
from hnerv.metrics import ms_ssim_scales
from hnerv.runs.opening import OpenedRun
from hnerv.tracking import RunLogger, events_folder


def write_files(run: OpenedRun, report: Report, cost: Cost) -> dict[str, object]:
    """Writes all of them, in place of an earlier evaluation's; its images stay. Returns the summary.

    Raises UserError when they cannot be written.
    """
    folder = run.folder / "eval"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        summary = _summary(run, report, cost, _write_events(run, report))
        write_json(folder / "summary.json", summary)
        write_csv(folder, report)
    except OSError as error:
        raise UserError(
            f"cannot write the evaluation to {folder} ({error}): check disk space and permissions"
        ) from error
    return summary


def add_to_summary(folder: Path, summary: dict[str, object], name: str, values: object) -> dict[str, object]:
    """The summary with `values` under `name`, written over the one in eval/ of a run's folder. Raises UserError."""
    summary = {**summary, name: values}
    try:
        write_json(folder / "eval" / "summary.json", summary)
    except OSError as error:
        raise UserError(
            f"cannot write the evaluation to {folder / 'eval'} ({error}): check disk space and permissions"
        ) from error
    return summary


def _write_events(run: OpenedRun, report: Report) -> dict[str, float]:
    """The Eval/ tags and what they mean; returns {tag: value}."""
    events = events_folder(run.folder) / "eval"
    for old in events.glob("events.out.tfevents.*"):
        old.unlink()
    with RunLogger(events, metrics=None, purge_step=0) as logger:
        logger.text("Model/Info/run", _text_page(run, report), run.epoch)
        return log_report(logger, report, run.epoch, run.step)


def _text_page(run: OpenedRun, report: Report) -> str:
    """Markdown: what the similarities of these events are to, and what was evaluated."""
    return (
        f"**{run.record.targets_label}**\n\n"
        f"- unseen frames: {_unseen_mode(run, report)}\n"
        f"- checkpoint: `{run.checkpoint}`, epoch {run.epoch}\n"
    )


def _summary(run: OpenedRun, report: Report, cost: Cost, values: dict[str, float]) -> dict[str, object]:
    """Fewer than 5 `ms_ssim_scales`, which small frames have, do not give the MS-SSIM of the literature."""
    scene, targets = run.model.scene, run.record.targets
    return {
        "checkpoint": str(run.checkpoint),
        "epoch": run.epoch,
        "targets": run.record.targets_label,
        "targets_kind": targets.kind if targets else "none",
        "unseen": _unseen_mode(run, report),
        **values,
        "ms_ssim_scales": ms_ssim_scales(scene.height, scene.width),
        "video": run.source,
        "same_pixels_as_trained_on": run.same_pixels,
        "coded_parameters": cost.parameters,
        **({"bpp": cost.bpp, "file_bytes": run.coded_bytes} if run.coded_bytes else {}),
        "bpp_estimate_8bit": cost.bpp_estimate_8bit,
        "gmac_per_frame": cost.gmac_per_frame,
        "decode_fps": cost.decode_fps,
    }


def _unseen_mode(run: OpenedRun, report: Report) -> str:
    return report.unseen if run.config.model.embedding == "encoder" else "decoded at their time stamps"
