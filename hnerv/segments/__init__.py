"""A video as runs of frames, each with its own network: how it is divided, and how that is written down."""

from hnerv.segments.folder import PLAN, Part, SegmentedFolder, is_segmented, parts_of, read_plan, targets_of, write_plan
from hnerv.segments.plan import Plan, Segment, Wishes, divide, plan_video

__all__ = [
    "PLAN", "Part", "Plan", "Segment", "SegmentedFolder", "Wishes", "divide", "is_segmented", "parts_of", "plan_video",
    "read_plan", "targets_of", "write_plan",
]  # fmt: skip
