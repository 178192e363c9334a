"""A second decoder, written from docs/format.md alone: the proof that the document is complete.

It imports nothing of this package, so that a mistake in the first decoder cannot be repeated here, and uses no library
for the entropy coding. Slow: it decodes a symbol at a time.
"""

from __future__ import annotations

import bisect
import json
import re
import struct
import zlib
from itertools import accumulate
from typing import NamedTuple

import numpy as np

MAGIC = bytes.fromhex("89484E52560D0A1A")
SLICE = 16


class Chunk(NamedTuple):
    frames: int
    record: dict
    encoder: dict
    sections: dict[str, bytes]


def read_file(data: bytes) -> list[Chunk]:
    """The chunks of a file, in order."""
    magic, version, zero, stored, size, crc = struct.unpack_from("<8sHHIQI", data)
    assert (magic, version, zero, size) == (MAGIC, 5, 0, len(data))
    assert crc == zlib.crc32(data[:24] + data[28 : 28 + stored])
    index = json.loads(zlib.decompress(data[28 : 28 + stored]).decode())
    at, chunks = 28 + stored, []
    for frames, length, head, check in index["chunks"]:
        chunks.append(read_chunk(data[at : at + length], head, check, index["record"], frames))
        at += length
    assert chunks and at == len(data)
    return chunks


def read_chunk(data: bytes, head: int, check: int, common: dict, frames: int) -> Chunk:
    """`head` bytes of header, then its sections."""
    assert zlib.crc32(data[:head]) == check
    header = json.loads(zlib.decompress(data[:head]).decode())
    record = complete(header["record"], common)
    assert record["scene"]["frames"] == frames
    sections, at = {}, head
    for name, length, crc in header["sections"]:
        sections[name] = data[at : at + length]
        at += length
        assert zlib.crc32(sections[name]) == crc
    assert at == len(data)
    return Chunk(frames, record, header["encoder"], sections)


def complete(own: dict, common: dict) -> dict:
    """The union of two objects, at every depth."""
    shared = own.keys() & common.keys()
    assert all(isinstance(own[key], dict) and isinstance(common[key], dict) for key in shared)
    return {**common, **own, **{key: complete(own[key], common[key]) for key in shared}}


def read_tensors(chunk: Chunk, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A chunk and the {tensor: shape} of its network, in order -> {tensor: fp32 values}."""
    sections = dict(chunk.sections)
    tensors: dict[str, np.ndarray] = {}
    by_part: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        if re.fullmatch(r"embedding\.(levels\.\d+|codes)", name):
            slices = []
            for first in range(0, shape[0], SLICE):
                stop = min(first + SLICE, shape[0])
                section = sections.pop(f"{name}[{first}:{stop}]")
                values, rest = read_record(section, (stop - first, *shape[1:]))
                assert rest == b""
                slices.append(values)
            tensors[name] = np.concatenate(slices)
        else:
            words = name.split(".")
            stage = ".".join(words[:3]) if words[1] == "stages" else ".".join(words[:2])
            by_part.setdefault(stage if words[0] == "decoder" else words[0], []).append(name)
    for section, names in by_part.items():
        rest = sections.pop(section)
        for name in names:
            tensors[name], rest = read_record(rest, shapes[name])
        assert rest == b""
    assert not sections
    return tensors


def read_record(data: bytes, shape: tuple[int, ...]) -> tuple[np.ndarray, bytes]:
    """The tensor of the record at the start of `data`, and the data after the record."""
    count = int(np.prod(shape))
    if data[0] == 0:
        return np.frombuffer(data, "<f2", count, 1).astype(np.float32).reshape(shape), data[1 + 2 * count :]
    kind, lowest, num_symbols, shift = struct.unpack_from("<BiHB", data)
    assert kind % 2 == 1 and kind < 16
    at = 8
    slices = shape[0] if kind & 2 else 1
    steps, at = read_bfloat16(data, at, slices), at + 2 * slices
    offsets = None
    if kind & 4:
        offsets, at = read_bfloat16(data, at, slices), at + 2 * slices
    bins = -(-num_symbols // 2**shift)
    table, at = data[at : at + bins], at + bins
    (size,) = struct.unpack_from("<I", data, at)
    words = list(struct.unpack_from(f"<{size}I", data, at + 4))
    symbols = np.array(decode_symbols(words, lowest, num_symbols, shift, table, count)).reshape(shape)
    if kind & 8:
        symbols = np.add.accumulate(symbols, axis=0)
    along = (-1, *[1] * (len(shape) - 1))
    values = symbols.astype(np.float32) * steps.reshape(along)
    if offsets is not None:
        values = values + offsets.reshape(along)
    return values, data[at + 4 + 4 * size :]


def read_bfloat16(data: bytes, at: int, count: int) -> np.ndarray:
    """Each is the upper half of a binary32."""
    halves = struct.unpack_from(f"<{count}H", data, at)
    return np.array([struct.unpack("<f", struct.pack("<I", half << 16))[0] for half in halves], np.float32)


def bounds_of(num_symbols: int, shift: int, table: bytes) -> list[int]:
    """left_0 ... left_A."""
    weights = [v if v < 16 else (16 + v % 16) * 2 ** (v // 16 - 1) for v in table]
    sums = [0, *accumulate(weights[i // 2**shift] for i in range(num_symbols))]
    return [i + s * (2**24 - num_symbols) // sums[-1] for i, s in enumerate(sums)]


def decode_symbols(words: list[int], lowest: int, num_symbols: int, shift: int, table: bytes, count: int) -> list[int]:
    """`count` symbols from the stack `words`, the last one on top; all of them must be used up."""
    left = bounds_of(num_symbols, shift, table)
    assert left[-1] == 2**24
    state, symbols, words = 0, [], list(words)
    while words and state < 2**32:
        state = state << 32 | words.pop()
    for _ in range(count):
        q = state % 2**24
        index = bisect.bisect_right(left, q) - 1
        symbols.append(lowest + index)
        state = (left[index + 1] - left[index]) * (state >> 24) + q - left[index]
        if words and state < 2**32:
            state = state << 32 | words.pop()
    assert state == 0 and not words
    return symbols
