"""The embeddings of all videos under a folder in one index, kept there and brought up to date when it is opened.

P patches in a frame, D embedding dimensions. A vector's id is its member's `first` + frame x P + patch.
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
from hnerv.runs.opening import checkpoint_of
from hnerv.search.index import Index, map_index, open_index
from hnerv.search.members import files_of, members_of
from hnerv.search.vectors import (
    Damaged,
    Moments,
    Stored,
    add_rows,
    faiss_library,
    fits,
    lay_index,
    outgrown,
    read_vectors,
    remove_ranges,
    sample_size,
    write_vectors,
)

NAME = "index.faiss"
_log = logging.getLogger("hnerv")


class Member(NamedTuple):
    """A model of the collection; `path` is relative to its folder, `fault` says why it is left out, '' if it is not."""

    path: str
    size: int
    stamp: int
    """With `size`, tells whether its file (of a run, latest.pt) has changed."""
    digest: str = ""
    frames: int = 0
    patches: int = 0
    fps: float = 0.0
    teacher: str = ""
    first: int = -1
    """Id of its first vector; -1 while it has none."""
    fault: str = ""

    @property
    def count(self) -> int:
        return self.frames * self.patches

    @property
    def end(self) -> int:
        """One more than the id of its last vector."""
        return self.first + self.count


class Collection(NamedTuple):
    """`members` are those in the index, by `first`, ascending; `place` is the file, `vectors` its FAISS index."""

    folder: Path
    place: Path
    members: tuple[Member, ...]
    vectors: object
    moments: Moments
    opened: dict[str, Index]
    """Of members that were looked into."""

    def member_of(self, vector: int) -> Member | None:
        """Whose vector has this id; None where it is nobody's."""
        at = bisect_right(self.members, vector, key=lambda member: member.first) - 1
        return self.members[at] if at >= 0 and vector < self.members[at].end else None

    def open(self, member: Member, device: torch.device) -> Index:
        """The index of one member, its embeddings on the disk. Raises UserError when its file has changed."""
        if member.path not in self.opened:
            self.opened[member.path] = _opened(self.folder, member, device)
        return self.opened[member.path]

    def teacher(self, device: torch.device) -> Index:
        """What the collection imitates, as an index that says so and holds no frames: of a run, if there is one, since
        it knows where the weights were."""
        runs = [member for member in self.members if not member.path.endswith(".hnerv")]
        first = self.open((runs or self.members)[0], device)
        return Index(self.place, first.embeddings[:0], first.record)


def open_collection(folder: Path, device: torch.device) -> Collection:
    """The models under a folder, in the index that is kept there (else in the cache folder), new ones added to it.

    A model whose file has changed is added anew, one that is gone is taken out. One that cannot be read, has no CLIP
    head or imitates another teacher than most is left out, with a warning. Raises UserError where nothing is left.
    """
    paths = [path.relative_to(folder).as_posix() for path in members_of(folder)]
    if not paths:
        raise UserError(f"{folder} contains no .hnerv file and no run with a checkpoint: pass a folder that does")
    faiss_library()
    place, stored = _kept(folder)
    before = _members(stored) if stored else []
    members = _looked_at(folder, paths, before, device)
    for member in members:
        if member.fault:
            _log.warning("skipping %s: %s", folder / member.path, member.fault)
    if all(member.fault for member in members):
        raise UserError(f"none of the {len(paths)} models under {folder} can be searched: fix the causes given above")
    if members != before:
        place, stored = _written(folder, _updated(folder, place, stored, members, device))
    held = sorted((member for member in _members(stored) if not member.fault), key=lambda member: member.first)
    return Collection(folder, place, tuple(held), stored.index, stored.moments, {})


def places_of(folder: Path) -> tuple[Path, Path]:
    """Where the index of a folder is kept: in it, or where that cannot be written, in the cache."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    return folder / NAME, cache_folder() / "collections" / f"{name}.faiss"


def teacher_key(index: Index) -> str:
    """Equal for members whose embeddings may be compared: the same weights, or files that quote the same encoder."""
    targets, dim = index.record.targets, index.embeddings.shape[-1]
    label = targets.weights
    if targets.kind == "file":
        label = targets.source.removeprefix(f"file {label.rsplit(' sha256:', 1)[0]}") or label
    label = label.rsplit(" ", 1)[-1] if " sha256:" in label else label
    return " ".join(f"{targets.kind} {targets.model} {label} of {dim} dimensions".split())


def _kept(folder: Path) -> tuple[Path, Stored | None]:
    """The newest that is sound, or where to put one."""
    places = places_of(folder)
    there = [place for place in places if place.is_file()]
    for place in sorted(there, key=lambda place: place.stat().st_mtime_ns, reverse=True):
        try:
            return place, read_vectors(place)
        except FileNotFoundError:
            continue
        except (Damaged, OSError) as error:
            _log.warning("the index %s is unusable (%s); rebuilding it", place, error)
    return places[0], None


def _members(stored: Stored) -> list[Member]:
    return [Member(*row) for row in stored.table["members"]]


def _looked_at(folder: Path, paths: Sequence[str], before: Sequence[Member], device: torch.device) -> list[Member]:
    """Each path as it is now: as before where its file has not changed, else read; those of other teachers faulty."""
    known, members = {member.path: member for member in before}, []
    with tqdm(total=len(paths), desc="videos", unit="video", disable=None, leave=False) as bar:
        for path in paths:
            former, found = known.get(path), Member(path, *_stamp(folder / path))
            same = former and (former.size, former.stamp) == (found.size, found.stamp)
            members.append(former if same else _read_member(folder, found, former, device))
            bar.update()
    return _of_one_teacher(members)


def _stamp(path: Path) -> tuple[int, int]:
    """Size of the files behind a member and when one, its name or its permissions changed, in ns; -1 if one is gone."""
    try:
        found = [file.stat() for file in files_of(path)]
    except (UserError, OSError):
        return -1, -1
    return sum(stat.st_size for stat in found), max(max(stat.st_mtime_ns, stat.st_ctime_ns) for stat in found)


def _digest(path: Path) -> str:
    """Of a member's content. Raises UserError, OSError."""
    found = [sha256_of(file) for file in files_of(path)]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def _read_member(folder: Path, member: Member, former: Member | None, device: torch.device) -> Member:
    """With what its index says; where the content of its file is what it was, it keeps its vectors."""
    try:
        digest = _digest(folder / member.path)
        if former and former.digest == digest:
            return former._replace(size=member.size, stamp=member.stamp)
        index = open_index(folder / member.path, device)
    except (UserError, OSError) as error:
        return member._replace(fault=" ".join(str(error).split()))
    frames, patches, _ = index.embeddings.shape
    facts = {"frames": frames, "patches": patches, "fps": index.scene.fps, "teacher": teacher_key(index)}
    return member._replace(digest=digest, **facts)


