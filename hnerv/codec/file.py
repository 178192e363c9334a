"""An opened .hnerv file and its chunks. The file alone builds the models again: no checkpoint is needed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import hnerv
from hnerv.codec.bitstream import Section, part_of, read_tensors, section_layout, write_sections
from hnerv.codec.format import (
    ChunkEntry,
    content_of,
    is_container,
    read_header,
    read_index,
    read_section,
    serialize,
    stored_chunks,
    write_bitstream,
)
from hnerv.errors import UserError
from hnerv.geometry import PatchGrid
from hnerv.model import DualHeadHNeRV, Scene, build_model, frame_multiple
from hnerv.quantise import Scale
from hnerv.runs.record import RunRecord
from hnerv.runs.video import HEADS, StoredVideo, TrainedRun

GEOMETRY = ("height", "width", "rows", "cols", "fps", "clip_dim")
"""Fields of `Scene` that all chunks of a file share: the index has them, so that a player needs no chunk for them."""

MAX_PARAMETERS_PER_BYTE, FREE_PARAMETERS, MAX_PIXELS, MAX_STAGES = 64, 1 << 20, 1 << 28, 16
"""A file that declares more was not written by this package: it is refused before memory is taken for it."""


class PartSize(NamedTuple):
    """A line of `hnerv info`: a section or a part of the network, its parameters, its bytes."""

    name: str
    parameters: int
    size: int


class BitstreamFile(StoredVideo):
    """A .hnerv file. Opening it reads its index; a chunk is read on request."""

    def __init__(self, path: Path) -> None:
        """Raises UserError for a file that is foreign, truncated, or damaged in its index."""
        self.path, self.index = path, read_index(path)
        try:
            facts = {name: self.index.record["scene"][name] for name in GEOMETRY}
            self._geometry = Scene.from_dict({"frames": 1, "train": [0], "val": [], **facts})
        except (KeyError, TypeError, UserError) as error:
            raise UserError(
                f"{path} does not follow the .hnerv format (index: {error}): encode the run again"
            ) from error

    @property
    def chunks(self) -> list[ChunkEntry]:
        """The rows of the index, at least one, in the order of the video."""
        return self.index.chunks

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.index.file_size

    @property
    def grid(self) -> PatchGrid:
        return self._geometry.grid

    @property
    def fps(self) -> float:
        return self._geometry.fps

    def open_chunk(self, entry: ChunkEntry) -> CodedChunk:
        """One chunk. Raises UserError where its header is damaged or does not match the index."""
        return CodedChunk(self, entry)

    @cached_property
    def opened_chunks(self) -> list[CodedChunk]:
        """All chunks in order; their headers are read."""
        return [self.open_chunk(entry) for entry in self.chunks]

    def same_geometry(self, other: BitstreamFile) -> bool:
        """Whether the chunks of both can be in one file."""
        return self._geometry == other._geometry


class CodedChunk:
    """A chunk of a file: one model. Its sections are read when the model is built."""

    def __init__(self, file: BitstreamFile, entry: ChunkEntry) -> None:
        self.path, self.entry = file.path, entry
        self.header = read_header(file.index, entry)
        self._file_bytes = file.index.size + entry.size
        try:
            self.encoder = self.header.encoder
            self.record = RunRecord.from_dict(self.header.record, self.path)
            self.config, self.scene = self.record.config, self.record.scene
            if not isinstance(self.encoder, dict):
                raise TypeError("invalid encoder entry")
            if any(type(self.encoder.get(key, 0)) is not int for key in ("epoch", "step")):
                raise TypeError("invalid epoch or step")
            # The file has no weights of the encoder, so its width does not matter: the smallest saves memory.
            self._model_config = replace(self.record.model_config, enc_width=1)
            self._check_geometry()
            self.shapes = self._shapes()
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            cause = str(error).split("\n")[0]
            raise UserError(
                f"{self.path} has a header that this version of hnerv cannot use ({cause}): encode the run again"
            ) from error
        if self.scene.frames != entry.frames:
            raise UserError(
                f"{self.path} has a segment at frame {entry.first} that does not match its index: encode the run again"
            )
        self.sections = section_layout(self.shapes)
        if [section.name for section in self.sections] != [section.name for section in self.header.sections]:
            raise UserError(f"{self.path} has sections that do not match its model: encode the run again")

    @property
    def size(self) -> int:
        """Bytes of the chunk, its header included."""
        return self.entry.size

    def parts(self) -> list[PartSize]:
        """Header and sections, in file order; their sizes sum to `size`."""
        rows = [PartSize("header", 0, self.entry.header_bytes)]
        for section, stored in zip(self.sections, self.header.sections, strict=True):
            parameters = sum(self._parameters(section, name) for name in section.tensors)
            rows.append(PartSize(section.name, parameters, stored.size))
        return rows

    def check(self) -> None:
        """Reads every section. Raises UserError for the first damaged one."""
        for section in self.sections:
            read_section(self.header, section.name)

    def model(self, heads: tuple[str, ...] = HEADS, frames: Sequence[int] | None = None) -> DualHeadHNeRV:
        """The decoded model, on the CPU, channels last; only the sections that `heads` and `frames` need are read.

        `frames` None means all. A head that is left out is None; without the RGB head the stages after the CLIP
        head's site are missing too, and the model can only `embed`. Raises UserError for a damaged section.
        """
        model = build_model(self._model_config, self.scene)
        model.embedding.discard_encoder()
        for head in set(HEADS) - set(heads):
            setattr(model, head, None)
        if "rgb_head" not in heads:
            model.keep_for_embed()
        needed = [section for section in self.sections if self._is_needed(section, heads, model, frames)]
        contents = [(section, read_section(self.header, section.name)) for section in needed]
        try:
            tensors = read_tensors(contents, self.shapes)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error
        model.load_state_dict(tensors)  # latents of slices that were not read are 0: no frame in `frames` uses them
        return model.eval().to(memory_format=torch.channels_last)  # another layout may round pixels differently

    def _is_needed(
        self, section: Section, heads: tuple[str, ...], model: DualHeadHNeRV, frames: Sequence[int] | None
    ) -> bool:
        if section.name in HEADS:
            return section.name in heads
        if stage := re.fullmatch(r"decoder\.stages\.(\d+)", section.name):
            return int(stage[1]) < len(model.decoder.stages)
        if not section.stop or frames is None:
            return True
        # A frame between two knots interpolates both, so that it may need the slices on both sides of a boundary.
        tensor = section.tensors[0].removeprefix("embedding.")
        spans = [frames] if isinstance(frames, range) else [range(frame, frame + 1) for frame in frames]
        slices = [model.embedding.slices(tensor, span) for span in spans]
        return any(needed.start < section.stop and section.first < needed.stop for needed in slices)

    def _parameters(self, section: Section, name: str) -> int:
        count = self.shapes[name].numel()
        return count * (section.stop - section.first) // self.shapes[name][0] if section.stop else count

    def _check_geometry(self) -> None:
        """Refuses, before a model is built, a geometry that fits no model or would take too much memory."""
        # Building a model takes memory for each patch (`pe`) and grid level even on the meta device.
        limit = MAX_PARAMETERS_PER_BYTE * self._file_bytes
        if self.scene.height * self.scene.width > MAX_PIXELS or len(self._model_config.dec_strides) > MAX_STAGES:
            raise ValueError("frame size or number of stages too large")
        if max(self.scene.rows * self.scene.cols, self._model_config.grid_levels) > limit:
            raise ValueError("too many patches or grid levels for the file size")
        rows, cols = frame_multiple(self.config.video, self._model_config)
        if self.scene.height % rows or self.scene.width % cols:
            raise ValueError(f"frame size {self.scene.height}x{self.scene.width} is not a multiple of {rows}x{cols}")

    def _shapes(self) -> dict[str, torch.Size]:
        with torch.device("meta"):  # shapes without memory
            model = build_model(self._model_config, self.scene)
            model.embedding.discard_encoder()
            shapes = {name: value.shape for name, value in model.state_dict().items()}
        limit = FREE_PARAMETERS + MAX_PARAMETERS_PER_BYTE * self._file_bytes  # zeros take next to no bytes
        if sum(shape.numel() for shape in shapes.values()) > limit:
            raise ValueError("too many parameters for the file size")
        return shapes


def open_stored(path: Path) -> StoredVideo:
    """A .hnerv file, a checkpoint or a run folder. Raises UserError."""
    return BitstreamFile(path) if is_container(path) else TrainedRun(path)


def open_single_chunk(path: Path) -> CodedChunk:
    """The chunk of a file that has one. Raises UserError for any other file."""
    file = BitstreamFile(path)
    if len(file.chunks) > 1:
        raise UserError(
            f"{path} holds a video in segments, but a single segment is needed: create one with "
            "`hnerv encode RUN/segments/00000 -o ONE.hnerv`"
        )
    return file.open_chunk(file.chunks[0])


def coded_weights(model: DualHeadHNeRV) -> dict[str, Tensor]:
    """{tensor: fp32 values on the CPU} of a model without its encoder: the tensors that a file holds."""
    return {name: value.detach().float().cpu().contiguous() for name, value in model.state_dict().items()}


def encode_model(
    weights: dict[str, Tensor], scales: dict[str, Scale | None], record: RunRecord, encoder: dict
) -> bytes:
    """A file of one chunk with `coded_weights` under their scales. `encoder` notes how it was made."""
    note, data = {"hnerv": hnerv.__version__, **encoder}, _without_paths(record).to_dict()
    return b"".join(serialize([content_of(record.scene.frames, data, note, write_sections(weights, scales))]))


def join_files(path: Path, files: Sequence[Path]) -> None:
    """Writes the chunks of `files`, in order, as one file: atomically, a buffer of it in memory. Raises UserError."""
    opened = [BitstreamFile(file) for file in files]
    for file in opened:
        if not file.same_geometry(opened[0]):
            raise UserError(
                f"{file.path} and {files[0]} differ in frame size, patch grid, frame rate or CLIP dimensions: join "
                "segments of one run"
            )
    write_bitstream(path, serialize([chunk for file in opened for chunk in stored_chunks(file.index)]))


def summed_by_part(parts: list[PartSize]) -> list[PartSize]:
    """The sections of all chunks, one line for each part of the network."""
    sums: dict[str, PartSize] = {}
    for name, parameters, size in parts:
        key = part_of(name)
        before = sums.get(key, PartSize(key, 0, 0))
        sums[key] = PartSize(key, before.parameters + parameters, before.size + size)
    return list(sums.values())


def _without_paths(record: RunRecord) -> RunRecord:
    """The record without the folders of the video and the targets: a file is given to others."""
    config = record.config
    paths = {
        "data": config.video.data,
        "clip_targets": config.clip.clip_targets,
        "clip_weights": config.clip.clip_weights,
    }
    names = {key: Path(path).name for key, path in paths.items() if "/" in path}
    video = replace(record.video, source=Path(record.video.source).name)
    return replace(record, config=config.replaced(names), video=video)
