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
from collections import defaultdict
from decimal import Decimal, localcontext
from functools import cache
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
    assert (magic, version, zero, size) == (MAGIC, 6, 0, len(data))
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
                slices += read_section(section, [(stop - first, *shape[1:])], latent=True)
            tensors[name] = np.concatenate(slices)
        else:
            words = name.split(".")
            stage = ".".join(words[:3]) if words[1] == "stages" else ".".join(words[:2])
            by_part.setdefault(stage if words[0] == "decoder" else words[0], []).append(name)
    for section, names in by_part.items():
        values = read_section(sections.pop(section), [shapes[name] for name in names], latent=False)
        tensors.update(zip(names, values, strict=True))
    assert not sections
    return tensors


def read_section(data: bytes, shapes: list[tuple[int, ...]], latent: bool) -> list[np.ndarray]:
    """The tensors of its records."""
    heads = []
    for shape in shapes:
        head, data = read_head(data, shape)
        heads.append(head)
    assert len(data) % 4 == 0
    coder = Coder(list(struct.unpack(f"<{len(data) // 4}I", data)))
    earlier: dict[tuple[bool, int], list[int]] = {}
    values = [
        head.halves if head.kind == 0 else read_record(head, shape, latent, earlier, coder)
        for head, shape in zip(heads, shapes, strict=True)
    ]
    coder.finish()
    return values


class Code(NamedTuple):
    """Of a vector."""

    scale_class: int
    logistic: bool
    differences: bool
    doubled: bool
    slope: int


class Head(NamedTuple):
    """Of a record; `model` are the fields of its model."""

    kind: int
    halves: np.ndarray | None = None
    steps: np.ndarray | None = None
    offsets: np.ndarray | None = None
    origin: int = 0
    model: tuple = ()
    codes: dict[int, Code] | None = None