def _of_one_teacher(members: Sequence[Member]) -> list[Member]:
    """Those of another teacher than most get a fault; of equally many, the teacher of the first stays."""
    counts = Counter(member.teacher for member in members if member.teacher)
    most, found = max(counts, key=counts.get, default=""), []
    for member in members:
        if member.teacher and member.teacher != most:
            fault = f"its targets are from {member.teacher}, most here are from {most}"
            member = member._replace(first=-1, fault=fault)
        found.append(member._replace(fault="") if member.teacher == most and most else member)
    return found


def _updated(folder: Path, place: Path, stored: Stored | None, members: list[Member], device: torch.device) -> Stored:
    """An index of `members` in memory: the former one changed where that will do, else one that is laid anew."""
    count = sum(member.count for member in members if not member.fault)
    if stored and any(member.first >= 0 for member in members):
        former = None if outgrown(stored.index, stored.table["laid_for"], count) else _changeable(place, stored)
        made = former and _with_new(folder, _without_gone(folder, former, members, device), members, device)
        if made:
            return made
    sample = _sample(folder, members, count, device)
    dim = sample.shape[1]
    table = {"members": [], "laid_for": count, "after": 0}
    empty = Stored(lay_index(sample, count), Moments(0, np.zeros(dim), np.zeros((dim, dim))), table)
    return _with_new(folder, empty, [member._replace(first=-1) for member in members], device, must=True)


def _without_gone(folder: Path, stored: Stored, members: Sequence[Member], device: torch.device) -> Stored:
    """The vectors taken out that are none of `members`."""
    kept = {member.first: member for member in members if member.first >= 0}
    gone = [(member.first, member.end) for member in _members(stored) if member.first not in {-1, *kept}]
    if not gone:
        return stored
    remove_ranges(stored.index, gone)
    moments = reduce(add, (Moments.of(_rows(folder, member, device)) for member in kept.values()))
    return stored._replace(moments=moments)


def _with_new(
    folder: Path, stored: Stored, members: Sequence[Member], device: torch.device, must: bool = False
) -> Stored | None:
    """The vectors put in of those of `members` that have none yet; None where they do not fit and need not."""
    index, moments, table = stored
    found, after = [], table["after"]
    for member in members:
        if not member.fault and member.first < 0:
            rows = _rows(folder, member, device)
            if not must and not fits(index, rows):
                return None
            add_rows(index, rows, after)
            moments, member = moments + Moments.of(rows), member._replace(first=after)
            after = member.end
        found.append(list(member))
    return Stored(index, moments, {**table, "members": found, "after": after})


def _changeable(place: Path, stored: Stored) -> Stored | None:
    """What is mapped, in memory; None where another process has replaced it meanwhile."""
    try:
        found = read_vectors(place, mapped=False)
    except (Damaged, OSError):
        return None
    return found if found.table == stored.table else None


def _sample(folder: Path, members: Sequence[Member], count: int, device: torch.device) -> np.ndarray:
    """(S, D) of all vectors, each video its share."""
    draw, share, found = np.random.default_rng(0), sample_size(count) / count, []
    for member in members:
        if not member.fault:
            rows = _rows(folder, member, device)
            found.append(rows[np.sort(draw.choice(len(rows), ceil(share * len(rows)), replace=False))])
    return np.concatenate(found)


def _rows(folder: Path, member: Member, device: torch.device) -> np.ndarray:
    """(N x P, D) fp32."""
    return _opened(folder, member, device).embeddings.flatten(0, 1).numpy()


def _opened(folder: Path, member: Member, device: torch.device) -> Index:
    path = folder / member.path
    divided = chunks_of(path)[0].is_part
    if divided and _digest(path) != member.digest:
        raise UserError(f"{path} changed while it was being read: run the search again")
    index = open_index(path, device) if divided else map_index(checkpoint_of(path), member.digest, device)
    if index.embeddings.shape[:2] != (member.frames, member.patches):
        raise UserError(f"{folder / member.path} changed while it was being read: run the search again")
    return index


def _written(folder: Path, stored: Stored) -> tuple[Path, Stored]:
    """To the first place that takes it, whence it is mapped; where none does, that is a warning."""
    for place in places_of(folder):
        try:
            write_vectors(place, stored)
            return place, read_vectors(place)
        except (OSError, Damaged) as error:
            cause = error
    _log.warning("the index is not saved, %s cannot be written (%s): set HNERV_CACHE to another folder", place, cause)
    return place, stored
