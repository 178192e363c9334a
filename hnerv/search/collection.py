"""All videos under a folder, searched together. P patches, D embedding dimensions, Q queries."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import logging
import math
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hnerv.errors import UserError
from hnerv.files import cache_folder, replacing, sha256_of, write_json
from hnerv.runs import is_run
from hnerv.runs.models import checkpoints_of, is_trained
from hnerv.runs.names import MOVED_ASIDE
from hnerv.search.hits import SearchHit
from hnerv.search.index import INDEX_VERSION, Index, map_index, open_index
from hnerv.search.ranking import check_top, find_hits, query_direction

FLAT_LIMIT = 400_000  # up to this many vectors, a query is compared with all; measured in benchmarks/LOG.md
SAMPLES_PER_LIST = 64  # training vectors of k-means per inverted list
PROBED, MIN_PROBED = 4, 64  # a query searches the nearest 1/PROBED of all lists, at least MIN_PROBED
CANDIDATES = 1000  # vectors requested from the index per hit; those of one scene lie close together
ROW_BITS = 40  # the id of a vector is its member's number << ROW_BITS, plus frame x P + patch
_log = logging.getLogger("hnerv")


class Member(NamedTuple):
    """A model of a collection, in the state of its files (several for a run in segments) when they were last read."""

    path: str  # relative to the folder
    stamp: str = ""  # size and latest change of the files; while it stays the same, they are not read again
    digest: str = ""  # SHA-256 of the files
    count: int = 0  # vectors: one for each patch of each frame
    targets: str = ""  # `Index.encoder`
    fault: str = ""  # the reason for skipping it
    number: int = -1  # determines the ids of its vectors in the FAISS index; -1 if there are none


class Collection(NamedTuple):
    """The members of a folder; beyond FLAT_LIMIT vectors, also their FAISS index."""

    folder: Path
    members: list[Member]
    stamp: str = ""  # of the FAISS file that belongs to the members
    moments: str = ""  # `moments_of` all vectors in the index, in base64
    version: int = INDEX_VERSION  # members of another version are read again
    vectors: object = None

    def teacher(self, device: torch.device) -> Index:
        """An index without frames, with the record that all share; that of a run also knows where the weights are."""
        first = open_member(self.folder, min(self.members, key=lambda member: member.path.endswith(".hnerv")), device)
        return Index(self.folder / "index.faiss", first.embeddings[:0], first.record)


def open_collection(folder: Path, device: torch.device) -> Collection:
    """The models under a folder that can be searched, brought up to date; others are logged. Raises UserError."""
    stored = _load(folder)
    members = _current_members(folder, stored.members, device)
    if not members:
        raise UserError(f"{folder} contains no .hnerv file and no run with a checkpoint: pass a folder that does")
    for member in members:
        if member.fault:
            _log.warning("skipping %s: %s", folder / member.path, member.fault)
    count = sum(member.count for member in members if not member.fault)
    if not count:
        raise UserError(f"none of the {len(members)} models under {folder} can be searched: fix the causes given above")
    collection = stored
    if count <= FLAT_LIMIT:
        collection = Collection(folder, [member._replace(number=-1) for member in members])
    elif not stored.vectors or members != stored.members:
        collection = _with_index(stored, members, count, device)
    if collection != stored:
        _save(collection)
    return collection._replace(members=[member for member in collection.members if not member.fault])


def find_across(
    collection: Collection, wanted: Tensor, unwanted: Tensor | None, top: int, device: torch.device
) -> list[SearchHit]:
    """wanted (Q, D), unwanted (Q', D) -> at most `top` hits of all members merged, best first. Raises UserError.

    The z-score of a hit is relative to all patches of all videos.
    """
    check_top(top)
    direction, hits, scored = query_direction(wanted, unwanted), [], set()
    mean, deviation, ranking = (_rank_by_index if collection.vectors else _rank_all)(collection, direction, top, device)
    for member, bound in ranking:  # exact scores of members, until no other (in the lists probed) can be better
        if len(hits) == top and hits[-1].score > bound:
            break
        if member not in scored:
            scored.add(member)
            index = open_member(collection.folder, member, device)
            scores = (index.embeddings @ direction).numpy()
            hits.extend(SearchHit(hit, index, member.path) for hit in find_hits(scores, top))
            hits = sorted(hits, key=lambda found: (-found.score, found.video, found.hit))[:top]
    deviation = deviation or math.inf  # z is 0 if all scores are equal
    return [replace(found, hit=found.hit._replace(z=(found.score - mean) / deviation)) for found in hits]


def members_of(folder: Path) -> list[Path]:
    """The .hnerv files and run folders under a folder, at any depth, sorted.

    A run is included once it has a checkpoint, a run in segments once every segment has one. A file replaces the run
    that it was encoded from: X.hnerv replaces all of X/ next to it or around it, and a file in a run folder replaces
    the run. Hidden folders, links to folders and runs that --overwrite moved aside are skipped.
    """
    models = []
    for path, folders, names in os.walk(folder):
        files = [Path(path, name) for name in names if name.endswith(".hnerv") and not name.startswith(".")]
        models.extend(files := [file for file in files if file.is_file()])
        replaced = {file.stem for file in files}
        if is_run(Path(path)) or Path(path).resolve().name in replaced:
            folders.clear()
            if not files and is_trained(Path(path)):
                models.append(Path(path))
        folders[:] = [
            name for name in folders if name not in replaced and not (name.startswith(".") or MOVED_ASIDE.search(name))
        ]
    return sorted(models)


@functools.lru_cache(maxsize=4096)
def open_member(folder: Path, member: Member, device: torch.device) -> Index:
    """The index of a member, memory-mapped. Raises UserError if its files have changed."""
    path, files = folder / member.path, checkpoints_of(folder / member.path)
    index = open_index(path, device) if len(files) > 1 else map_index(files[0], member.digest, device)
    if index.embeddings[..., 0].numel() != member.count:
        raise UserError(f"{path} changed while it was being read: run the search again")
    return index


def moments_of(rows: Tensor) -> np.ndarray:
    """Rows x (K, D) -> sum of (x, 1)(x, 1)^T, (D + 1)^2 in fp64. Mean and deviation of any scores follow from it."""
    blocks = (np.pad(block.double().numpy(), ((0, 0), (0, 1)), constant_values=1) for block in rows.split(4096))
    return sum(block.T @ block for block in blocks).ravel()


def _current_members(folder: Path, known: list[Member], device: torch.device) -> list[Member]:
    """A member per model, the known one if its files are unchanged. Targets unlike those of most are a fault."""
    former = {member.path: member for member in known}
    names = [path.relative_to(folder).as_posix() for path in members_of(folder)]
    bar = tqdm([former.get(name) or Member(name) for name in names], "videos", unit="video", disable=None, leave=False)
    members = [_current(folder, member, device) for member in bar]
    counts = Counter(member.targets for member in members if member.targets)
    most = max(counts, key=counts.get, default="")  # on a tie those of the first member
    faults = {other: f"its targets are from {other}, most here are from {most}" for other in counts} | {most: ""}
    return [member._replace(fault=faults[member.targets]) if member.targets else member for member in members]


def _current(folder: Path, former: Member, device: torch.device) -> Member:
    """The member by its files as they are now. It keeps its number if their content is unchanged."""
    stamp, path = "", folder / former.path
    try:
        files = checkpoints_of(path)
        stamp = " ".join(_stamp(file.stat()) for file in files)
        if stamp == former.stamp:
            return former
        digest = " ".join(map(sha256_of, files))
        if digest == former.digest:
            return former._replace(stamp=stamp)
        index = open_index(path, device)
    except (UserError, OSError) as error:
        stamp = stamp if isinstance(error, UserError) else ""  # an error of the disk may pass
        return Member(former.path, stamp, fault=" ".join(str(error).split()))
    return Member(former.path, stamp, digest, index.embeddings[..., 0].numel(), index.encoder)


def _rank_all(collection: Collection, direction: Tensor, top: int, device: torch.device):
    """(mean, deviation) of all scores, and (member, best score) for each member, best first."""
    scores = [open_member(collection.folder, member, device).embeddings @ direction for member in collection.members]
    every = torch.cat([own.flatten() for own in scores]).double()
    ranking = zip(collection.members, [float(own.max()) for own in scores], strict=True)
    return float(every.mean()), float(every.std(correction=0)), sorted(ranking, key=lambda pair: -pair[1])


def _rank_by_index(collection: Collection, direction: Tensor, top: int, device: torch.device):
    """As `_rank_all`, but with a member and an upper bound for each candidate of the index before all members."""
    query, index = direction.numpy(), collection.vectors
    index.parallel_mode = 1  # over the lists of one query
    moments = np.frombuffer(base64.b64decode(collection.moments)).reshape(len(query) + 1, -1)
    mean = moments[-1, :-1] @ query / moments[-1, -1]
    centred = np.append(query.astype(np.float64), -mean)
    deviation = math.sqrt(max(centred @ moments @ centred / moments[-1, -1], 0.0))
    probes = _faiss().SearchParametersIVF(nprobe=min(index.nlist, max(MIN_PROBED, index.nlist // PROBED)))
    (scores,), (ids,) = index.search(query[None], min(CANDIDATES * top, index.ntotal), params=probes)
    # fp16 rounds to a relative 2^-11, and a vector without the centre of its list has a norm of at most 2.
    bounds, owners = scores + 2**-10 * np.linalg.norm(query), {member.number: member for member in collection.members}

    def ranking():
        yield from ((owners[id >> ROW_BITS], bound) for id, bound in zip(ids.tolist(), bounds, strict=True) if id >= 0)
        yield from _rank_all(collection, direction, top, device)[2]

    return mean, deviation, ranking()


def _with_index(stored: Collection, members: list[Member], count: int, device: torch.device) -> Collection:
    """A collection of `members` with an index: the stored one, updated by id if possible, otherwise a new one."""
    faiss, folder, read = _faiss(), stored.folder, open_member.__wrapped__  # without keeping all members mapped
    members = [member._replace(number=-1) if member.fault else member for member in members]
    kept = {member.number for member in members} - {-1}
    gone = [_ids(member) for member in stored.members if member.number not in {-1, *kept}]
    writable = _load(folder, mapped=False) if kept else stored
    # Unless another process has replaced it, or it has far too few or too many lists.
    if kept and writable[:3] == stored[:3] and 1 / 4 <= writable.vectors.nlist**2 / count <= 4:
        index = writable.vectors
    else:
        members, kept, gone, sample = [member._replace(number=-1) for member in members], set(), [], []
        lists, draw = 2 ** round(math.log2(count) / 2), np.random.default_rng(0)
        for member in members:
            if not member.fault:
                rows = read(folder, member, device).embeddings.flatten(0, 1)
                sample.append(rows[draw.integers(len(rows), size=1 + SAMPLES_PER_LIST * lists * len(rows) // count)])
        # fp16 has no trained range that the vectors of later members could exceed, unlike 8 bits.
        index = faiss.index_factory(rows.shape[1], f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
        index.train(torch.cat(sample).numpy())
    if gone:
        index.remove_ids(faiss.IDSelectorBatch(np.concatenate(gone)))
    # Moments cannot be subtracted without the embeddings of what is gone: those of all others are summed again.
    moments = 0 if (again := gone or not kept) else np.frombuffer(base64.b64decode(stored.moments))
    for at, member in enumerate(members):
        if not member.fault and (again or member.number < 0):
            rows = read(folder, member, device).embeddings.flatten(0, 1)
            moments = moments + moments_of(rows)
            if member.number < 0:
                members[at] = member._replace(number=max(kept, default=-1) + 1)
                kept.add(members[at].number)
                index.add_with_ids(rows.numpy(), _ids(members[at]))
    return Collection(folder, members, moments=base64.b64encode(moments).decode(), vectors=index)


def _ids(member: Member) -> np.ndarray:
    return (member.number << ROW_BITS) + np.arange(member.count)


def _faiss():
    """The faiss module, limited to torch's number of threads. Raises UserError if it is not installed."""
    try:
        import faiss
    except ImportError:
        raise UserError(f"more than {FLAT_LIMIT:,} patches need FAISS: run pip install -e '.[fleet]'") from None
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def _place(folder: Path) -> Path:
    """The FAISS file of a folder: in it, or if that is not writable, in the cache. The list is next to it, as JSON."""
    cached = cache_folder() / "collections" / hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    return folder / "index.faiss" if os.access(folder, os.W_OK) else cached.with_suffix(".faiss")


def _load(folder: Path, mapped: bool = True) -> Collection:
    """The stored collection, its vectors on the disk or in memory; an empty one if it is missing or unusable."""
    place, vectors = _place(folder), None
    try:
        stored = json.loads(place.with_suffix(".json").read_bytes())
        members = [Member(**member) for member in stored.pop("members") if stored["version"] == INDEX_VERSION]
        if stored["stamp"]:
            with place.open("rb") as file:  # FAISS reads the open file: another process may replace it meanwhile
                if _stamp(os.fstat(file.fileno())) != stored["stamp"]:
                    raise ValueError("it is damaged or belongs to other members")
                vectors = _faiss().read_index(f"/dev/fd/{file.fileno()}", _faiss().IO_FLAG_MMAP if mapped else 0)
        return Collection(folder, members, **stored, vectors=vectors)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        if place.with_suffix(".json").exists():
            _log.warning("the index %s is unusable (%s); rebuilding it", place, str(error).splitlines()[0])
        return Collection(folder, [])


def _save(collection: Collection) -> None:
    """Write the FAISS file, then the list with its stamp; log a warning if that is not possible."""
    place, stamp = _place(collection.folder), ""
    try:
        if collection.vectors:
            with replacing(place) as file:
                _faiss().write_index(collection.vectors, f"/dev/fd/{file.fileno()}")
                stamp = _stamp(os.fstat(file.fileno()))
        members = [member._asdict() for member in collection.members]
        table = {"version": INDEX_VERSION, "stamp": stamp, "moments": collection.moments, "members": members}
        write_json(place.with_suffix(".json"), table)
    except (OSError, RuntimeError) as error:
        _log.warning("the index is not saved, %s cannot be written (%s)", place, str(error).splitlines()[0])


def _stamp(stat: os.stat_result) -> str:
    return f"{stat.st_size}:{stat.st_mtime_ns}"
