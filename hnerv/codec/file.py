"""A run's model <-> a .hnerv file. The file alone builds the model again: nothing is looked up in a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import hnerv
from hnerv.codec.bitstream import Section, part_of, read_tensors, section_layout, write_sections
from hnerv.codec.container import Container, open_container, pack, read_section
from hnerv.errors import UserError
from hnerv.model import DualHeadHNeRV, build_model, frame_multiple
from hnerv.quantise import Scale
from hnerv.runs.record import RunRecord

HEADS = ("rgb_head", "clip_head")
MOST_PARAMETERS_PER_BYTE, MOST_PIXELS, MOST_STAGES = 64, 1 << 28, 16
"""A file that promises more was not written by us: refused before memory is taken for it."""


class Part(NamedTuple):
    """A line of `hnerv info`: a section, its numbers, its bytes."""

    name: str
    parameters: int
    size: int


def coded_weights(model: DualHeadHNeRV) -> dict[str, Tensor]:
    """{tensor: fp32 values on the CPU} of a model without its encoder: what a file holds."""
    return {name: value.detach().float().cpu().contiguous() for name, value in model.state_dict().items()}


def encode_model(
    weights: dict[str, Tensor], scales: dict[str, Scale | None], record: RunRecord, encoder: dict
) -> bytes:
    """The file of `coded_weights` under their scales. `encoder` says how it was made. Read back by `Bitstream`."""
    header = {"record": _without_paths(record), "encoder": {"hnerv": hnerv.__version__, **encoder}}
    return pack(header, write_sections(weights, scales))


class Bitstream:
    """An opened file; its sections are read when a model is asked for. Raises UserError for what is no whole file."""

    def __init__(self, path: Path, offset: int = 0, room: int | None = None) -> None:
        """`offset` and `room` (bytes) are those of a segment of a larger file."""
        self.container: Container = open_container(path, offset, room)
        try:
            self.encoder = self.container.header["encoder"]
            self.record = RunRecord.from_dict(self.container.header["record"], path)
            self.config, self.scene = self.record.config, self.record.scene
            if not isinstance(self.encoder, dict):
                raise TypeError("invalid encoder entry")
            if any(type(self.encoder.get(key, 0)) is not int for key in ("epoch", "step")):
                raise TypeError("invalid epoch or step")
            # The encoder is not in the file, so that one of any width serves.
            self._model_config = replace(self.record.model_config, enc_width=1)
            self._check_geometry()
            self.shapes = self._shapes()
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            cause = str(error).split("\n")[0]
            raise UserError(
                f"{path} has a header that this version of hnerv cannot use ({cause}): encode the run again"
            ) from error
        self.sections = section_layout(self.shapes)
        self._check_table(path)

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.container.path

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.container.size

    def parts(self) -> list[Part]:
        """Header and sections, in file order; their sizes sum to that of the file."""
        rows = [Part("header", 0, self.container.header_bytes)]
        for section, entry in zip(self.sections, self.container.entries, strict=True):
            rows.append(Part(section.name, sum(self._numbers(section, name) for name in section.tensors), entry.size))
        return rows

    def check(self) -> None:
        """Reads every section. Raises UserError for the first that is damaged."""
        for section in self.sections:
            read_section(self.container, section.name)

    def model(self, heads: tuple[str, ...] = HEADS, frames: Sequence[int] | None = None) -> DualHeadHNeRV:
        """The model that was coded, on the CPU and channels last, from what `heads` and `frames` (None: all) need.

        A head that is left out is None; without the RGB head the stages behind the CLIP head's site are gone too, and
        the model can only `embed`. Raises UserError for a damaged section.
        """
        model = build_model(self._model_config, self.scene)
        model.embedding.discard_encoder()
        for head in set(HEADS) - set(heads):
            setattr(model, head, None)
        if "rgb_head" not in heads:
            model.keep_for_embed()
        wanted = [s for s in self.sections if self._is_needed(s, heads, model, frames)]
        tensors = read_tensors(((s, read_section(self.container, s.name)) for s in wanted), self.shapes)
        model.load_state_dict(tensors)
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
        tensor = section.tensors[0].removeprefix("embedding.")
        spans = [frames] if isinstance(frames, range) else [range(frame, frame + 1) for frame in frames]
        slices = [model.embedding.slices(tensor, span) for span in spans]
        return any(needed.start < section.stop and section.first < needed.stop for needed in slices)

    def _numbers(self, section: Section, name: str) -> int:
        count = self.shapes[name].numel()
        return count * (section.stop - section.first) // self.shapes[name][0] if section.stop else count

    def _check_geometry(self) -> None:
        """What no model fits, or would take memory at once, is refused before one is made."""
        room = MOST_PARAMETERS_PER_BYTE * self.container.size
        if self.scene.height * self.scene.width > MOST_PIXELS or len(self._model_config.dec_strides) > MOST_STAGES:
            raise ValueError("frame size or number of stages too large")
        if max(self.scene.rows * self.scene.cols, self._model_config.grid_levels) > room:
            raise ValueError("too many patches or grid levels for the file size")
        rows, cols = frame_multiple(self.config.video, self._model_config)
        if self.scene.height % rows or self.scene.width % cols:
            raise ValueError(f"frame size {self.scene.height}x{self.scene.width} is not a multiple of {rows}x{cols}")

    def _shapes(self) -> dict[str, torch.Size]:
        with torch.device("meta"):
            model = build_model(self._model_config, self.scene)
            model.embedding.discard_encoder()
            shapes = {name: value.shape for name, value in model.state_dict().items()}
        if sum(shape.numel() for shape in shapes.values()) > MOST_PARAMETERS_PER_BYTE * self.container.size:
            raise ValueError("too many parameters for the file size")
        return shapes

    def _check_table(self, path: Path) -> None:
        if [s.name for s in self.sections] != [entry.name for entry in self.container.entries]:
            raise UserError(f"{path} has sections that do not match its model: encode the run again")


def summed_by_part(parts: list[Part]) -> list[Part]:
    """Slices of the embedding as one line."""
    found: dict[str, Part] = {}
    for name, parameters, size in parts:
        key = name if name == "header" else part_of(name)
        before = found.get(key, Part(key, 0, 0))
        found[key] = Part(key, before.parameters + parameters, before.size + size)
    return list(found.values())


def _without_paths(record: RunRecord) -> dict:
    """The record as a dictionary without the folders of the video and of targets: a file is given away."""
    config = record.config
    places = {
        "data": config.video.data,
        "clip_targets": config.clip.clip_targets,
        "clip_weights": config.clip.clip_weights,
    }
    names = {key: Path(place).name for key, place in places.items() if "/" in place}
    video = replace(record.video, source=Path(record.video.source).name)
    return replace(record, config=config.replaced(names), video=video).to_dict()
