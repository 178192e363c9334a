"""What eval.py leaves in a run's folder: eval/summary.json, the CSV files, the Eval/ tags under tensorboard/eval/."""

from __future__ import annotations

import shutil

from hnerv.dataset import targets_label
from hnerv.errors import UserError
from hnerv.evaluation.cost import Cost
from hnerv.evaluation.measure import Report
from hnerv.evaluation.opening import OpenedRun
from hnerv.evaluation.summary import log_report, scales_of, write_csv
from hnerv.files import write_json
from hnerv.tracking import RunLogger, events_folder


def write_files(run: OpenedRun, report: Report, cost: Cost) -> dict[str, object]:
    """Writes all of them, in place of an earlier evaluation's; returns the summary. Raises UserError if it cannot."""
    folder = run.folder / "eval"
    events = events_folder(run.folder) / "eval"
    try:
        folder.mkdir(exist_ok=True)
        shutil.rmtree(events, ignore_errors=True)
        with RunLogger(events, metrics=None, purge_step=0) as logger:
            values = log_report(logger, report, run.epoch, run.step)
        scene = run.model.scene
        summary = {
            "checkpoint": str(run.checkpoint),
            "epoch": run.epoch,
            "targets": targets_label(run.record),
            "targets_kind": run.record["targets"]["kind"] if run.record["targets"] else "none",
            "unseen": report.unseen if run.config.model.embedding == "encoder" else "decoded at their time",
            **values,
            **scales_of((scene.height, scene.width)),
            "coded_parameters": cost.parameters,
            "gmac_per_frame": cost.gmac_per_frame,
            "decode_fps": cost.decode_fps,
        }
        write_json(folder / "summary.json", summary)
        write_csv(folder, report)
    except OSError as error:
        raise UserError(f"cannot write the evaluation to {folder} ({error}): free space or permission") from error
    return summary
