"""Model, video and targets -> Report; its tags, tables and files."""

from hnerv.evaluation.combining import combined
from hnerv.evaluation.cost import cost_of
from hnerv.evaluation.files import add_to_summary, write_files
from hnerv.evaluation.images import write_images
from hnerv.evaluation.measure import Report, SplitReport, evaluate
from hnerv.evaluation.pictures import log_pictures, log_projector
from hnerv.evaluation.summary import eval_values, log_report, table
from hnerv.runs.opening import OpenedRun, load_weights, open_run

__all__ = [
    "OpenedRun",
    "Report",
    "SplitReport",
    "add_to_summary",
    "combined",
    "cost_of",
    "eval_values",
    "evaluate",
    "load_weights",
    "log_pictures",
    "log_projector",
    "log_report",
    "open_run",
    "table",
    "write_files",
    "write_images",
]
