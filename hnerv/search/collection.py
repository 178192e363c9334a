"""Index of the embeddings of all videos under a folder, stored there and updated when it is opened.

N frames, P patches per frame, D embedding dimensions. The id of a vector is `first` of its member + frame x P + patch.
"""

from __future__ import annotations

import hashlib
import logging
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import reduce
from math import ceil
from operator import add
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from hnerv.errors import UserError
from hnerv.files import cache_folder, sha256_of
from hnerv.runs import chunks_of
from hnerv.runs.models import checkpoint_of
from hnerv.search.index import Index, map_index, open_index
from hnerv.search.members import files_of, members_of
from hnerv.search.vectors import (
    DamagedVectorsError,
    Moments,
    VectorStore,
    add_rows,
    create_index,
    faiss_library,
    fits,
    outgrown,
    read_vectors,
    remove_ranges,
    sample_size,
    write_vectors,
)

INDEX_NAME = "index.faiss"
_log = logging.getLogger("hnerv")


class Member(NamedTuple):
    """A model of the collection. `path` is relative to the folder; `fault` is the reason for skipping it, or ''."""

    path: str
    size: int
    stamp: int
    """Latest change in ns. A different stamp or size means that the file (of a run, latest.pt) may have changed."""
    digest: str = ""
    frames: int = 0
    patches: int = 0
    fps: float = 0.0
    teacher: str = ""
    first: int = -1
    """Id of the first vector; -1 while it has no vectors in the index."""
    fault: str = ""

    @property
    def count(self) -> int:
        return self.frames * self.patches

    @property
    def end(self) -> int:
        """The id after that of the last vector."""
        return self.first + self.count


class Collection(NamedTuple):
    """An open index: `members` in ascending order of `first`, and `vectors`, the FAISS index of the file `path`."""

    folder: Path
    path: Path
    members: tuple[Member, ...]
    vectors: object
    moments: Moments
    opened: dict[str, Index]
    """Indices of the members opened so far, by path."""

    def member_of(self, vector: int) -> Member | None:
        """Return the member that owns a vector id, or None."""
        at = bisect_right(self.members, vector, key=lambda member: member.first) - 1
        return self.members[at] if at >= 0 and vector < self.members[at].end else None

    def open(self, member: Member, device: torch.device) -> Index:
        """The index of one member, memory-mapped. Raises UserError if its file has changed."""
        if member.path not in self.opened:
            self.opened[member.path] = _open_member(self.folder, member, device)
        return self.opened[member.path]

    def teacher(self, device: torch.device) -> Index:
        """An index without frames, with the record of the targets that all members share.

        A run is preferred to a .hnerv file, since its record has the location of the CLIP weights.
        """
        runs = [member for member in self.members if not member.path.endswith(".hnerv")]
        first = self.open((runs or self.members)[0], device)
        return Index(self.path, first.embeddings[:0], first.record)


def open_collection(folder: Path, device: torch.device) -> Collection:
    """The index of all models under a folder, stored there (else in the cache folder) and brought up to date.

    New and changed models are added, missing ones removed. A model that cannot be read, has no CLIP head or has other
    targets than the majority is skipped with a warning. Raises UserError if no model remains.
    """
    paths = [path.relative_to(folder).as_posix() for path in members_of(folder)]
    if not paths:
        raise UserError(f"{folder} contains no .hnerv file and no run with a checkpoint: pass a folder that does")
    faiss_library()
    path, store = _load(folder)
    known = _members(store) if store else []
    members = _current_members(folder, paths, known, device)
    for member in members:
        if member.fault:
            _log.warning("skipping %s: %s", folder / member.path, member.fault)
    if all(member.fault for member in members):
        raise UserError(f"none of the {len(paths)} models under {folder} can be searched: fix the causes given above")
    if members != known:
        path, store = _save(folder, _update(folder, path, store, members, device))
    indexed = sorted((member for member in _members(store) if not member.fault), key=lambda member: member.first)
    return Collection(folder, path, tuple(indexed), store.index, store.moments, {})


