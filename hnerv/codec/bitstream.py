"""Tensors of a model <-> sections of a file: which tensor lies where."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from hnerv.codec.entropy import Fields, SymbolDecoder, SymbolEncoder
from hnerv.codec.records import put_tensor, read_tensor
from hnerv.errors import UserError
from hnerv.model import LATENTS
from hnerv.quantise import Scale, dequantise, quantise

TIMES_PER_SECTION = 16
"""Knots, or stored codes, in a section of the embedding: the least that a reader of a frame has to read."""

# A section holds the heads of its records, one record a tensor or a slice of latents, then the words of one entropy
# coder with the symbols of all: a coder per record would cost each the 4 to 8 bytes in which a coder ends. Shapes are
# not stored: they follow from the configuration in the header of the file.


class Section(NamedTuple):
    """Tensors that are stored together; for latents, the slices first ... stop - 1 of their first axis."""

    name: str
    tensors: tuple[str, ...]
    first: int
    stop: int


def section_layout(shapes: dict[str, torch.Size]) -> list[Section]:
    """{tensor: shape} of a model without its encoder -> its sections, in file order.

    Latents in slices of TIMES_PER_SECTION; other tensors by part: the stem, a stage, a head.
    """
    sections: list[Section] = []
    parts: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        if LATENTS.fullmatch(name):
            for first in range(0, shape[0], TIMES_PER_SECTION):
                stop = min(first + TIMES_PER_SECTION, shape[0])
                sections.append(Section(f"{name}[{first}:{stop}]", (name,), first, stop))
        else:
            parts.setdefault(part_of(name), []).append(name)
    return sections + [Section(part, tuple(names), 0, 0) for part, names in parts.items()]


def part_of(name: str) -> str:
    """'decoder.stages.0.conv.weight' -> 'decoder.stages.0'; 'rgb_head.conv.bias' -> 'rgb_head'."""
    return re.match(r"decoder\.stages\.\d+|decoder\.stem|\w+", name)[0]


def write_sections(weights: dict[str, Tensor], scales: dict[str, Scale | None]) -> dict[str, bytes]:
    """{tensor: values}, {tensor: scale or None for half floats} -> {section: bytes}. Inverse of `read_tensors`."""
    found = {}
    for section in section_layout({name: weight.shape for name, weight in weights.items()}):
        encoder, heads, shared = SymbolEncoder(), [], {}
        for name in section.tensors:
            part = weights[name][section.first : section.stop] if section.stop else weights[name]
            heads.append(put_tensor(part, _sliced(section, scales[name]), section.stop > 0, shared, encoder))
        found[section.name] = b"".join(heads) + encoder.words()
    return found


def read_tensors(sections: Iterable[tuple[Section, bytes]], shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Sections and their bytes -> {tensor: fp32 values}; latents of missing sections are 0. Raises UserError."""
    tensors: dict[str, Tensor] = {}
    for section, data in sections:
        fields, count = Fields(data), section.stop - section.first
        try:
            parts = [(count, *shapes[name][1:]) if count else tuple(shapes[name]) for name in section.tensors]
            records = [read_tensor(fields, shape, count > 0) for shape in parts]
            decoder = SymbolDecoder(fields.rest())
            shared = {}
            values = [decode(shared, decoder) for decode in records]
            decoder.finish()
        except ValueError as error:
            raise UserError(
                f"section {section.name!r} does not follow the .hnerv format ({error}): encode the run again"
            ) from error
        if count:
            full = tensors.setdefault(section.tensors[0], torch.zeros(shapes[section.tensors[0]]))
            full[section.first : section.stop] = values[0]
        else:
            tensors |= zip(section.tensors, values, strict=True)
    return tensors


def coded_values(weights: dict[str, Tensor], scales: dict[str, Scale | None]) -> dict[str, Tensor]:
    """`weights` as a decoder gets them: quantised and dequantised, without the way through bytes."""
    return {
        name: weight.half().float()
        if scales[name] is None
        else dequantise(quantise(weight, scales[name]), scales[name])
        for name, weight in weights.items()
    }


def _sliced(section: Section, scale: Scale | None) -> Scale | None:
    """The scale of the section's slices, where there is one per slice of the first axis."""
    if scale is None or not section.stop:
        return scale
    span = slice(section.first, section.stop)
    if len(scale.step) > 1:
        scale = scale._replace(step=scale.step[span], offset=None if scale.offset is None else scale.offset[span])
    return scale if scale.rows is None else scale._replace(rows=scale.rows[span])
