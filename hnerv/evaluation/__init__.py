"""Model, video and targets -> Report; its values, tables and files; the CLIP head compared with baselines."""

from hnerv.evaluation.combination import combine
from hnerv.evaluation.cost import cost_line, cost_of, estimated_rate
from hnerv.evaluation.files import (
    EvaluatedChunk,
    add_to_summary,
    joint_summary,
    write_joint_evaluation,
)
from hnerv.evaluation.full import Evaluation, evaluate_chunk
from hnerv.evaluation.head_comparison import compare_head
from hnerv.evaluation.head_table import head_table
from hnerv.evaluation.measure import Report, SplitReport, evaluate
from hnerv.evaluation.pictures import decoded_frames, log_pictures, log_projector, write_images
from hnerv.evaluation.summary import eval_values, log_report, table
from hnerv.runs.models import OpenedRun, load_weights, open_run

__all__ = [
    "EvaluatedChunk",
    "Evaluation",
    "OpenedRun",
    "Report",
    "SplitReport",
    "add_to_summary",
    "combine",
    "compare_head",
    "cost_line",
    "cost_of",
    "decoded_frames",
    "estimated_rate",
    "eval_values",
    "evaluate",
    "evaluate_chunk",
    "head_table",
    "joint_summary",
    "load_weights",
    "log_pictures",
    "log_projector",
    "log_report",
    "open_run",
    "table",
    "write_images",
    "write_joint_evaluation",
]
