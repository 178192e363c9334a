"""Input of a fleet: a folder of videos, or a JSON Lines manifest with one video per line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hnerv.config import Config
from hnerv.data.video import CLIPS
from hnerv.data.video.images import SUFFIXES
from hnerv.errors import UserError
from hnerv.presets import Choice, preset
from hnerv.runs import ChunkOptions
from hnerv.runs.names import check_name, check_unique, default_name
from hnerv.storage import is_remote, local_path

MANIFEST = "manifest.jsonl"
VIDEO_SUFFIXES = {".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi", ".mpg", ".mpeg", ".vob", ".ts", ".dv", ".y4m"}
VIDEO_SUFFIXES |= {".yuv", ".ogv", ".wmv", ".flv"}
"""Files of a folder with these suffixes are videos."""
_SEGMENT_KEYS = {f"segment_{name}": name for name in ChunkOptions._fields}


class FleetVideo(NamedTuple):
    """One video: folder of its run relative to the fleet folder, path or address, settings, division into segments."""

    name: str
    data: str
    choice: Choice
    chunk_options: ChunkOptions


class FleetDefaults(NamedTuple):
    """Command line of every video: a preset ('': none), settings, division into segments."""

    preset: str = ""
    settings: dict[str, object] = {}  # noqa: RUF012 (never changed)
    chunk_options: ChunkOptions = ChunkOptions()


def read_videos(source: str, defaults: FleetDefaults) -> list[FleetVideo]:
    """The videos of a folder, or of a manifest at a path or an address, in order.

    Paths become absolute. In a manifest they are relative to its folder. Raises UserError with the number of the line.
    """
    if os.path.isdir(source):
        folder, rows, hint = source, _rows_of_folder(Path(source)), "rename one, or write a manifest"
    else:
        folder, rows, hint = os.path.split(source)[0], _rows_of_manifest(source), 'give each its own "name"'
    videos, seen = [], {}
    for where, row in rows:
        try:
            videos.append(_video(row, defaults, folder))
            check_unique(videos[-1].name, where, seen, hint)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    if not videos:
        raise UserError(f"{source} has no videos: pass a folder with .mp4, .mkv, … files, or a manifest")
    return videos


def manifest_text(videos: list[FleetVideo]) -> bytes:
    """A manifest with absolute paths and all settings. Inverse of `read_videos` without defaults."""
    lines = []
    for video in videos:
        row = video.choice.config.flat() | {"name": video.name, "data": video.data, "preset": video.choice.preset}
        row |= {key: getattr(video.chunk_options, name) for key, name in _SEGMENT_KEYS.items()}
        lines.append(json.dumps(row).encode() + b"\n")
    return b"".join(lines)


def rows_of(text: bytes | None) -> dict[str, dict]:
    """{name: row} of a text that `manifest_text` wrote; empty without one, or for a damaged one."""
    try:
        rows = map(json.loads, (text or b"").splitlines())
        return {row["name"]: row for row in rows if isinstance(row["name"], str)}
    except (ValueError, KeyError, TypeError):
        return {}


def _rows_of_folder(folder: Path) -> Iterator[tuple[str, dict]]:
    """Video files, and folders with images. Hidden ones are left out."""
    for path in sorted(folder.iterdir()):
        images = path.is_dir() and any(inner.suffix.lower() in SUFFIXES for inner in path.iterdir())
        if not path.name.startswith(".") and (images or path.suffix.lower() in VIDEO_SUFFIXES):
            yield str(path), {"data": path.name}


def _rows_of_manifest(source: str) -> Iterator[tuple[str, dict]]:
    """(position for error messages, content) of each line that is not empty."""
    path = local_path(source)
    if not path.is_file():
        raise UserError(f"{source} is neither a folder of videos nor a JSON Lines manifest: check the path")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not a text file: pass a JSON Lines manifest, or a folder of videos") from error
    hint = 'write one object per line, as in {"data": "a.mp4"}, with flags as further keys'
    for number, line in enumerate(lines, start=1):
        where = f"{source}, line {number}"
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not valid JSON ({error}): {hint}") from error
        if line.strip():
            found = {key.removeprefix("--").replace("-", "_"): row[key] for key in row} if type(row) is dict else {}
            if found and len(found) < len(row):
                raise UserError(f"{where}: a key appears twice, in two spellings: remove one")
            if not isinstance(found.get("data"), str) or not found["data"]:
                raise UserError(f'{where}: not an object with a string "data": {hint}')
            yield where, found


def _video(row: dict, defaults: FleetDefaults, folder: str) -> FleetVideo:
    given = row.pop("data")
    data = given if given in CLIPS else _resolved(given, folder)
    if not data.isprintable():
        raise UserError(f'"data" {given[:60]!r} has unprintable characters: rename it, or write another path')
    check_name(name := row.pop("name", None) or default_name(data))
    chunks = {part: row.pop(key) for key, part in _SEGMENT_KEYS.items() if key in row}
    for part, value in chunks.items():
        if type(value) is not (kind := type(getattr(defaults.chunk_options, part))):
            raise UserError(f"segment_{part} {str(value)[:60]!r} must be of type {kind.__name__}")
    chunk_options = defaults.chunk_options._replace(**chunks).checked()
    return FleetVideo(name, data, _choice(row, data, defaults, folder), chunk_options)


def _choice(row: dict, data: str, defaults: FleetDefaults, folder: str) -> Choice:
    """Settings from the preset, overridden by the command line, overridden by the row."""
    name = row.pop("preset", defaults.preset)
    if not isinstance(name, str):
        raise UserError(f"preset {str(name)[:60]!r} must be a string")
    base = Config().replaced(preset(name)) if name else Config()
    config = base.replaced({**defaults.settings, "data": data})
    if unknown := set(row) - set(config.flat()):
        raise UserError(f"unknown keys {', '.join(sorted(unknown))[:200]}: use the flags of train_patch_dual.py")
    sections = config.to_dict()
    changed = {part: {key: row.get(key, value) for key, value in flags.items()} for part, flags in sections.items()}
    config = Config.from_dict(changed)
    # Nodes have other working directories than the driver. --clip-weights may also be a tag, which has no dot.
    given = {"clip_targets": config.clip.clip_targets, "clip_weights": config.clip.clip_weights}
    paths = {key: _resolved(file, folder if key in row else os.getcwd()) for key, file in given.items() if file}
    files = {
        key: path for key, path in paths.items() if key == "clip_targets" or "." in given[key] or os.path.isdir(path)
    }
    return Choice(name, base, config.replaced(files))


def _resolved(name: str, folder: str) -> str:
    """A path or an address, relative to a folder at a path or an address, as an absolute one."""
    try:
        name = str(Path(name).expanduser()) if name.startswith("~") else name
    except RuntimeError as error:
        raise UserError(f"the home folder in {name[:60]!r} does not exist ({error}): write the full path") from error
    if is_remote(name) or os.path.isabs(name):
        return name
    return f"{folder}/{name}" if is_remote(folder) else os.path.abspath(os.path.join(folder, name))
