"""Weights and latents <-> bytes: quantise, fine-tune, entropy-code, pack; and play back. FORMAT.md defines the file."""

from hnerv.codec.container import is_container, write_container
from hnerv.codec.encoding import Options, check_options, encode_run
from hnerv.codec.file import Bitstream, Part, coded_weights, encode_model, summed_by_part
from hnerv.codec.opening import open_stream
from hnerv.codec.playing import play, play_patch

__all__ = [
    "Bitstream",
    "Options",
    "Part",
    "check_options",
    "coded_weights",
    "encode_model",
    "encode_run",
    "is_container",
    "open_stream",
    "play",
    "play_patch",
    "summed_by_part",
    "write_container",
]
