"""FAISS index of the unit vectors of many videos, in one file: the bytes of FAISS, then moments and a table.

N vectors, D dimensions. Ids are int64, given by the caller. FAISS (pip install -e '.[fleet]') is imported at first use.
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
"""Increase when the file, or the arithmetic behind it, changes."""
EXACT_BELOW = 20_000
"""Below this many vectors the search is exact, in fp32; from it on, inverted lists with 8 bits per dimension."""
PROBED, MIN_PROBED = 8, 64
"""A query searches the nearest 1/PROBED of all lists, at least MIN_PROBED."""
SAMPLES_PER_LIST, KMEANS_STEPS = 64, 10
"""Training vectors per list for k-means, and its iterations."""
MARGIN, MAX_CLIPPED = 0.25, 0.001
"""The quantiser's range per dimension is that of the sample, widened by this share on either side. It is too narrow for
new vectors if more than MAX_CLIPPED of their components lie outside."""
CHECKED_ROWS = 256
"""Rows per video, about, that are checked against the range."""
GROWTH = 4
"""The lists are trained again once the number of vectors has grown by this factor."""
_MAGIC = b"hnervidx"
_FOOTER = struct.Struct("<8sQQQQQ32s")


class DamagedVectorsError(ValueError):
    """A file that is truncated, corrupt or of another version."""


class Moments(NamedTuple):
    """First and second moments: sum of the vectors (D,) and of their outer products (D, D), both fp64.

    The mean and variance of all scores follow for any query without reading the vectors.
    """

    count: int
    total: np.ndarray
    outer: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Moments:
        """The moments of rows (N, D) fp32."""
        # With a row x = m + d, where m is the mean rounded to fp32:
        #   sum x x^T = sum d d^T + m (sum d)^T + (sum d) m^T + N m m^T,   sum d = sum x - N m.
        # The fp32 product then runs over the small d; the large terms are exact in fp64. Directly in fp32, nearly equal
        # rows would lose their variance to cancellation.
        total, mean = rows.sum(0, dtype=np.float64), rows.mean(0)
        centred, mean = rows - mean, mean.astype(np.float64)
        cross = np.outer(mean, total - len(rows) * mean)
        return cls(len(rows), total, centred.T @ centred + cross + cross.T + len(rows) * np.outer(mean, mean))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    def spread(self, direction: np.ndarray) -> tuple[float, float]:
        """Mean and standard deviation of the scores of all vectors with direction (D,)."""
        direction = direction.astype(np.float64)
        mean = self.total @ direction / self.count
        return float(mean), float(max(direction @ self.outer @ direction / self.count - mean**2, 0.0)) ** 0.5


class VectorStore(NamedTuple):
    """A FAISS index, the moments of its vectors, and a table (JSON types) that maps its ids to members."""

    index: object
    moments: Moments
    table: dict


def faiss_library():
    """The faiss module, limited to torch's number of threads. Raises UserError if it is not installed."""
    try:
        import faiss
    except ImportError:
        raise UserError("searching a folder of videos needs FAISS: run pip install -e '.[fleet]'") from None
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def num_lists(count: int) -> int:
    """Number of inverted lists for `count` vectors: the power of two nearest to the square root, or 1 (exact)."""
    return 1 if count < EXACT_BELOW else 2 ** round(np.log2(count) / 2)


def outgrown(index, planned_count: int, count: int) -> bool:
    """True if an index created for `planned_count` vectors is no longer suitable for `count`."""
    return (index.nlist == 1) != (num_lists(count) == 1) or count > GROWTH * planned_count


def sample_size(count: int) -> int:
    """Number of training vectors for `create_index`, out of `count`."""
    return min(count, SAMPLES_PER_LIST * num_lists(count))


