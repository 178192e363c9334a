"""Unit vectors of many videos in one FAISS index, which is one file: FAISS's own bytes, then what belongs to them.

N vectors, D dimensions. Ids are int64, given by the caller. FAISS (pip install -e '.[fleet]') is imported when it is
first needed.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch

from hnerv.errors import UserError
from hnerv.files import replacing

VERSION = 1
"""To be raised when the file, or the arithmetic behind it, changes."""
EXACT_BELOW = 20_000
"""Vectors up to which each is compared with the query, in fp32; beyond, 8 bits a dimension and the nearest lists."""
PROBED, LEAST = 8, 64
"""A query looks into the nearest lists, one in PROBED of them, at least LEAST."""
TRAINED_PER_LIST, ROUNDS = 64, 10
"""Vectors per list that k-means sees, and its rounds."""
MARGIN, CLIPPED = 0.25, 0.001
"""By how much of it the range of a dimension in the sample is widened on either side; and the share of numbers beyond
that range, of those looked at, from which on it is too narrow."""
LOOKED_AT = 256
GROWTH = 4
"""The lists are laid anew once there are so many times the vectors that they were laid for."""
_MAGIC = b"hnervidx"
_FOOTER = struct.Struct("<8sQQQQQ32s")


class Damaged(ValueError):
    """A file that is none of this version, or not whole."""


class Moments(NamedTuple):
    """Sums of the vectors, (D,), and of their outer products, (D, D), both fp64."""

    count: int
    total: np.ndarray
    outer: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Moments:
        """rows (N, D) fp32; the products are those of their differences from the mean, for the sake of precision."""
        total, near = rows.sum(0, dtype=np.float64), rows.mean(0)
        apart, near = rows - near, near.astype(np.float64)
        mixed = np.outer(near, total - len(rows) * near)
        return cls(len(rows), total, apart.T @ apart + mixed + mixed.T + len(rows) * np.outer(near, near))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    def spread(self, direction: np.ndarray) -> tuple[float, float]:
        """Mean and standard deviation of the scores of all vectors with direction (D,)."""
        exact = direction.astype(np.float64)
        mean = self.total @ exact / self.count
        return float(mean), float(max(exact @ self.outer @ exact / self.count - mean**2, 0.0)) ** 0.5


class Stored(NamedTuple):
    """A FAISS index, the moments of its vectors, and the table that says what its ids mean."""

    index: object
    moments: Moments
    table: dict


def faiss_library():
    """The module, limited to torch's number of threads. Raises UserError where it is not installed."""
    try:
        import faiss
    except ImportError:
        raise UserError("searching a folder of videos needs FAISS: run pip install -e '.[fleet]'") from None
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def lists_for(count: int) -> int:
    """Into how many lists `count` vectors are sorted: the power of two next to their root, or one, which is exact."""
    return 1 if count < EXACT_BELOW else 2 ** round(np.log2(count) / 2)


def outgrown(index, laid_for: int, count: int) -> bool:
    """Whether an index that was laid for so many vectors is no longer one for `count`."""
    return (index.nlist == 1) != (lists_for(count) == 1) or count > GROWTH * laid_for


def sample_size(count: int) -> int:
    """How many of `count` vectors `lay_index` wants to see."""
    return min(count, TRAINED_PER_LIST * lists_for(count))


