"""Model, video and targets -> Report; its tags, tables and files."""

from hnerv.evaluation.combining import combined
from hnerv.evaluation.cost import cost_of
from hnerv.evaluation.files import add_to_summary, write_files
from hnerv.evaluation.measure import FRAMES_AT_ONCE, Report, SplitReport, evaluate, predict, whole_batch
from hnerv.evaluation.pictures import decoded_frames, log_pictures, log_projector, write_images
from hnerv.evaluation.summary import eval_values, log_report, table
from hnerv.runs.opening import OpenedRun, load_weights, open_run

__all__ = [
    "FRAMES_AT_ONCE",
    "OpenedRun",
    "Report",
    "SplitReport",
    "add_to_summary",
    "combined",
    "cost_of",
    "decoded_frames",
    "eval_values",
    "evaluate",
    "load_weights",
    "log_pictures",
    "log_projector",
    "log_report",
    "open_run",
    "predict",
    "table",
    "whole_batch",
    "write_files",
    "write_images",
]
