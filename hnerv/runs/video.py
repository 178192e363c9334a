"""A video as the models of its chunks, in order: the contract that a run folder and a .hnerv file share."""

from __future__ import annotations

import bisect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch

from hnerv.data.video.colour import Display
from hnerv.errors import UserError
from hnerv.geometry import PatchGrid
from hnerv.model import DualHeadHNeRV, Scene
from hnerv.runs.chunks import Chunk, chunks_of
from hnerv.runs.models import checkpoint_of, open_checkpoint
from hnerv.runs.record import RunRecord

HEADS = ("rgb_head", "clip_head")


class Span(Protocol):
    """Frames of the video that a chunk covers: `frames` of them, from `first` on."""

    @property
    def first(self) -> int: ...

    @property
    def frames(self) -> int: ...


class StoredChunk(Protocol):
    """A chunk with the record of its run; its model is built on request."""

    record: RunRecord
    scene: Scene

    def model(self, heads: tuple[str, ...] = HEADS, frames: Sequence[int] | None = None) -> DualHeadHNeRV:
        """The model on the CPU, channels last, in evaluation mode.

        It has these `heads` only, and need not decode other `frames` than these (None: all).
        """
        ...


class StoredVideo(ABC):
    """A video; one chunk at a time is read."""

    path: Path

    @property
    @abstractmethod
    def chunks(self) -> Sequence[Span]:
        """At least one, in the order of the video."""

    @abstractmethod
    def open_chunk(self, entry: Span) -> StoredChunk:
        """One of `chunks`. Raises UserError where it is damaged."""

    @cached_property
    def first_chunk(self) -> StoredChunk:
        """Geometry, frame rate and targets are the same in all chunks."""
        return self.open_chunk(self.chunks[0])

    @property
    def frames(self) -> int:
        return self.chunks[-1].first + self.chunks[-1].frames

    @property
    def grid(self) -> PatchGrid:
        return self.first_chunk.scene.grid

    @property
    def fps(self) -> float:
        return self.first_chunk.scene.fps

    @property
    def display(self) -> Display:
        """How the frames are to be displayed."""
        return self.first_chunk.record.video.display

    def chunk_at(self, time: float) -> Span:
        """The chunk of a frame, or of a time between frames."""
        return self.chunks[bisect.bisect_right(self.chunks, time, key=lambda entry: entry.first) - 1]

    def by_chunk(self, frames: Sequence[int]) -> Iterator[tuple[Span, Iterator[int]]]:
        """Consecutive `frames` of the video that lie in the same chunk, with that chunk."""
        yield from itertools.groupby(frames, self.chunk_at)


class TrainedRun(StoredVideo):
    """A run folder or a checkpoint."""

    def __init__(self, path: Path) -> None:
        """Raises UserError where a chunk is not trained, or the first one is damaged."""
        self.path = path
        chunks = chunks_of(path)
        check_trained(chunks)
        self._first = TrainedChunk(chunks[0].path)
        self._chunks = chunks if chunks[0].is_part else [Chunk(path, 0, self._first.scene.frames)]

    @property
    def chunks(self) -> list[Chunk]:
        return self._chunks

    def open_chunk(self, entry: Chunk) -> TrainedChunk:
        return self._first if entry == self._chunks[0] else TrainedChunk(entry.path)


class TrainedChunk:
    """The checkpoint of a chunk."""

    def __init__(self, path: Path) -> None:
        """Raises UserError where the checkpoint is missing or damaged."""
        opened = open_checkpoint(path)
        self.path, self.record, self.scene, self.values = path, opened.record, opened.record.scene, opened.values

    def model(self, heads: tuple[str, ...] = HEADS, frames: Sequence[int] | None = None) -> DualHeadHNeRV:
        """As `StoredChunk.model`; a checkpoint is always read in full, for all frames."""
        model = open_checkpoint(self.path).model.eval().to(memory_format=torch.channels_last)
        if "rgb_head" not in heads:
            model.keep_for_embed()
        if "clip_head" not in heads:
            model.clip_head = None
        return model


def check_trained(chunks: Sequence[Chunk]) -> None:
    """Raises UserError where chunks of a run have no checkpoint yet."""
    missing = [chunk.path for chunk in chunks if chunk.is_part and not checkpoint_of(chunk.path).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(chunks)} segments are not trained yet, starting with {missing[0]}: run the "
            "training command again"
        )
