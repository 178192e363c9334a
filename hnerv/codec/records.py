"""A tensor, or a slice of a latent one, <-> a record: its head, and its symbols in the stream of the section.

The head has steps and the parameters of the symbols' model; vectors along rows and columns are in the stream.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hnerv.codec.context import LARGEST_SYMBOL, fit_context, read_context
from hnerv.codec.entropy import Fields, SymbolDecoder, SymbolEncoder, read_histogram, shortest_histogram
from hnerv.codec.vectors import read_vector_code, shortest_code
from hnerv.codec.weights import fit_classes, read_classes
from hnerv.quantise import Scale, as_bfloat16, dequantise, quantise

LARGEST_SUM = 1000
"""Largest magnitude of a sum of step exponents, in eighths: its power of two is a normal fp32 number."""

# The first byte of a head is the sum of flags. Half floats have none. The model of the symbols is a context (_CONTEXT),
# a histogram (_CONTEXT and _ROW_CLASSES), or classes.
_CODED, _PER_SLICE, _OFFSET, _ROW_STEPS, _COL_STEPS, _ROW_CLASSES, _COL_CLASSES, _CONTEXT = (1 << i for i in range(8))
_HISTOGRAM = _CONTEXT | _ROW_CLASSES
_STEPS, _CLASSES = (_ROW_STEPS, _COL_STEPS), (_ROW_CLASSES, _COL_CLASSES)

Vectors = dict[int, np.ndarray]
"""{flag: values} of the vectors of a record."""

Shared = dict[tuple[bool, int], np.ndarray]
"""The last vector of step exponents (False) or classes (True) of each length, of the records before in a section."""


class _Model(NamedTuple):
    """A way to code the symbols: their origin, its flags, head and class vectors, what puts them, and all bits."""

    origin: int
    flags: int
    head: bytes
    vectors: Vectors
    put: Callable[[SymbolEncoder], None]
    bits: float


def put_tensor(part: Tensor, scale: Scale | None, latent: bool, shared: Shared, encoder: SymbolEncoder) -> bytes:
    """Puts the symbols of a tensor; returns the head. Scale None: half floats. Inverse of `read_tensor`.

    `shared` is changed, too. Of all models, the one with the fewest bits is used. Raises UserError for symbols that are
    too large.
    """
    if scale is None:
        return bytes([0]) + part.half().numpy().astype("<f2").tobytes()
    exponents = zip(_STEPS, (scale.rows, scale.cols), strict=True)
    vectors = {flag: values.numpy().astype(np.int64) for flag, values in exponents if values is not None}
    symbols = quantise(part, scale).numpy().astype(np.int64)
    model = min(_models(symbols, vectors, latent, shared), key=lambda model: model.bits)
    vectors |= model.vectors
    guides = {flag: _guide(flag, len(vectors[flag]), vectors, shared) for flag in sorted(vectors)}
    codes = {flag: shortest_code(vectors[flag], guide)[0] for flag, guide in guides.items()}
    for flag, code in codes.items():
        code.put(vectors[flag], guides[flag], encoder)
    _share(vectors, shared)
    model.put(encoder)
    kind = _CODED | (_PER_SLICE if len(scale.step) > 1 else 0) | (0 if scale.offset is None else _OFFSET)
    numbers = [scale.step] if scale.offset is None else [scale.step, scale.offset]
    return b"".join(
        [
            bytes([kind | model.flags | sum(vectors)]),
            *map(_bfloat16_bytes, numbers),
            struct.pack("<h", model.origin),
            model.head,
            *(code.head() for code in codes.values()),
        ]
    )


def _models(symbols: np.ndarray, steps: Vectors, latent: bool, shared: Shared) -> Iterator[_Model]:
    lowest, middle = int(symbols.min()), int(np.median(symbols))
    if histogram := shortest_histogram((symbols - lowest).ravel()):
        table, bits = histogram
        put = partial(SymbolEncoder.put_histogram, indices=(symbols - lowest).ravel(), histogram=table)
        yield _Model(lowest, _HISTOGRAM, table.head(), {}, put, bits)
    centred = symbols - middle
    matrix = centred.reshape(_view(symbols.shape, latent))
    guides = [_guide(flag, count, steps, shared) for flag, count in zip(_CLASSES, matrix.shape, strict=False)]
    classes, bits = fit_classes(matrix, *guides)
    vectors = {flag: v for flag, v in zip(_CLASSES, (classes.rows, classes.cols), strict=True) if v is not None}
    yield _Model(middle, 0, classes.head(), vectors, partial(classes.put, matrix), bits)
    if latent and (found := fit_context(centred)):
        context, bits = found
        vectors = {} if context.channels is None else {_COL_CLASSES: context.channels}
        bits += sum(shortest_code(values, guides[1])[1] for values in vectors.values())
        yield _Model(middle, _CONTEXT, context.head(), vectors, partial(context.put, centred), bits)


def read_tensor(fields: Fields, shape: tuple[int, ...], latent: bool) -> Callable[[Shared, SymbolDecoder], Tensor]:
    """Reads the next head -> a function that decodes the values, fp32 of `shape`. Both raise ValueError."""
    (kind,) = fields.unpack("<B")
    if not kind:
        halves = np.frombuffer(fields.take(2 * math.prod(shape)), "<f2")
        values = torch.from_numpy(halves.astype(np.float32)).reshape(shape)
        return lambda shared, decoder: values
    _require(bool(kind & _CODED), "invalid record header")
    _require(not (kind & _PER_SLICE and kind & (_ROW_STEPS | _COL_STEPS)), "invalid record header")
    slices = shape[0] if kind & _PER_SLICE else 1
    step = _from_bfloat16(fields.take(2 * slices))
    offset = _from_bfloat16(fields.take(2 * slices)) if kind & _OFFSET else None
    _require(offset is None or bool(offset.isfinite().all()), "invalid offset")
    (origin,) = fields.unpack("<h")
    get = _read_model(fields, kind, shape, latent)
    codes = {flag: read_vector_code(fields) for flag in _vector_flags(kind)}

    def decode(shared: Shared, decoder: SymbolDecoder) -> Tensor:
        """Values of `shape`, fp32; `shared` is changed, too. Raises ValueError."""
        (rows, cols, _), vectors = _view(shape, latent), {}
        for flag, code in codes.items():
            count = rows if flag in (_ROW_STEPS, _ROW_CLASSES) else cols
            vectors[flag] = code.get(count, _guide(flag, count, vectors, shared), decoder)
        _share(vectors, shared)
        scale = _scale(step, offset, vectors, shape)
        symbols = get(vectors, decoder) + origin
        _require(int(np.abs(symbols).max(initial=0)) <= LARGEST_SYMBOL, "symbol out of range")
        return dequantise(torch.from_numpy(symbols), scale)

    return decode


def _read_model(
    fields: Fields, kind: int, shape: tuple[int, ...], latent: bool
) -> Callable[[Vectors, SymbolDecoder], np.ndarray]:
    """Reads the head of the model -> a function of vectors and decoder that returns the symbols of `shape`."""
    if kind & _HISTOGRAM == _HISTOGRAM:
        _require(not kind & _COL_CLASSES, "invalid record header")
        table = read_histogram(fields)
        return lambda vectors, decoder: decoder.get_histogram(table, math.prod(shape)).reshape(shape)
    if kind & _CONTEXT:
        _require(latent, "invalid record header")
        context = read_context(fields)
        return lambda vectors, decoder: context._replace(channels=vectors.get(_COL_CLASSES)).get(shape, decoder)
    classes, view = read_classes(fields), _view(shape, latent)
    return lambda vectors, decoder: (
        classes._replace(rows=vectors.get(_ROW_CLASSES), cols=vectors.get(_COL_CLASSES))
        .get(view, decoder)
        .reshape(shape)
    )


def _vector_flags(kind: int) -> list[int]:
    """Flags of the vectors of a record, in file order."""
    if kind & _HISTOGRAM == _HISTOGRAM:
        kind &= ~_HISTOGRAM
    return [flag for flag in (*_STEPS, *_CLASSES) if kind & flag]


def _guide(flag: int, count: int, vectors: Vectors, shared: Shared) -> np.ndarray | None:
    """For classes, the step exponents of the same axis, if there are any; else what an earlier record has shared."""
    steps = vectors.get({_ROW_CLASSES: _ROW_STEPS, _COL_CLASSES: _COL_STEPS}.get(flag))
    return shared.get((flag in _CLASSES, count)) if steps is None else steps


def _share(vectors: Vectors, shared: Shared) -> None:
    for flag, values in sorted(vectors.items(), key=lambda item: item[0]):
        shared[flag in _CLASSES, len(values)] = values


def _view(shape: tuple[int, ...], latent: bool) -> tuple[int, int, int]:
    """(R, C, g) of the matrix view: a column of latents is a channel, with g = h w elements per row."""
    rows = shape[0] if len(shape) > 1 else 1
    cols = shape[1] if latent else math.prod(shape) // rows
    return rows, cols, math.prod(shape) // (rows * cols)


def _scale(step: Tensor, offset: Tensor | None, vectors: Vectors, shape: tuple[int, ...]) -> Scale:
    rows, cols = (torch.from_numpy(vectors[flag]).int() if flag in vectors else None for flag in _STEPS)
    largest = sum(int(exponents.abs().max()) for exponents in (rows, cols) if exponents is not None)
    _require(largest <= LARGEST_SUM, "invalid step exponent")
    scale = Scale(step, offset, 0, 0, rows, cols)
    steps = scale.steps(shape)
    _require(bool((steps.isfinite() & (steps > 0)).all()), "invalid step")
    return scale


def _require(good: bool, fault: str) -> None:
    if not good:
        raise ValueError(fault)


def _bfloat16_bytes(x: Tensor) -> bytes:
    # A bfloat16 is the upper half of the fp32 number: sign, 8 bits of exponent, 7 of mantissa.
    return (as_bfloat16(x).numpy().view(np.uint32) >> 16).astype("<u2").tobytes()


def _from_bfloat16(data: memoryview) -> Tensor:
    return torch.from_numpy((np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).copy())
