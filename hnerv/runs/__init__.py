"""A run on disk: its folder, record, lock and checkpoints, and the chunks of a divided video."""

from hnerv.data.chunks import ChunkOptions, ChunkPlan, PlannedChunk, divide, plan_video
from hnerv.runs.chunks import (
    PLAN,
    RUN_FILES,
    Chunk,
    ChunkedFolder,
    chunks_of,
    is_run,
    read_plan,
    targets_of,
    write_plan,
)

__all__ = [
    "PLAN",
    "RUN_FILES",
    "Chunk",
    "ChunkOptions",
    "ChunkPlan",
    "ChunkedFolder",
    "PlannedChunk",
    "chunks_of",
    "divide",
    "is_run",
    "plan_video",
    "read_plan",
    "targets_of",
    "write_plan",
]
