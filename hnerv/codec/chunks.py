"""The chunks of a .hnerv file, a checkpoint or a run folder, opened with their video for eval.py and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from hnerv.codec.file import BitstreamFile, CodedChunk, open_single_chunk
from hnerv.codec.format import is_container
from hnerv.errors import UserError
from hnerv.evaluation import OpenedRun, open_run
from hnerv.runs import chunks_of, targets_of
from hnerv.runs.models import OpenedModel, with_material
from hnerv.runs.video import check_trained


def open_coded_run(
    path: Path, device: torch.device, data: str = "", unseen: str = "", clip_targets: str = ""
) -> OpenedRun:
    """The model of a file with one chunk; the frames to measure it against come from `data`, or are found by name.

    Raises UserError when the file is damaged, or its video or targets are missing or do not belong to it.
    """
    chunk, size = open_single_chunk(path), path.stat().st_size
    return _with_video(chunk, size, evaluation_folder(path), device, data, unseen, clip_targets)


def open_chunks(
    path: Path, device: torch.device, data: str = "", unseen: str = "", clip_targets: str = ""
) -> Iterator[tuple[int, Callable[[], OpenedRun]]]:
    """(position of its first frame, function that opens it) for every chunk of a file, a checkpoint or a run folder.

    Raises UserError, before the first, where some are not trained.
    """
    if not is_container(path):
        chunks = chunks_of(path)
        check_trained(chunks)
        for chunk in chunks:
            yield chunk.first, partial(open_run, chunk.path, device, data, unseen, chunk.clip_targets(clip_targets))
        return
    file, folder = BitstreamFile(path), evaluation_folder(path)
    if len(file.chunks) == 1:
        yield 0, partial(open_coded_run, path, device, data, unseen, clip_targets)
        return
    for number, entry in enumerate(file.chunks):
        rows, place = targets_of(clip_targets, entry.first, entry.frames), folder / "segments" / f"{number:05d}"
        yield entry.first, partial(_with_video, file.open_chunk(entry), entry.size, place, device, data, unseen, rows)


def has_several_chunks(path: Path) -> bool:
    """Whether an evaluation of the video is put together from those of several chunks."""
    if is_container(path):
        return len(BitstreamFile(path).chunks) > 1
    return chunks_of(path)[0].is_part


def evaluation_folder(path: Path) -> Path:
    """The folder of the evaluation of a file, or of a run in several chunks, which is the run's own."""
    return path if path.is_dir() else path.with_name(f"{path.stem}_eval")


def _with_video(
    chunk: CodedChunk, size: int, folder: Path, device: torch.device, data: str, unseen: str, clip_targets: str
) -> OpenedRun:
    """`size` is the number of bytes that the rate counts."""
    if unseen == "encode":
        raise UserError(
            f"--unseen encode needs the encoder, which {chunk.path} does not contain: evaluate the checkpoint, or "
            "remove --unseen"
        )
    epoch, step = chunk.encoder.get("epoch", 0), chunk.encoder.get("step", 0)
    head = sum(part.size for part in chunk.parts() if part.name == "clip_head")
    opened = OpenedModel(chunk.model(), chunk.record, chunk.path, folder, epoch, step, size, head)
    return with_material(opened, device, data, unseen, clip_targets)
