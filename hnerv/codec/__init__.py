"""Weights and latents <-> bytes: quantise, fine-tune, entropy-code, pack; and play back. docs/format.md defines it."""

from hnerv.codec.chunks import (
    evaluation_folder,
    has_several_chunks,
    open_chunks,
    open_coded_run,
)
from hnerv.codec.encoding import Options, check_options, encode_chunk, encode_run
from hnerv.codec.file import (
    BitstreamFile,
    CodedChunk,
    PartSize,
    coded_weights,
    encode_model,
    join_files,
    open_single_chunk,
    open_stored,
    summed_by_part,
)
from hnerv.codec.format import ChunkEntry, is_container, write_bitstream
from hnerv.codec.playback import frame_times, frames_in_errors, play, play_patch, play_video

__all__ = [
    "BitstreamFile",
    "ChunkEntry",
    "CodedChunk",
    "Options",
    "PartSize",
    "check_options",
    "coded_weights",
    "encode_chunk",
    "encode_model",
    "encode_run",
    "evaluation_folder",
    "frame_times",
    "frames_in_errors",
    "has_several_chunks",
    "is_container",
    "join_files",
    "open_chunks",
    "open_coded_run",
    "open_single_chunk",
    "open_stored",
    "play",
    "play_video",
    "play_patch",
    "summed_by_part",
    "write_bitstream",
]
