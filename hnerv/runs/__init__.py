"""What a run is on disk: its folder, record, lock and checkpoints, and the chunks of a divided video."""

from hnerv.data.chunks import ChunkOptions, ChunkPlan, PlannedChunk, divide, plan_video
from hnerv.runs.chunks import PLAN, Chunk, ChunkedFolder, chunks_of, read_plan, targets_of, write_plan

__all__ = [
    "PLAN",
    "Chunk",
    "ChunkOptions",
    "ChunkPlan",
    "ChunkedFolder",
    "PlannedChunk",
    "chunks_of",
    "divide",
    "plan_video",
    "read_plan",
    "targets_of",
    "write_plan",
]
