"""A .hnerv file -> an opened run, as eval.py and comparisons want it."""

from __future__ import annotations

from pathlib import Path

import torch

from hnerv.codec.file import Bitstream
from hnerv.errors import UserError
from hnerv.evaluation import OpenedRun
from hnerv.evaluation.opening import Origin, with_material


def open_stream(
    path: Path, device: torch.device, data: str = "", unseen: str = "", clip_targets: str = ""
) -> OpenedRun:
    """The model from the file alone; the frames to measure it against from `data`, or of its name in this folder.

    Raises UserError when the file is damaged, or its video or targets are missing or do not belong to it.
    """
    stream = Bitstream(path)
    if unseen == "encode":
        raise UserError(f"--unseen encode needs the encoder, {path} holds none: evaluate the checkpoint, or drop it")
    epoch, step = stream.encoder.get("epoch", 0), stream.encoder.get("step", 0)
    origin = Origin(path, path.with_name(f"{path.stem}_eval"), epoch, step, stream.size)
    return with_material(stream.model(), stream.record, origin, device, data, unseen, clip_targets)
