"""Index of one model: all embeddings that its CLIP head predicts, computed once and stored next to the model file.

N frames, P patches, D embedding dimensions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from hnerv.codec import open_stored
from hnerv.config import Config
from hnerv.errors import UserError
from hnerv.files import cache_folder, replacing, sha256_of
from hnerv.model import DualHeadHNeRV, Scene, joined_scene
from hnerv.model.predict import FRAMES_AT_ONCE, predict_clip
from hnerv.runs import chunks_of
from hnerv.runs.models import checkpoint_of
from hnerv.runs.record import RunRecord
from hnerv.runs.video import StoredChunk, check_trained

INDEX_VERSION = 2
"""Increase when the content of an index, or the arithmetic behind it, changes."""

_log = logging.getLogger("hnerv")


class Index(NamedTuple):
    """embeddings (N, P, D) fp32 of unit norm on the CPU, with the model file `path` and the record of its run."""

    path: Path
    embeddings: Tensor
    record: RunRecord

    @property
    def scene(self) -> Scene:
        return self.record.scene

    @property
    def config(self) -> Config:
        return self.record.config

    @property
    def targets(self) -> str:
        """The targets of the CLIP head, in one line."""
        return self.record.targets_label

    @property
    def encoder(self) -> str:
        """Equal for comparable embeddings: from the same weights, or from target files that name the same encoder."""
        targets, named = self.record.targets, ""
        if targets.kind == "file":
            named = targets.source.removeprefix(f"file {targets.weights.rsplit(' sha256:', 1)[0]}")
        text = (
            f"{targets.kind} {targets.model} {named or targets.fingerprint} of {self.embeddings.shape[-1]} dimensions"
        )
        return " ".join(text.split())


def open_index(path: Path, device: torch.device, keep: bool = True) -> Index:
    """The index of a .hnerv file, a checkpoint or a run folder (its latest.pt). The video is not needed.

    A stored index, next to the model file or in the cache folder, is used if it is intact and its sha256 of the model
    file matches. Otherwise the index is computed and, with `keep`, stored. The index of a run in segments concatenates
    those of its segments. Raises UserError if the model cannot be read, has no CLIP head or has untrained segments.
    """
    chunks = chunks_of(path)
    if chunks[0].is_part:
        check_trained(chunks)
        parts = (open_index(chunk.path, device, keep) for chunk in chunks)
        return _join_segments(path, parts, sum(chunk.frames for chunk in chunks))
    path = checkpoint_of(path)
    digest = _digest(path)
    candidates = index_paths(path, digest)
    for stored in candidates:
        if index := _read_index(stored, path, digest):
            return index
    index = _compute(path, device)
    if keep:
        _write_index(candidates, index, digest)
    return index


def map_index(path: Path, digest: str, device: torch.device) -> Index:
    """The stored index of a file with this sha256, memory-mapped and without verifying its checksum.

    Falls back to `open_index` if none is stored. Raises UserError.
    """
    for stored in index_paths(path, digest):
        if index := _read_index(stored, path, digest, check=False):
            return index
    return open_index(path, device)


def index_paths(path: Path, digest: str) -> tuple[Path, Path]:
    """Locations for the index of a file with this sha256: next to it, or if that is not writable, in the cache."""
    cached = cache_folder() / "indexes" / f"{digest}.v{INDEX_VERSION}.safetensors"
    return path.with_name(f"{path.name}.index.safetensors"), cached


@torch.no_grad()
def predict_embeddings(model: DualHeadHNeRV) -> Tensor:
    """Embeddings of all frames, (N, P, D) on the CPU, equal to those that an evaluation measures."""
    device = next(model.parameters()).device
    times = torch.arange(model.scene.frames, dtype=torch.float32, device=device)
    rows = []
    with tqdm(total=len(times), desc="index", unit="frame", disable=None, leave=False) as bar:
        for batch in times.split(FRAMES_AT_ONCE):
            rows.append(predict_clip(model, batch).float().cpu())
            bar.update(len(batch))
    return torch.cat(rows)


def _digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file: pass a .hnerv file, a checkpoint, a run folder or a folder of these"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): pass a readable file") from error


def _compute(path: Path, device: torch.device) -> Index:
    video = open_stored(path)
    parts = (_index_of_chunk(path, video.open_chunk(entry), device) for entry in video.chunks)
    return _join_segments(path, parts, video.frames)


def _index_of_chunk(path: Path, chunk: StoredChunk, device: torch.device) -> Index:
    if not chunk.record.targets:
        raise UserError(f"{path} has no CLIP head and cannot be searched: train a run with CLIP targets")
    model = chunk.model(("clip_head",)).to(device)
    return Index(path, predict_embeddings(model), chunk.record)


def _join_segments(path: Path, parts: Iterable[Index], frames: int) -> Index:
    """One index from those of a video's segments in order, with the configuration of the first.

    Raises UserError unless the segments have `frames` frames in total.
    """
    # Each part is copied into one preallocated tensor as it arrives, so the embeddings exist only once.
    scenes, record, embeddings = [], None, None
    at = 0
    for part in parts:
        count, *shape = part.embeddings.shape
        if embeddings is None:
            embeddings, record = torch.empty(frames, *shape), part.record
        if at + count > frames or embeddings.shape[1:] != part.embeddings.shape[1:]:
            raise UserError(f"the segments of {path} do not match: encode or train it again")
        embeddings[at : at + count] = part.embeddings
        at += count
        scenes.append(part.scene)
    if at != frames:
        raise UserError(f"the segments of {path} have {at} frames, not {frames}: encode or train it again")
    if len(scenes) > 1:
        record = dataclasses.replace(record, scene=joined_scene(scenes))
    return Index(path, embeddings, record)


def _read_index(stored: Path, path: Path, digest: str, check: bool = True) -> Index | None:
    """None if there is no index, or it belongs to another file or version, or it is damaged (logged)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(stored, "pt") as file:
            metadata, embeddings = file.metadata() or {}, file.get_tensor("embeddings")
        if (metadata["version"], metadata["source"]) != (str(INDEX_VERSION), digest):
            return None
        if check and metadata["checksum"] != _embeddings_checksum(embeddings, metadata["record"]):
            raise ValueError("wrong checksum")
        return Index(path, embeddings, RunRecord.from_dict(json.loads(metadata["record"]), stored))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        _log.warning("the index %s is damaged (%s); recomputing it", stored, error)
        return None


def _write_index(candidates: tuple[Path, Path], index: Index, digest: str) -> None:
    """Write atomically to the first writable candidate; log a warning if there is none."""
    from safetensors.torch import save

    text = json.dumps(index.record.to_dict())
    metadata = {"version": str(INDEX_VERSION), "source": digest, "record": text}
    metadata["checksum"] = _embeddings_checksum(index.embeddings, text)
    data = save({"embeddings": index.embeddings.contiguous()}, metadata)
    for candidate in candidates:
        try:
            with replacing(candidate) as file:
                file.write(data)
            return
        except OSError as error:
            cause = error
    _log.warning(
        "the index is not saved, %s cannot be written (%s): set HNERV_CACHE to another folder", candidates[-1], cause
    )


def _embeddings_checksum(embeddings: Tensor, text: str) -> str:
    checksum = hashlib.sha256(embeddings.contiguous().numpy().data)
    checksum.update(f"{tuple(embeddings.shape)}{text}".encode())
    return checksum.hexdigest()
