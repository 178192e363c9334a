"""A .hnerv file -> an opened run, as eval.py and comparisons want it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from hnerv.codec.container import is_container, is_segmented_file
from hnerv.codec.file import Bitstream, summed_by_part
from hnerv.codec.segmented import open_film
from hnerv.errors import UserError
from hnerv.evaluation import OpenedRun, open_run
from hnerv.runs import Part, is_segmented, parts_of, targets_of
from hnerv.runs.opening import Origin, checkpoint_of, with_material


def open_stream(
    path: Path, device: torch.device, data: str = "", unseen: str = "", clip_targets: str = ""
) -> OpenedRun:
    """The model from the file alone; the frames to measure it against from `data`, or of its name in this folder.

    Raises UserError when the file is damaged, or its video or targets are missing or do not belong to it.
    """
    return _opened(Bitstream(path), path.with_name(f"{path.stem}_eval"), device, data, unseen, clip_targets)


def head_bytes(run: OpenedRun) -> int:
    """Bytes of the CLIP head's section in the file that a run was opened from; 0 without a file or a head."""
    if not run.coded_bytes:
        return 0
    return {part.name: part.size for part in summed_by_part(Bitstream(run.checkpoint).parts())}.get("clip_head", 0)


def open_parts(
    path: Path, device: torch.device, data: str = "", unseen: str = "", clip_targets: str = ""
) -> Iterator[tuple[int, Callable[[], OpenedRun]]]:
    """The position of the first frame of every segment of a file, a checkpoint or a run folder, and what opens it.

    Of what has no segments there is one. Raises UserError, before the first, where some are not trained.
    """
    if is_container(path):
        yield from _parts_of_film(path, device, data, unseen, clip_targets)
        return
    parts = parts_of(path)
    check_trained(parts)
    for part in parts:
        rows = targets_of(clip_targets, part.first, part.count)
        yield part.first, functools.partial(open_run, part.path, device, data, unseen, rows)


def _parts_of_film(
    path: Path, device: torch.device, data: str, unseen: str, clip_targets: str
) -> Iterator[tuple[int, Callable[[], OpenedRun]]]:
    film, folder = open_film(path), path.with_name(f"{path.stem}_eval")
    for number, part in enumerate(film.parts):
        rows, place = clip_targets, folder
        if film.header_bytes:
            rows = targets_of(clip_targets, part.first, part.frames)
            place = folder / "segments" / f"{number:05d}"
        yield part.first, functools.partial(_opened, film.stream(part), place, device, data, unseen, rows)


def check_trained(parts: Sequence[Part]) -> None:
    """Raises UserError where segments of a run have no checkpoint yet."""
    missing = [part.path for part in parts if part.count and not checkpoint_of(part.path).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(parts)} segments are not trained yet, starting with {missing[0]}: run the "
            "training command again"
        )


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
        raise UserError(
            f"--unseen encode needs the encoder, which {path} does not contain: evaluate the checkpoint, or remove "
            "--unseen"
        )
    epoch, step = stream.encoder.get("epoch", 0), stream.encoder.get("step", 0)
    origin = Origin(path, folder, epoch, step, stream.size)
    return with_material(stream.model(), stream.record, origin, device, data, unseen, clip_targets)
