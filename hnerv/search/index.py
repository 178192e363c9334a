"""All embeddings that a model predicts, computed once from what the CLIP head needs, and kept beside its file.

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

from hnerv.codec import BitstreamFile, CodedChunk, check_trained, is_container
from hnerv.config import Config
from hnerv.errors import UserError
from hnerv.files import cache_folder, replacing, sha256_of
from hnerv.model import DualHeadHNeRV, Scene, joined_scene
from hnerv.model.predict import FRAMES_AT_ONCE, predict_clip
from hnerv.runs import chunks_of
from hnerv.runs.opening import checkpoint_of, open_checkpoint
from hnerv.runs.record import RunRecord

INDEX_VERSION = 2
"""To be raised when what an index holds, or the arithmetic behind it, changes."""

_log = logging.getLogger("hnerv")


class Index(NamedTuple):
    """embeddings (N, P, D) fp32 of unit norm on the CPU, `path` the file of the model, `record` that of its run."""

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
        """What the embeddings imitate, one line."""
        return self.record.targets_label


def open_index(path: Path, device: torch.device, keep: bool = True) -> Index:
    """The index of a .hnerv file, a checkpoint or a run folder (its latest.pt); its video is not looked for.

    That of a run in segments is put together from those of its segments, each of which is kept beside its checkpoint.

    Taken from beside the file or from the cache folder if one of them was made of this very content and is sound,
    else computed and, with `keep`, put there. Raises UserError when the model cannot be read, has no CLIP head or lacks
    segments that are not trained yet.
    """
    chunks = chunks_of(path)
    if chunks[0].is_part:
        check_trained(chunks)
        found = (open_index(chunk.path, device, keep) for chunk in chunks)
        return _joined(path, found, sum(chunk.frames for chunk in chunks))
    path = checkpoint_of(path)
    digest = _digest(path)
    places = index_places(path, digest)
    for place in places:
        if found := _read(place, path, digest):
            return found
    index = _compute(path, device)
    if keep:
        _write(places, index, digest)
    return index


def map_index(path: Path, digest: str, device: torch.device) -> Index:
    """That of a file of this sha256, as it is kept: not checked again, its embeddings read as they are used.

    Where none is kept it is what `open_index` finds. Raises UserError.
    """
    for place in index_places(path, digest):
        if found := _read(place, path, digest, check=False):
            return found
    return open_index(path, device)


def index_places(path: Path, digest: str) -> tuple[Path, Path]:
    """Where the index of a file of this sha256 is kept: beside it, or where that cannot be written, in the cache."""
    cached = cache_folder() / "indexes" / f"{digest}.v{INDEX_VERSION}.safetensors"
    return path.with_name(f"{path.name}.index.safetensors"), cached


@torch.no_grad()
def predict_embeddings(model: DualHeadHNeRV) -> Tensor:
    """Of all frames, (N, P, D) on the CPU: those that an evaluation measures."""
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
    if is_container(path):
        file = BitstreamFile(path)
        return _joined(path, (_of_chunk(file.open_chunk(entry), device) for entry in file.chunks), file.frames)
    found = open_checkpoint(path)
    _check_head(path, found.record)
    found.model.keep_for_embed()
    return _of_model(path, found.model, found.record, device)


def _of_chunk(chunk: CodedChunk, device: torch.device) -> Index:
    _check_head(chunk.path, chunk.record)
    return _of_model(chunk.path, chunk.model(("clip_head",)), chunk.record, device)


def _of_model(path: Path, model: DualHeadHNeRV, record: RunRecord, device: torch.device) -> Index:
    model = model.eval().to(device, memory_format=torch.channels_last)
    return Index(path, predict_embeddings(model), record)


def _joined(path: Path, parts: Iterable[Index], frames: int) -> Index:
    """One index of those of a video's segments, `frames` in all, in order; the configuration is that of the first.

    No second copy of the embeddings is made. Raises UserError where the segments do not have so many frames.
    """
    scenes, record, whole = [], None, None
    at = 0
    for part in parts:
        count, *shape = part.embeddings.shape
        whole, record = (torch.empty(frames, *shape), part.record) if whole is None else (whole, record)
        if at + count > frames or whole.shape[1:] != part.embeddings.shape[1:]:
            raise UserError(f"the segments of {path} do not match: encode or train it again")
        whole[at : at + count] = part.embeddings
        at += count
        scenes.append(part.scene)
    if at != frames:
        raise UserError(f"the segments of {path} have {at} frames, not {frames}: encode or train it again")
    if len(scenes) > 1:
        record = dataclasses.replace(record, scene=joined_scene(scenes))
    return Index(path, whole, record)


def _check_head(path: Path, record: RunRecord) -> None:
    if not record.targets:
        raise UserError(f"{path} has no CLIP head and cannot be searched: train a run with CLIP targets")


def _read(place: Path, path: Path, digest: str, check: bool = True) -> Index | None:
    """None where there is no index, one of another file or version, or none that is sound."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(place, "pt") as file:
            facts, embeddings = file.metadata() or {}, file.get_tensor("embeddings")
        if (facts["version"], facts["source"]) != (str(INDEX_VERSION), digest):
            return None
        if check and facts["checksum"] != _checksum(embeddings, facts["record"]):
            raise ValueError("wrong checksum")
        return Index(path, embeddings, RunRecord.from_dict(json.loads(facts["record"]), place))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        _log.warning("the index %s is damaged (%s); recomputing it", place, error)
        return None


def _write(places: tuple[Path, Path], index: Index, digest: str) -> None:
    """To the first place that takes it, whole or not at all; where none does, that is a warning."""
    from safetensors.torch import save

    text = json.dumps(index.record.to_dict())
    facts = {"version": str(INDEX_VERSION), "source": digest, "record": text}
    facts["checksum"] = _checksum(index.embeddings, text)
    data = save({"embeddings": index.embeddings.contiguous()}, facts)
    for place in places:
        try:
            with replacing(place) as file:
                file.write(data)
            return
        except OSError as error:
            cause = error
    _log.warning(
        "the index is not saved, %s cannot be written (%s): set HNERV_CACHE to another folder", places[-1], cause
    )


def _checksum(embeddings: Tensor, text: str) -> str:
    whole = hashlib.sha256(embeddings.contiguous().numpy().data)
    whole.update(f"{tuple(embeddings.shape)}{text}".encode())
    return whole.hexdigest()