def create_index(sample: np.ndarray, count: int):
    """sample (S, D), drawn from all vectors -> an empty index of inner products, trained for `count` vectors."""
    faiss = faiss_library()
    dim, lists = sample.shape[1], num_lists(count)
    quantiser = faiss.IndexFlatIP(dim)
    if lists == 1:
        index = faiss.IndexIVFFlat(quantiser, dim, 1, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexIVFScalarQuantizer(
            quantiser, dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        index.sq.rangestat_arg = MARGIN
    index.cp.niter, index.cp.seed = KMEANS_STEPS, 0
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, SAMPLES_PER_LIST
    index.train(sample)
    return index


def fits(index, rows: np.ndarray) -> bool:
    """True if rows (N, D) lie within the 8-bit range of an index; a regular subset of the rows is checked."""
    if index.nlist == 1:
        return True
    subset = np.ascontiguousarray(rows[:: -(-len(rows) // CHECKED_ROWS)])
    error = np.abs(index.sa_decode(index.sa_encode(subset)) - subset)
    return float((error > _step_sizes(index)).mean()) <= MAX_CLIPPED


def score_error(index, direction: np.ndarray) -> float:
    """Bound on the error of a score with direction (D,), due to the 8-bit vectors: six standard deviations."""
    if index.nlist == 1:
        return 0.0
    # Rounding to a step s has a uniform error of variance s^2 / 12. The errors of the dimensions are independent, so
    # the score has the variance sum_d (direction_d s_d)^2 / 12.
    return 6 * float(np.linalg.norm(direction * _step_sizes(index))) / 12**0.5


def _step_sizes(index) -> np.ndarray:
    """(D,): quantisation step of each dimension, its range divided by 255."""
    import faiss

    return faiss.vector_to_array(faiss.downcast_index(index).sq.trained).reshape(2, -1)[1] / 255


def add_rows(index, rows: np.ndarray, first: int) -> None:
    """Add rows (N, D) fp32 of unit norm with the ids first, first + 1, ..."""
    index.add_with_ids(rows, np.arange(first, first + len(rows), dtype=np.int64))


def remove_ranges(index, ranges: Sequence[tuple[int, int]]) -> None:
    """Remove the ids of the half-open ranges [first, end)."""
    faiss = faiss_library()
    ids = np.concatenate([np.arange(first, end, dtype=np.int64) for first, end in ranges])
    index.remove_ids(faiss.IDSelectorBatch(ids))  # one pass over the index, however many ranges


def nearest(index, direction: np.ndarray, count: int, share: int = PROBED) -> tuple[np.ndarray, np.ndarray]:
    """(scores, ids) of at most `count` vectors with the highest inner product with direction (D,), descending.

    The nearest 1/`share` of the lists are searched; 1 searches all.
    """
    faiss = faiss_library()
    index.parallel_mode = 1  # a single query is parallel over its lists only
    probes = faiss.SearchParametersIVF(nprobe=min(index.nlist, max(MIN_PROBED, index.nlist // share)))
    scores, ids = index.search(direction[None].astype(np.float32), min(count, index.ntotal), params=probes)
    return scores[0][ids[0] >= 0], ids[0][ids[0] >= 0]


def write_vectors(path: Path, store: VectorStore) -> None:
    """Write atomically. FAISS opens the file too, since it ignores what follows its own bytes. Raises OSError."""
    faiss = faiss_library()
    index, moments, table = store
    text = json.dumps(table).encode()
    with replacing(path) as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write, 1 << 22))
        own = file.tell()
        head = own - index.ntotal * (index.code_size + 8)
        file.write(moments.total.tobytes() + moments.outer.tobytes() + text)
        file.flush()
        with open(file.name, "rb") as written:
            checksum = _file_checksum(written, head, own)
        file.write(_FOOTER.pack(_MAGIC, VERSION, own, head, index.d, moments.count, checksum))


def read_vectors(path: Path, mapped: bool = True) -> VectorStore:
    """Inverse of `write_vectors`. With `mapped`, queries read vectors from the disk; else they are writable in memory.

    The checksum covers everything except the vectors, since checking them would read the full file. Raises
    DamagedVectorsError, FileNotFoundError and other OSError.
    """
    faiss = faiss_library()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < _FOOTER.size:
            raise DamagedVectorsError("truncated")
        file.seek(size - _FOOTER.size)
        magic, version, own, head, dim, count, checksum = _FOOTER.unpack(file.read())
        sums = 8 * dim * (dim + 1)
        if magic != _MAGIC or not head <= own <= size - _FOOTER.size - sums:
            raise DamagedVectorsError("its footer is missing")
        if version != VERSION:
            raise DamagedVectorsError(f"unsupported version {version}")
        if _file_checksum(file, head, own, size - _FOOTER.size) != checksum:
            raise DamagedVectorsError("wrong checksum")
        file.seek(own)
        total, outer = np.frombuffer(file.read(8 * dim)), np.frombuffer(file.read(8 * dim * dim)).reshape(dim, dim)
        table = json.loads(file.read(size - _FOOTER.size - sums - own))
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP if mapped else 0)
    except RuntimeError as error:
        raise DamagedVectorsError(str(error).splitlines()[0]) from error
    if (index.ntotal, index.d) != (count, dim):
        raise DamagedVectorsError("replaced while it was being read")
    if mapped:
        faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = torch.get_num_threads()
    return VectorStore(index, Moments(count, total, outer), table)


def _file_checksum(file: BinaryIO, head: int, own: int, end: int | None = None) -> bytes:
    """SHA-256 of the first `head` bytes and of the bytes from `own` to `end`."""
    checksum = hashlib.sha256(struct.pack("<QQ", head, own))
    file.seek(0)
    checksum.update(file.read(head))
    file.seek(own)
    checksum.update(file.read() if end is None else file.read(end - own))
    return checksum.digest()