def lay_index(sample: np.ndarray, count: int):
    """sample (S, D), drawn from all -> an empty index of inner products for `count` vectors."""
    faiss = faiss_library()
    dim, lists = sample.shape[1], lists_for(count)
    centres = faiss.IndexFlatIP(dim)
    if lists == 1:
        index = faiss.IndexIVFFlat(centres, dim, 1, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexIVFScalarQuantizer(
            centres, dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        index.sq.rangestat_arg = MARGIN
    index.cp.niter, index.cp.seed = ROUNDS, 0
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, TRAINED_PER_LIST
    index.train(sample)
    return index


def fits(index, rows: np.ndarray) -> bool:
    """Whether the 8 bits of an index can hold rows (N, D), of which some are looked at."""
    if index.nlist == 1:
        return True
    some = np.ascontiguousarray(rows[:: -(-len(rows) // LOOKED_AT)])
    wrong = np.abs(index.sa_decode(index.sa_encode(some)) - some)
    return float((wrong > _steps(index)).mean()) <= CLIPPED


def error_of(index, direction: np.ndarray) -> float:
    """What a score with direction (D,) may be wrong by in the index: six deviations of what rounding adds up to."""
    if index.nlist == 1:
        return 0.0
    return 6 * float(np.linalg.norm(direction * _steps(index))) / 12**0.5


def _steps(index) -> np.ndarray:
    """(D,), from one of the 256 values of each dimension to the next."""
    import faiss

    return faiss.vector_to_array(faiss.downcast_index(index).sq.trained).reshape(2, -1)[1] / 255


def add_rows(index, rows: np.ndarray, first: int) -> None:
    """rows (N, D) fp32 of unit norm, under the ids first, first + 1, ..."""
    index.add_with_ids(rows, np.arange(first, first + len(rows), dtype=np.int64))


def remove_ranges(index, ranges: Sequence[tuple[int, int]]) -> None:
    """Takes out the ids from the first to before the second of each range."""
    faiss = faiss_library()
    ids = np.concatenate([np.arange(first, end, dtype=np.int64) for first, end in ranges])
    index.remove_ids(faiss.IDSelectorBatch(ids))  # one pass over the index, however many ranges


def nearest(index, direction: np.ndarray, count: int, share: int = PROBED) -> tuple[np.ndarray, np.ndarray]:
    """Scores, descending, and ids of at most `count` vectors that score highest with direction (D,), in one list of
    `share` (1: in all)."""
    faiss = faiss_library()
    index.parallel_mode = 1  # one query at a time: its lists are what threads can share
    probes = faiss.SearchParametersIVF(nprobe=min(index.nlist, max(LEAST, index.nlist // share)))
    scores, ids = index.search(direction[None].astype(np.float32), min(count, index.ntotal), params=probes)
    return scores[0][ids[0] >= 0], ids[0][ids[0] >= 0]


def write_vectors(path: Path, stored: Stored) -> None:
    """Whole or not at all. Any FAISS opens the file too: it reads no further than its own bytes. Inverse of
    `read_vectors`. Raises OSError."""
    faiss = faiss_library()
    index, moments, table = stored
    text = json.dumps(table).encode()
    with replacing(path) as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write, 1 << 22))
        own = file.tell()
        head = own - index.ntotal * (index.code_size + 8)
        file.write(moments.total.tobytes() + moments.outer.tobytes() + text)
        file.flush()
        with open(file.name, "rb") as written:
            checksum = _checksum(written, head, own)
        file.write(_FOOTER.pack(_MAGIC, VERSION, own, head, index.d, moments.count, checksum))


def read_vectors(path: Path, mapped: bool = True) -> Stored:
    """`mapped` leaves the vectors on the disk until a query wants them; without it they are in memory, to be changed.

    Checked is all that FAISS trusts, but not the vectors: that would read them all. Raises Damaged, FileNotFoundError
    and other OSError.
    """
    faiss = faiss_library()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < _FOOTER.size:
            raise Damaged("truncated")
        file.seek(size - _FOOTER.size)
        magic, version, own, head, dim, count, checksum = _FOOTER.unpack(file.read())
        sums = 8 * dim * (dim + 1)
        if magic != _MAGIC or not head <= own <= size - _FOOTER.size - sums:
            raise Damaged("its footer is missing")
        if version != VERSION:
            raise Damaged(f"unsupported version {version}")
        if _checksum(file, head, own, size - _FOOTER.size) != checksum:
            raise Damaged("wrong checksum")
        file.seek(own)
        total, outer = np.frombuffer(file.read(8 * dim)), np.frombuffer(file.read(8 * dim * dim)).reshape(dim, dim)
        table = json.loads(file.read(size - _FOOTER.size - sums - own))
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP if mapped else 0)
    except RuntimeError as error:
        raise Damaged(str(error).splitlines()[0]) from error
    if (index.ntotal, index.d) != (count, dim):
        raise Damaged("replaced while it was being read")
    if mapped:
        faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = torch.get_num_threads()
    return Stored(index, Moments(count, total, outer), table)


def _checksum(file: BinaryIO, head: int, own: int, end: int | None = None) -> bytes:
    """Of the first `head` bytes, and of those from `own` to `end`."""
    whole = hashlib.sha256(struct.pack("<QQ", head, own))
    file.seek(0)
    whole.update(file.read(head))
    file.seek(own)
    whole.update(file.read() if end is None else file.read(end - own))
    return whole.digest()
