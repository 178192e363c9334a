"""Weights and latents <-> bytes: quantise, fine-tune, entropy-code, pack; and play back. docs/format.md defines it."""

from hnerv.codec.container import is_container, write_container
from hnerv.codec.encoding import Options, check_options, encode_run
from hnerv.codec.file import Bitstream, Part, coded_weights, encode_model, summed_by_part
from hnerv.codec.opening import check_trained, has_parts, head_bytes, open_parts, open_stream, whole_folder
from hnerv.codec.playing import film_times, play, play_film, play_patch
from hnerv.codec.segmented import FilePart, Film, open_film, write_film

__all__ = [
    "Bitstream",
    "FilePart",
    "Film",
    "Options",
    "Part",
    "check_options",
    "check_trained",
    "coded_weights",
    "encode_model",
    "encode_run",
    "film_times",
    "has_parts",
    "head_bytes",
    "is_container",
    "open_film",
    "open_parts",
    "open_stream",
    "play",
    "play_film",
    "play_patch",
    "summed_by_part",
    "whole_folder",
    "write_container",
    "write_film",
]