def read_head(data: bytes, shape: tuple[int, ...]) -> tuple[Head, bytes]:
    """The head at the start of `data`, and the data after it."""
    kind, count = data[0], int(np.prod(shape))
    if kind == 0:
        halves = np.frombuffer(data, "<f2", count, 1).astype(np.float32).reshape(shape)
        return Head(0, halves), data[1 + 2 * count :]
    assert kind & 1 and not (kind & 2 and kind & 24)
    at, slices, offsets = 1, shape[0] if kind & 2 else 1, None
    steps, at = read_bfloat16(data, at, slices), at + 2 * slices
    if kind & 4:
        offsets, at = read_bfloat16(data, at, slices), at + 2 * slices
    (origin,) = struct.unpack_from("<h", data, at)
    at += 2
    flags = kind & 120
    if kind & 160 == 160:
        flags &= ~32
        num_symbols, shift = struct.unpack_from("<HB", data, at)
        bins = -(-num_symbols // 2**shift)
        model, at = (num_symbols, shift, data[at + 3 : at + 3 + bins]), at + 3 + bins
    elif kind & 128:
        model, at = struct.unpack_from("<B22b", data, at), at + 23
    else:
        model, at = struct.unpack_from("<Bb", data, at), at + 2
    codes = {}
    for flag in (8, 16, 32, 64):
        if flags & flag:
            byte, at = data[at], at + 1
            slope = 0
            if byte & 128:
                (slope,) = struct.unpack_from("<b", data, at)
                at += 1
            codes[flag] = Code(8 + 2 * (byte % 16), byte & 16 > 0, byte & 32 > 0, byte & 64 > 0, slope)
    return Head(kind, None, steps, offsets, origin, model, codes), data[at:]


def read_record(head: Head, shape: tuple[int, ...], latent: bool, earlier: dict, coder: Coder) -> np.ndarray:
    """The values of a tensor; `earlier` are vectors of the records before, by kind and length."""
    count = int(np.prod(shape))
    rows = shape[0] if len(shape) > 1 else 1
    cols = shape[1] if latent else count // rows
    g = count // rows // cols
    vectors: dict[int, list[int]] = {}
    for flag, code in head.codes.items():
        number = rows if flag in (8, 32) else cols
        found = residuals(coder, 256, code.logistic, [(code.scale_class, 0)] * number)
        if code.differences:
            found = list(accumulate(found))
        guide = vectors.get(flag // 4) if flag > 16 else None
        if guide is None:
            guide = earlier.get((flag > 16, number), [0] * number)
        found = [x + (code.slope * e + 32) // 64 for x, e in zip(found, guide, strict=True)]
        vectors[flag] = [2 * x for x in found] if code.doubled else found
    for flag, values in vectors.items():
        earlier[flag > 16, len(values)] = values
    zeros = {8: [0] * rows, 32: [0] * rows, 16: [0] * cols, 64: [0] * cols}
    row_steps, col_steps, row_classes, col_classes = (vectors.get(flag, zeros[flag]) for flag in (8, 16, 32, 64))
    places = [(v // (cols * g), v // g % cols) for v in range(count)]
    if head.kind & 160 == 160:
        left = histogram_bounds(*head.model)
        symbols = [coder.decode(left) for _ in range(count)]
    elif head.kind & 128:
        symbols = decode_context(coder, head.model, shape, col_classes)
    else:
        density, base = head.model
        keys = [(min(max(base + row_classes[i] + col_classes[j], 0), 72), 0) for i, j in places]
        symbols = residuals(coder, largest(density % 64), density >= 64, keys)
    values = np.array([head.origin + symbol for symbol in symbols]).astype(np.float32)
    if head.kind & 24:
        steps = np.array([exact_step(head.steps[0], row_steps[i] + col_steps[j]) for i, j in places])
    else:
        steps = np.repeat(head.steps, count // len(head.steps))
    values = values * steps
    if head.offsets is not None:
        values = values + np.repeat(head.offsets, count // len(head.offsets))
    return values.reshape(shape)


EIGHTHS = [8388608, 9147842, 9975792, 10878679, 11863283, 12937002, 14107901, 15384775]


def exact_step(step: np.float32, exponent: int) -> np.float32:
    """The step of an element."""
    rounded = np.float32(float(step) * (EIGHTHS[exponent % 8] / 2**23))  # exact in binary64, then rounded
    return np.float32(float(rounded) * 2.0 ** (exponent // 8))


def decode_context(coder: Coder, model: tuple, shape: tuple[int, ...], channels: list[int]) -> list[int]:
    """The symbols of latents, without the origin."""
    slices, depth, height, width = shape
    density, values = model[0], iter(model[1:])
    regimes = {}
    for key, names in {
        (0, 0): ("base",),
        (0, 1): ("base", "w4", "g3"),
        (1, 0): ("base", "w0", "w1", "w2", "w3", "g0", "g1", "g2"),
        (1, 1): ("base", "w0", "w1", "w2", "w3", "w4", "g0", "g1", "g2", "g3"),
    }.items():
        regimes[key] = {name: next(values) for name in names}
    y: dict[tuple[int, ...], int] = {}
    e: dict[tuple[int, ...], int] = {}
    for t in range(slices):
        for odd in (0, 1):
            cells = [
                (t, k, i, j) for k in range(depth) for i in range(height) for j in range(width) if (i + j) % 2 == odd
            ]
            regime = defaultdict(int, regimes[int(t > 0), odd])
            keys, nearest, predictions = [], [], []
            for cell in cells:
                p, s = expectation(regime, y, e, cell)
                m = (p + 4) // 8
                keys.append((min(max(s + channels[cell[1]], 0), 72), p - 8 * m))
                nearest.append(m)
                predictions.append(p)
            found = residuals(coder, largest(density % 64), density >= 64, keys)
            for cell, m, p, r in zip(cells, nearest, predictions, found, strict=True):
                y[cell] = m + r
                e[cell] = abs(8 * y[cell] - p)
    return [y[cell] for cell in sorted(y)]


def expectation(w: dict[str, int], y: dict, e: dict, cell: tuple[int, ...]) -> tuple[int, int]:
    """Prediction in eighths, and class, of a cell."""
    t, k, i, j = cell

    def direct(x: dict, back: int) -> int:
        return sum(x.get((t - back, k, i + a, j + b), 0) for a, b in ((0, 1), (0, -1), (1, 0), (-1, 0)))

    def diagonal(x: dict, back: int) -> int:
        return sum(x.get((t - back, k, i + a, j + b), 0) for a in (1, -1) for b in (1, -1))

    def at(x: dict, back: int) -> int:
        return x.get((t - back, k, i, j), 0)

    def box(back: int) -> int:
        return at(e, back) + direct(e, back) + diagonal(e, back)

    total = 4 * w["w0"] * at(y, 1) + w["w1"] * direct(y, 1) + w["w2"] * diagonal(y, 1) + 4 * w["w3"] * at(y, 2)
    p = (total + w["w4"] * direct(y, 0) + 16) // 32
    logs = w["g0"] * log(at(e, 1) + 2) + w["g1"] * log(box(1) + 14) + w["g2"] * log(box(2) + 14)
    return p, w["base"] + (logs + w["g3"] * log(direct(e, 0) + 6) + 16) // 32


def log(a: int) -> int:
    """The largest k with 2^k <= a^4."""
    return (a**4).bit_length() - 1


def read_bfloat16(data: bytes, at: int, count: int) -> np.ndarray:
    """Each is the upper half of a binary32."""
    halves = struct.unpack_from(f"<{count}H", data, at)
    return np.array([struct.unpack("<f", struct.pack("<I", half << 16))[0] for half in halves], np.float32)


def largest(index: int) -> int:
    """R."""
    assert index <= 56
    return index if index < 4 else (4 + index % 4) * 2 ** (index // 4 - 1)


@cache
def decay(m: int) -> int:
    """D(m), by decimal arithmetic."""
    if m > 18:
        return 0
    with localcontext() as context:
        context.prec = 50
        return int((2**31 * (-(Decimal(2) ** (Decimal(m) / 4))).exp()).to_integral_value())


@cache
def density_bounds(reach: int, logistic: bool, s: int, f: int) -> list[int]:
    """left_0 ... left_A."""
    tails, least, products = [], 2**31, [2**31]
    for k in range(8 * reach + 9):
        if k:  # the factor of the highest digit comes last
            i = k.bit_length() - 1
            products.append(products[k - 2**i] * decay(4 * i + 4 - s) // 2**31)
        least = min(least, products[k])
        tails.append(least * 2**31 // (2**31 + least) if logistic else least // 2)
    edges = [8 * r - 4 - f for r in range(-reach, reach + 2)]
    below = [tails[-x] if x < 0 else 2**31 - tails[x] for x in edges]
    free, span = 2**24 - (2 * reach + 1), below[-1] - below[0]
    return [i + (b - below[0]) * free // span for i, b in enumerate(below)]


def histogram_bounds(num_symbols: int, shift: int, table: bytes) -> list[int]:
    """left_0 ... left_A."""
    weights = [v if v < 16 else (16 + v % 16) * 2 ** (v // 16 - 1) for v in table]
    sums = [0, *accumulate(weights[i // 2**shift] for i in range(num_symbols))]
    return [i + s * (2**24 - num_symbols) // sums[-1] for i, s in enumerate(sums)]


class Coder:
    """rANS; the last of `words` is on top of the stack."""

    def __init__(self, words: list[int]) -> None:
        self.state, self.words = 0, words
        while self.words and self.state < 2**32:
            self.state = self.state << 32 | self.words.pop()

    def decode(self, left: list[int]) -> int:
        """The next index."""
        assert left[-1] == 2**24
        q = self.state % 2**24
        index = bisect.bisect_right(left, q) - 1
        self.state = (left[index + 1] - left[index]) * (self.state >> 24) + q - left[index]
        if self.words and self.state < 2**32:
            self.state = self.state << 32 | self.words.pop()
        return index

    def finish(self) -> None:
        assert self.state == 0 and not self.words


def residuals(coder: Coder, reach: int, logistic: bool, keys: list[tuple[int, int]]) -> list[int]:
    """Residuals with these (class, fraction), which are decoded together."""
    found = [0] * len(keys)
    if reach:
        for place in sorted(range(len(keys)), key=lambda place: (keys[place], place)):
            found[place] = coder.decode(density_bounds(reach, logistic, *keys[place])) - reach
    return found
