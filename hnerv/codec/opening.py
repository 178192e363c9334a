"""A .hnerv file -> an opened run, as eval.py and comparisons want it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from hnerv.codec.container import is_container, is_segmented_file
from hnerv.codec.file import Bitstream
from hnerv.codec.segmented import open_film
from hnerv.errors import UserError
from hnerv.evaluation import OpenedRun, open_run
from hnerv.evaluation.opening import Origin, with_material
from hnerv.segments import Part, is_segmented, parts_of, targets_of


def open_stream(
    path: Path, device: torch.device, data: str = "", unseen: str = "", clip_targets: str = ""
) -> OpenedRun:
    """The model from the file alone; the frames to measure it against from `data`, or of its name in this folder.

    Raises UserError when the file is damaged, or its video or targets are missing or do not belong to it.
    """
    return _opened(Bitstream(path), path.with_name(f"{path.stem}_eval"), device, data, unseen, clip_targets)


def open_parts(
    path: Path, device: torch.device, data: str = "", unseen: str = "", clip_targets: str = ""
) -> Iterator[tuple[int, OpenedRun]]:
    """The position of the first frame, and the opened run, of every segment of a file, a checkpoint or a run folder.

    One at a time; of what has no segments the only one. Raises UserError.
    """
    if not is_container(path):
        for part in parts_of(path):
            yield part.first, open_run(part.path, device, data, unseen, targets_of(clip_targets, part))
        return
    film, folder = open_film(path), path.with_name(f"{path.stem}_eval")
    for number, (part, stream) in enumerate(film.streams()):
        if len(film.parts) > 1:
            rows = targets_of(clip_targets, Part(path, part.first, part.frames))
            place = folder / "segments" / f"{number:05d}"
        else:
            rows, place = clip_targets, folder
        yield part.first, _opened(stream, place, device, data, unseen, rows)


def has_parts(path: Path) -> bool:
    """Whether it is a file, or a run folder, of a video in segments."""
    return is_segmented(path) or is_segmented_file(path)


def whole_folder(path: Path) -> Path:
    """Where the evaluation of a video in segments belongs."""
    return path if path.is_dir() else path.with_name(f"{path.stem}_eval")


def _opened(
    stream: Bitstream, folder: Path, device: torch.device, data: str, unseen: str, clip_targets: str
) -> OpenedRun:
    path = stream.path
    if unseen == "encode":
        raise UserError(f"--unseen encode needs the encoder, {path} holds none: evaluate the checkpoint, or drop it")
    epoch, step = stream.encoder.get("epoch", 0), stream.encoder.get("step", 0)
    origin = Origin(path, folder, epoch, step, stream.size)
    return with_material(stream.model(), stream.record, origin, device, data, unseen, clip_targets)
