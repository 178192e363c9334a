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
from hnerv.codec.bitstream import Section, layout, part_of, read_tensors, write_sections
from hnerv.codec.container import Container, open_container, pack, read_section
from hnerv.codec.quantise import Scale
from hnerv.config import Config
from hnerv.errors import UserError
from hnerv.model import DualHeadHNeRV, Scene, build_model
from hnerv.video import CLIPS

HEADS = ("rgb_head", "clip_head")
RECORD_KEYS = {"config", "video", "scene", "targets", "model"}
MOST_PARAMETERS_PER_BYTE = 64
"""A file that promises more was not written by us: refused before memory is taken for it."""


class Part(NamedTuple):
    """A line of `hnerv info`: a section, its numbers, its bytes."""

    name: str
    parameters: int
    size: int


def coded_weights(model: DualHeadHNeRV) -> dict[str, Tensor]:
    """{tensor: fp32 values on the CPU} of a model without its encoder: what a file holds."""
    return {name: value.detach().float().cpu().contiguous() for name, value in model.state_dict().items()}


def encode_model(weights: dict[str, Tensor], scales: dict[str, Scale | None], record: dict, encoder: dict) -> bytes:
    """The file of `coded_weights` under their scales. `encoder` says how it was made. Read back by `Bitstream`."""
    header = {"record": _without_paths(record), "encoder": {"hnerv": hnerv.__version__, **encoder}}
    return pack(header, write_sections(weights, scales))


class Bitstream:
    """An opened file; its sections are read when a model is asked for. Raises UserError for what is no whole file."""

    def __init__(self, path: Path) -> None:
        self.container: Container = open_container(path)
        try:
            self.record, self.encoder = self.container.header["record"], self.container.header["encoder"]
            if missing := RECORD_KEYS - set(self.record):
                raise KeyError(f"its record lacks {sorted(missing)}")
            self.config = Config.from_dict(self.record["config"])
            self.scene = Scene.from_dict(self.record["scene"])
            self._model_config = replace(self.config.model, dec_width=self.record["model"]["width"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} has a header that this version cannot use ({error}): encode the run again"
            ) from error
        self.shapes = self._shapes(path)
        self.sections = layout(self.shapes)
        self._check_table(path)

    @property
    def path(self) -> Path:
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

    def _shapes(self, path: Path) -> dict[str, torch.Size]:
        with torch.device("meta"):
            model = build_model(self._model_config, self.scene)
            model.embedding.discard_encoder()
            shapes = {name: value.shape for name, value in model.state_dict().items()}
        if sum(shape.numel() for shape in shapes.values()) > MOST_PARAMETERS_PER_BYTE * self.container.size:
            raise UserError(f"{path} promises more parameters than its bytes can hold: encode the run again")
        return shapes

    def _check_table(self, path: Path) -> None:
        if [s.name for s in self.sections] != [entry.name for entry in self.container.entries]:
            raise UserError(f"{path} has other sections than its model needs: encode the run again")


def summed_by_part(parts: list[Part]) -> list[Part]:
    """Slices of the embedding as one line."""
    found: dict[str, Part] = {}
    for name, parameters, size in parts:
        key = name if name == "header" else part_of(name)
        before = found.get(key, Part(key, 0, 0))
        found[key] = Part(key, before.parameters + parameters, before.size + size)
    return list(found.values())


def _without_paths(record: dict) -> dict:
    """The record of a run, the folders of its video left out: a file is given away."""
    video, config = dict(record["video"]), {name: dict(section) for name, section in record["config"].items()}
    video["source"] = Path(video["source"]).name
    for section, key in (("video", "data"), ("clip", "clip_targets"), ("clip", "clip_weights")):
        value = config[section][key]
        if value not in CLIPS and "/" in value:
            config[section][key] = Path(value).name
    return {**record, "video": video, "config": config}
