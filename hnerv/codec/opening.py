"""A .hnerv file -> an opened run, as eval.py and comparisons want it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from hnerv.codec.container import is_container, is_segmented_file
from hnerv.codec.file import Bitstream
from hnerv.codec.segmented import open_film
from hnerv.errors import UserError
from hnerv.evaluation import OpenedRun, open_run
from hnerv.runs import Chunk, chunks_of, targets_of
from hnerv.runs.opening import OpenedModel, checkpoint_of, with_material


def open_stream(
    path: Path, device: torch.device, data: str = "", unseen: str = "", clip_targets: str = ""
) -> OpenedRun:
    """The model from the file alone; the frames to measure it against from `data`, or of its name in this folder.

    Raises UserError when the file is damaged, or its video or targets are missing or do not belong to it.
    """
    return _opened(Bitstream(path), path.with_name(f"{path.stem}_eval"), device, data, unseen, clip_targets)


def open_parts(
    path: Path, device: torch.device, data: str = "", unseen: str = "", clip_targets: str = ""
) -> Iterator[tuple[int, Callable[[], OpenedRun]]]:
    """The position of the first frame of every segment of a file, a checkpoint or a run folder, and what opens it.

    Of what has no segments there is one. Raises UserError, before the first, where some are not trained.
    """
    if is_container(path):
        yield from _parts_of_film(path, device, data, unseen, clip_targets)
        return
    chunks = chunks_of(path)
    check_trained(chunks)
    for chunk in chunks:
        rows = chunk.clip_targets(clip_targets)
        yield chunk.first, functools.partial(open_run, chunk.path, device, data, unseen, rows)


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


def check_trained(chunks: Sequence[Chunk]) -> None:
    """Raises UserError where segments of a run have no checkpoint yet."""
    missing = [chunk.path for chunk in chunks if chunk.is_part and not checkpoint_of(chunk.path).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(chunks)} segments are not trained yet, starting with {missing[0]}: run the "
            "training command again"
        )


def has_parts(path: Path) -> bool:
    """Whether it is a file, or a run folder, of a video in segments."""
    return chunks_of(path)[0].is_part or is_segmented_file(path)


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
    found = OpenedModel(stream.model(), stream.record, path, folder, epoch, step, stream.size)
    return with_material(found, device, data, unseen, clip_targets)