def collection_paths(folder: Path) -> tuple[Path, Path]:
    """Locations for the index of a folder: in it, or if that is not writable, in the cache."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    return folder / INDEX_NAME, cache_folder() / "collections" / f"{name}.faiss"


def teacher_key(index: Index) -> str:
    """Equal for models with comparable embeddings: from the same weights, or from target files of the same encoder."""
    targets, dim = index.record.targets, index.embeddings.shape[-1]
    label = targets.weights
    if targets.kind == "file":
        label = targets.source.removeprefix(f"file {label.rsplit(' sha256:', 1)[0]}") or label
    label = label.rsplit(" ", 1)[-1] if " sha256:" in label else label
    return " ".join(f"{targets.kind} {targets.model} {label} of {dim} dimensions".split())


def _load(folder: Path) -> tuple[Path, VectorStore | None]:
    """The newest intact index; without one, the preferred path and None."""
    candidates = collection_paths(folder)
    existing = [path for path in candidates if path.is_file()]
    for path in sorted(existing, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            return path, read_vectors(path)
        except FileNotFoundError:
            continue
        except (DamagedVectorsError, OSError) as error:
            _log.warning("the index %s is unusable (%s); rebuilding it", path, error)
    return candidates[0], None


def _members(store: VectorStore) -> list[Member]:
    return [Member(*row) for row in store.table["members"]]


def _current_members(folder: Path, paths: Sequence[str], known: Sequence[Member], device: torch.device) -> list[Member]:
    """One member per path: the known one if its file is unchanged, else read. Other targets are marked as faults."""
    by_path, members = {member.path: member for member in known}, []
    with tqdm(total=len(paths), desc="videos", unit="video", disable=None, leave=False) as bar:
        for path in paths:
            former, current = by_path.get(path), Member(path, *_stamp(folder / path))
            same = former and (former.size, former.stamp) == (current.size, current.stamp)
            members.append(former if same else _read_member(folder, current, former, device))
            bar.update()
    return _mark_minority(members)


def _stamp(path: Path) -> tuple[int, int]:
    """(size, latest change in ns) of the files of a member, metadata changes included; (-1, -1) if one is missing."""
    try:
        stats = [file.stat() for file in files_of(path)]
    except (UserError, OSError):
        return -1, -1
    return sum(stat.st_size for stat in stats), max(max(stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)


def _member_digest(path: Path) -> str:
    """SHA-256 of the content of a member. Raises UserError, OSError."""
    digests = [sha256_of(file) for file in files_of(path)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _read_member(folder: Path, member: Member, former: Member | None, device: torch.device) -> Member:
    """The member with the properties of its index. If the content is unchanged, the former one keeps its vectors."""
    try:
        digest = _member_digest(folder / member.path)
        if former and former.digest == digest:
            return former._replace(size=member.size, stamp=member.stamp)
        index = open_index(folder / member.path, device)
    except (UserError, OSError) as error:
        return member._replace(fault=" ".join(str(error).split()))
    frames, patches, _ = index.embeddings.shape
    properties = {"frames": frames, "patches": patches, "fps": index.scene.fps, "teacher": teacher_key(index)}
    return member._replace(digest=digest, **properties)


def _mark_minority(members: Sequence[Member]) -> list[Member]:
    """Set the fault of members with other targets than the majority; on a tie the targets of the first member win."""
    counts = Counter(member.teacher for member in members if member.teacher)
    most, marked = max(counts, key=counts.get, default=""), []
    for member in members:
        if member.teacher and member.teacher != most:
            fault = f"its targets are from {member.teacher}, most here are from {most}"
            member = member._replace(first=-1, fault=fault)
        marked.append(member._replace(fault="") if member.teacher == most and most else member)
    return marked


def _update(
    folder: Path, path: Path, store: VectorStore | None, members: list[Member], device: torch.device
) -> VectorStore:
    """An index of `members` in memory: the stored one modified if possible, otherwise a new one."""
    count = sum(member.count for member in members if not member.fault)
    if store and any(member.first >= 0 for member in members):
        writable = None if outgrown(store.index, store.table["laid_for"], count) else _load_writable(path, store)
        updated = writable and _add_new(folder, _remove_missing(folder, writable, members, device), members, device)
        if updated:
            return updated
    sample = _sample(folder, members, count, device)
    dim = sample.shape[1]
    table = {"members": [], "laid_for": count, "after": 0}
    empty = VectorStore(create_index(sample, count), Moments(0, np.zeros(dim), np.zeros((dim, dim))), table)
    return _add_new(folder, empty, [member._replace(first=-1) for member in members], device, must=True)


def _remove_missing(folder: Path, store: VectorStore, members: Sequence[Member], device: torch.device) -> VectorStore:
    """The store without the vectors that belong to none of `members`."""
    kept = {member.first: member for member in members if member.first >= 0}
    missing = [(member.first, member.end) for member in _members(store) if member.first not in {-1, *kept}]
    if not missing:
        return store
    remove_ranges(store.index, missing)
    # Summed again over what is left: subtracting the moments of the removed vectors would accumulate rounding errors.
    moments = reduce(add, (Moments.of(_rows(folder, member, device)) for member in kept.values()))
    return store._replace(moments=moments)


def _add_new(
    folder: Path, store: VectorStore, members: Sequence[Member], device: torch.device, must: bool = False
) -> VectorStore | None:
    """The store with the vectors of those `members` that have none yet.

    None if they exceed the range of the 8-bit quantiser, unless `must`.
    """
    index, moments, table = store
    rows_of_table, next_id = [], table["after"]
    for member in members:
        if not member.fault and member.first < 0:
            rows = _rows(folder, member, device)
            if not must and not fits(index, rows):
                return None
            add_rows(index, rows, next_id)
            moments, member = moments + Moments.of(rows), member._replace(first=next_id)
            next_id = member.end
        rows_of_table.append(list(member))
    return VectorStore(index, moments, {**table, "members": rows_of_table, "after": next_id})


def _load_writable(path: Path, mapped: VectorStore) -> VectorStore | None:
    """The mapped index in memory; None if another process has replaced the file in the meantime."""
    try:
        writable = read_vectors(path, mapped=False)
    except (DamagedVectorsError, OSError):
        return None
    return writable if writable.table == mapped.table else None


def _sample(folder: Path, members: Sequence[Member], count: int, device: torch.device) -> np.ndarray:
    """(S, D): a random sample of all vectors, the same share of each video."""
    rng, share, samples = np.random.default_rng(0), sample_size(count) / count, []
    for member in members:
        if not member.fault:
            rows = _rows(folder, member, device)
            samples.append(rows[np.sort(rng.choice(len(rows), ceil(share * len(rows)), replace=False))])
    return np.concatenate(samples)


def _rows(folder: Path, member: Member, device: torch.device) -> np.ndarray:
    """The embeddings of a member, (N x P, D) fp32."""
    return _open_member(folder, member, device).embeddings.flatten(0, 1).numpy()


def _open_member(folder: Path, member: Member, device: torch.device) -> Index:
    """The index of a member. Raises UserError if its files are no longer those that were indexed."""
    path = folder / member.path
    divided = chunks_of(path)[0].is_part
    if divided and _member_digest(path) != member.digest:
        raise UserError(f"{path} changed while it was being read: run the search again")
    index = open_index(path, device) if divided else map_index(checkpoint_of(path), member.digest, device)
    if index.embeddings.shape[:2] != (member.frames, member.patches):
        raise UserError(f"{folder / member.path} changed while it was being read: run the search again")
    return index


def _save(folder: Path, store: VectorStore) -> tuple[Path, VectorStore]:
    """Write to the first writable path and map the file; log a warning if there is none."""
    for path in collection_paths(folder):
        try:
            write_vectors(path, store)
            return path, read_vectors(path)
        except (OSError, DamagedVectorsError) as error:
            cause = error
    _log.warning("the index is not saved, %s cannot be written (%s): set HNERV_CACHE to another folder", path, cause)
    return path, store
