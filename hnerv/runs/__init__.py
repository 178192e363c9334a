"""A video as runs of frames, each with its own network: how it is divided, and how that is written down."""

from hnerv.data.chunks import Plan, Segment, Wishes, divide, plan_video
from hnerv.runs.chunks import PLAN, Part, SegmentedFolder, is_segmented, parts_of, read_plan, targets_of, write_plan

__all__ = [
    "PLAN", "Part", "Plan", "Segment", "SegmentedFolder", "Wishes", "divide", "is_segmented", "parts_of", "plan_video",
    "read_plan", "targets_of", "write_plan",
]  # fmt: skip
