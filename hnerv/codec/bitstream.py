"""Tensors of a model <-> sections of a file: which tensor lies where, and how a tensor becomes bytes.

n numbers of a tensor, C slices of its first axis.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hnerv.codec import entropy
from hnerv.errors import UserError
from hnerv.model import LATENTS
from hnerv.quantise import Scale, as_bfloat16, dequantise, quantise

TIMES_PER_SECTION = 16
"""Knots, or stored codes, in a section of the embedding: the least that a reader of a frame has to read."""

LARGEST_SYMBOL = 1 << 24
"""Largest magnitude of a symbol: integers up to here are exact in fp32."""

_HEAD = struct.Struct("<BiHB")
"""Flags, lowest symbol, number of symbols, shift of the bins."""

# A record is one tensor, or one section of latents:
#   half floats:  the byte 0, then n binary16 numbers;
#   coded:        header, C or 1 steps, as many offsets or none, table, number of words, words of the entropy coder.
# Its shape is not stored: it follows from the configuration in the header of the file.
_HALF, _CODED = 0, 1
_PER_CHANNEL, _OFFSET, _DIFFERENCES = 2, 4, 8


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
    sections = section_layout({name: weight.shape for name, weight in weights.items()})
    return {s.name: b"".join(_record(s, name, weights[name], scales[name]) for name in s.tensors) for s in sections}


def read_tensors(sections: Iterable[tuple[Section, bytes]], shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Sections and their bytes -> {tensor: fp32 values}; latents of missing sections are 0. Raises UserError."""
    tensors: dict[str, Tensor] = {}
    for section, data in sections:
        view = memoryview(data)
        try:
            for name in section.tensors:
                shape = (section.stop - section.first, *shapes[name][1:]) if section.stop else tuple(shapes[name])
                values, used = _parse(view, shape)
                view = view[used:]
                if section.stop:
                    full = tensors.setdefault(name, torch.zeros(shapes[name]))
                    full[section.first : section.stop] = values
                else:
                    tensors[name] = values
        except (struct.error, ValueError, IndexError) as error:
            raise UserError(
                f"section {section.name!r} does not follow the .hnerv format ({error}): encode the run again"
            ) from error
        if len(view):
            raise UserError(
                f"section {section.name!r} does not follow the .hnerv format (bytes left over): encode the run again"
            )
    return tensors


def coded_values(weights: dict[str, Tensor], scales: dict[str, Scale | None]) -> dict[str, Tensor]:
    """`weights` as a decoder gets them: quantised and dequantised, without the way through bytes."""
    return {
        name: weight.half().float()
        if scales[name] is None
        else dequantise(quantise(weight, scales[name]), scales[name])
        for name, weight in weights.items()
    }


def _record(section: Section, name: str, weight: Tensor, scale: Scale | None) -> bytes:
    part = weight[section.first : section.stop] if section.stop else weight
    if scale is None:
        return bytes([_HALF]) + part.half().numpy().astype("<f2").tobytes()
    symbols = quantise(part, _sliced(section, scale)).numpy()
    # Latents change slowly in time: differences from slice to slice are often smaller, and then shorter. Both are
    # coded.
    choices = {0: symbols.ravel()}
    if section.stop:
        differences = np.diff(symbols, axis=0, prepend=np.zeros_like(symbols[:1])).ravel()
        if np.ptp(differences) < entropy.MAX_SYMBOLS:
            choices[_DIFFERENCES] = differences
    records = [_coded_record(flag, choice, _sliced(section, scale)) for flag, choice in choices.items()]
    return min(records, key=len)


def _sliced(section: Section, scale: Scale) -> Scale:
    """The scale of the section's slices, where there is one per slice of the first axis."""
    if not section.stop or len(scale.step) == 1:
        return scale
    span = slice(section.first, section.stop)
    return scale._replace(step=scale.step[span], offset=None if scale.offset is None else scale.offset[span])


def _coded_record(flag: int, symbols: np.ndarray, scale: Scale) -> bytes:
    coded = entropy.encode_symbols(symbols)
    kind = _CODED | flag | (_PER_CHANNEL if len(scale.step) > 1 else 0) | (0 if scale.offset is None else _OFFSET)
    model = coded.model
    numbers = [scale.step] if scale.offset is None else [scale.step, scale.offset]
    return b"".join(
        [
            _HEAD.pack(kind, model.lowest, model.num_symbols, model.shift),
            *(_bfloat16_bytes(x) for x in numbers),
            model.table,
            struct.pack("<I", len(coded.words) // 4),
            coded.words,
        ]
    )


def _parse(view: memoryview, shape: tuple[int, ...]) -> tuple[Tensor, int]:
    """The record at the start of `view` -> values of `shape` and its length in bytes."""
    count = int(np.prod(shape))
    if view[0] == _HALF:
        return torch.from_numpy(np.frombuffer(view, "<f2", count, 1).astype(np.float32)).reshape(shape), 1 + 2 * count
    reader = _Reader(view)
    kind, lowest, num_symbols, shift = _HEAD.unpack(reader.take(_HEAD.size))
    valid = kind & _CODED and kind < 16 and 2 <= num_symbols <= entropy.MAX_SYMBOLS and shift <= 15
    _check(bool(valid), "invalid record header")
    slices = shape[0] if kind & _PER_CHANNEL else 1
    step = _from_bfloat16(reader.take(2 * slices))
    offset = _from_bfloat16(reader.take(2 * slices)) if kind & _OFFSET else None
    _check(bool((step.isfinite() & (step > 0)).all()), "invalid step")
    _check(offset is None or bool(offset.isfinite().all()), "invalid offset")
    table = bytes(reader.take(-(-num_symbols // (1 << shift))))
    _check(any(table), "empty frequency table")
    words = bytes(reader.take(4 * struct.unpack("<I", reader.take(4))[0]))
    model = entropy.EntropyModel(lowest, num_symbols, shift, table)
    symbols = entropy.decode_symbols(entropy.CodedSymbols(model, words), count)
    symbols = symbols.astype(np.int64).reshape(shape)
    # Sums of integers, not of values: they are exact, so that no error grows along time.
    if kind & _DIFFERENCES:
        symbols = np.cumsum(symbols, axis=0)
    _check(int(np.abs(symbols).max(initial=0)) <= LARGEST_SYMBOL, "symbol out of range")
    return dequantise(torch.from_numpy(symbols), Scale(step, offset, 0, 0)), reader.used


class _Reader:
    def __init__(self, view: memoryview) -> None:
        self.view, self.used = view, 0

    def take(self, count: int) -> memoryview:
        _check(self.used + count <= len(self.view), "truncated record")
        self.used += count
        return self.view[self.used - count : self.used]


def _check(good: bool, fault: str) -> None:
    if not good:
        raise ValueError(fault)


def _bfloat16_bytes(x: Tensor) -> bytes:
    # A bfloat16 is the upper half of the fp32 number: sign, 8 bits of exponent, 7 of mantissa.
    return (as_bfloat16(x).numpy().view(np.uint32) >> 16).astype("<u2").tobytes()


def _from_bfloat16(data: memoryview) -> Tensor:
    return torch.from_numpy((np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).copy())
