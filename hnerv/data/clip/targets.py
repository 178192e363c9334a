"""Targets of the CLIP head: one embedding per patch, computed once and cached, or read from a file.

Legend: N frames, P patches in a frame (row-major), D embedding dimensions, H W frame pixels.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hnerv.data.clip.teacher import Teacher, build_teacher
from hnerv.data.clip.weights import Weights, identify, locate_weights, warn_of_doubt
from hnerv.errors import UserError
from hnerv.files import cache_folder, replacing, sha256_of
from hnerv.geometry import PatchGrid
from hnerv.storage import local_path

PREPROCESSING_VERSION = 1  # raise it when `teacher.preprocess` or the random encoder changes
FLOATS, MOST_DIMENSIONS = ("F64", "F32", "F16", "BF16"), 1 << 16
"""Types (safetensors names) and the largest D that a file of targets may have."""
_log = logging.getLogger("hnerv")


class Targets(NamedTuple):
    """Embeddings (N, P, D) float32 of unit norm on the CPU, and where they come from. Only kind 'clip' is CLIP."""

    embeddings: Tensor
    source: str  # one line for people
    kind: str  # 'clip', 'random' or 'file'
    model: str  # resolved OpenCLIP model name, '' for files
    weights: str  # tag, 'NAME sha256:HEX' or 'random:SEED'


def clip_targets(
    frames: Tensor,
    grid: PatchGrid,
    *,
    weights: str,
    model: str,
    targets_file: str = "",
    digest: str,
    device: str | torch.device = "cpu",
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> Targets | None:
    """Frames (N, 3, H, W) uint8 -> the embedding of each patch, from exactly its pixels; None for weights `none`.

    digest: hash of the frames, for the key of the cache. targets_file: embeddings of any encoder, used instead of
    `weights`. progress: draw a bar on a terminal. Raises UserError, see `load_teacher` and `read_targets_file`.
    """
    if weights == "none":
        if targets_file:
            raise UserError(f"--clip-weights none and --clip-targets {targets_file} conflict: remove one of them")
        return None
    if targets_file:
        return read_targets_file(targets_file, len(frames), grid)
    assert frames.dtype == torch.uint8 and frames.shape[1:] == (3, grid.height, grid.width), frames.shape
    spec = identify(weights, model, seed)
    # A cached tag needs neither its weights nor the hub. Whether `auto` becomes the random encoder is known only after
    # `locate_weights`, so random targets are looked up there.
    if spec.kind == "clip" and (cached := _read_cache(digest, grid, len(frames), spec)):
        warn_of_doubt(spec)
        return cached
    spec = locate_weights(spec, seed, fall_back=weights == "auto")
    if spec.kind == "random" and (cached := _read_cache(digest, grid, len(frames), spec)):
        return cached
    teacher = build_teacher(spec, device)
    embeddings = torch.cat(list(_encode_patches(frames, grid, teacher, batch_size, progress)))
    made = Targets(embeddings.view(len(frames), grid.patches, -1), spec.source, spec.kind, spec.model, spec.weights)
    _write_cache(cache_path(digest, grid, spec), made)
    return made


def _encode_patches(
    frames: Tensor, grid: PatchGrid, teacher: Teacher, batch_size: int, progress: bool
) -> Iterator[Tensor]:
    """Embeddings (batch, D) on the CPU, patch by patch in frame order; only a few frames are cut at a time."""
    from tqdm import tqdm

    label = "CLIP targets" if teacher.kind == "clip" else "random targets, not CLIP"
    step = max(1, batch_size // grid.patches)
    with tqdm(total=len(frames) * grid.patches, desc=label, unit="patch", disable=None if progress else True) as bar:
        for start in range(0, len(frames), step):
            for batch in grid.split(frames[start : start + step]).flatten(0, 1).split(batch_size):
                yield teacher.encode_patches(batch).cpu()
                bar.update(len(batch))


def cache_path(digest: str, grid: PatchGrid, spec: Weights) -> Path:
    """The file that keeps the targets of one video content, geometry and encoder."""
    geometry = (grid.height, grid.width, grid.rows, grid.cols)
    key = [digest, geometry, spec.model, spec.weights, spec.preprocess, PREPROCESSING_VERSION]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return cache_folder() / "targets" / f"{name}.safetensors"


def _read_cache(digest: str, grid: PatchGrid, frames: int, spec: Weights) -> Targets | None:
    """Cached targets; None where there are none, or with a warning where the file is damaged."""
    from safetensors import SafetensorError, safe_open

    path = cache_path(digest, grid, spec)
    try:
        with safe_open(path, "pt") as file:
            embeddings, checksum = file.get_tensor("embeddings"), (file.metadata() or {}).get("sha256")
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError):
        embeddings, checksum = torch.empty(0), ""
    if embeddings.shape[:2] != (frames, grid.patches) or _checksum(embeddings) != checksum:
        _log.warning("the cached targets %s are damaged; recomputing them", path)
        return None
    return Targets(embeddings, spec.source, spec.kind, spec.model, spec.weights)


def _write_cache(path: Path, targets: Targets) -> None:
    """Atomically; a folder that cannot be written costs a warning."""
    from safetensors.torch import save

    metadata = {"source": targets.source, "kind": targets.kind, "sha256": _checksum(targets.embeddings)}
    try:
        with replacing(path) as file:
            file.write(save({"embeddings": targets.embeddings.contiguous()}, metadata))
    except OSError as error:
        _log.warning("the targets are not cached; cannot write to %s (%s): set HNERV_CACHE", path.parent, error)


def _checksum(embeddings: Tensor) -> str:
    return hashlib.sha256(embeddings.contiguous().numpy().tobytes()).hexdigest()


# Files of targets. --clip-targets FILE@FIRST:STOP selects entries of the first axis: the segments of a long video share
# one file.


def rows_of_file(name: str, first: int, count: int) -> str:
    """FILE@FIRST:STOP for `count` entries, `first` counted from the first one that `name` selects."""
    path, rows = _path_and_rows(name)
    start = (rows.start or 0) + first
    return f"{path}@{start}:{start + count}"


def _path_and_rows(name: str) -> tuple[str, slice]:
    """FILE@FIRST:STOP -> FILE, a path or an address, and its rows."""
    match = re.fullmatch(r"(.+)@(\d{1,12}):(\d{1,12})", name, flags=re.DOTALL | re.ASCII)
    if not match or Path(name).exists():
        return name, slice(None)
    return match[1], slice(int(match[2]), int(match[3]))


def check_rows(name: str, frames: int) -> None:
    """Raises UserError where `name` ('' for none) has another number of entries than `frames`."""
    from safetensors import SafetensorError, safe_open

    if not name:
        return
    path, rows = _path_and_rows(name)
    count = frames
    # `read_targets_file` refuses a file that cannot be read, and gives the reason.
    with contextlib.suppress(SafetensorError, OSError, IndexError), safe_open(local_path(path), "pt") as file:
        count = len(range(file.get_slice("embeddings").get_shape()[0])[rows])
    if count != frames:
        raise UserError(
            f"--clip-targets {name} is for {count} frames, but this run has {frames}: select the entries of these "
            f"frames, as in {path}@60:{60 + frames}"
        )


def read_targets_file(name: str | Path, frames: int, grid: PatchGrid) -> Targets:
    """Targets from a .safetensors file with `embeddings` (N, P, D) of any float type, normalised here.

    An entry `encoder` in its metadata is quoted in `source`. Raises UserError for a file that is missing, unreadable,
    without the tensor, of another N or P, or with a vector that is zero or not finite.
    """
    from safetensors import SafetensorError, safe_open

    flag, (path_or_address, rows) = f"--clip-targets {name}", _path_and_rows(str(name))
    path = local_path(path_or_address)
    try:
        with safe_open(path, "pt") as file:
            encoder = " ".join((file.metadata() or {}).get("encoder", "").split())
            if "embeddings" not in (keys := list(file.keys())):
                names = ", ".join(keys) or "none"
                raise UserError(
                    f"{flag} has no tensor 'embeddings' (found: {names}): store the embeddings under that name"
                )
            entry = file.get_slice("embeddings")
            count, *inner = entry.get_shape() or [0]
            chosen = range(count)[rows]
            _check_geometry(flag, (len(chosen), *inner), entry.get_dtype(), frames, grid)
            embeddings = entry[chosen.start : chosen.stop]
    except FileNotFoundError as error:
        raise UserError(f"{flag}: no such file: pass a .safetensors file of embeddings") from error
    except (SafetensorError, OSError, MemoryError, RuntimeError) as error:
        raise UserError(f"{flag} is not a safetensors file ({error}): write it with safetensors") from error
    source = f"file {path.name}" + (f" ({encoder[:160]})" if encoder else "")
    return Targets(_unit(flag, embeddings), source, "file", "", f"{path.name} {_sha256(path)}")


def _check_geometry(flag: str, shape: tuple[int, ...], dtype: str, frames: int, grid: PatchGrid) -> None:
    """From the header alone, before memory is allocated for what it declares."""
    if len(shape) != 3 or not 0 < shape[2] <= MOST_DIMENSIONS or dtype not in FLOATS:
        raise UserError(
            f"{flag} has 'embeddings' of shape {shape} and type {dtype}: store floats ({', '.join(FLOATS)}) of shape "
            f"(frames, patches, D), with D at most {MOST_DIMENSIONS}"
        )
    if shape[:2] != (frames, grid.patches):
        raise UserError(
            f"{flag} is for {shape[0]} frames of {shape[1]} patches, but the video has {frames} frames of "
            f"{grid.patches} patches ({grid.rows}x{grid.cols}): compute it for this video, or change --grid or the "
            "frame range"
        )


def _unit(flag: str, embeddings: Tensor) -> Tensor:
    """Rows scaled to unit norm, float32. Raises UserError for the first row where that is impossible."""
    exact = embeddings.double()
    norm = exact.norm(dim=-1, keepdim=True)
    bad = ~(norm.isfinite() & (norm > 0)).squeeze(-1)
    if bad.any():
        frame, patch = bad.nonzero()[0].tolist()
        raise UserError(
            f"{flag}: {int(bad.sum())} of {bad.numel()} embeddings are zero or not finite, the first at frame {frame}, "
            f"patch {patch}: recompute the file"
        )
    return (exact / norm).float()


def is_same_file(theirs: str, ours: str, label: str) -> bool:
    """Whether `ours` selects the same entries as --clip-targets `theirs`, from a file with the hash in `label`."""
    (_, before), (path, rows) = _path_and_rows(theirs), _path_and_rows(ours)
    if rows != before:
        return False
    file = local_path(path)
    return file.is_file() and label.endswith(_sha256(file))


def _sha256(path: Path) -> str:
    # A long video has thousands of segments that share one file of gigabytes: it is read once, not by each of them.
    state = path.stat()
    return _sha256_of_version(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _sha256_of_version(path: Path, size: int, changed: int) -> str:
    return f"sha256:{sha256_of(path)}"
