"""Input of a fleet: a folder of videos, or a JSON Lines manifest with one video per line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from hnerv.config import Config
from hnerv.data.video import CLIPS, is_remote
from hnerv.data.video.images import SUFFIXES
from hnerv.errors import UserError
from hnerv.files import replacing
from hnerv.presets import Choice, preset
from hnerv.runs import ChunkOptions

VIDEO_SUFFIXES = {".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi", ".mpg", ".mpeg", ".vob", ".ts", ".dv", ".y4m"}
VIDEO_SUFFIXES |= {".yuv", ".ogv", ".wmv", ".flv"}
"""Files of a folder with these suffixes are videos."""
RESERVED = {"fleet.csv", "fleet.jsonl", "report.html", "manifest.jsonl", "running.json"}
RESERVED |= {"segments", "checkpoints", "tensorboard", "eval"}
"""Other files and folders in a fleet folder or run folder; no part of a video's name may be one of them."""
_PART = re.compile(r"[^\W_][\w.,=+@ -]*", re.ASCII)
_MOVED_ASIDE = re.compile(r"\.(old\d+)$", re.ASCII)
"""End of the name of a run that was moved aside; searches ignore such runs."""
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


def read_videos(source: Path, defaults: FleetDefaults) -> list[FleetVideo]:
    """The videos of a folder or a manifest, in order. Raises UserError with the number of the line."""
    if source.is_dir():
        rows: Iterator[tuple[str, dict]] = ((str(path), {"data": str(path)}) for path in _videos_in_folder(source))
    elif source.is_file():
        rows = _read_lines(source)
    else:
        raise UserError(f"{source} is neither a folder of videos nor a JSON Lines manifest: check the path")
    videos, seen = [], {}
    for where, row in rows:
        video = _build_video(where, row, defaults, source)
        _check_unique(where, video.name, seen, source.is_dir())
        videos.append(video)
    if not videos:
        suffixes = ", ".join(sorted(VIDEO_SUFFIXES)[:4])
        raise UserError(f"{source} has no videos: pass a folder with {suffixes}, ... files, or a manifest")
    return videos


def write_manifest(path: Path, videos: list[FleetVideo]) -> None:
    """Write a manifest with absolute paths and all settings. Inverse of `read_videos` without defaults."""
    with replacing(path) as file:
        for video in videos:
            data = video.data if video.data in CLIPS or is_remote(video.data) else os.path.abspath(video.data)
            row = {"name": video.name, "data": data, "preset": video.choice.preset}
            row |= {key: value for key, value in video.choice.config.flat().items() if key != "data"}
            row |= {key: getattr(video.chunk_options, name) for key, name in _SEGMENT_KEYS.items()}
            file.write(json.dumps(row).encode() + b"\n")


def default_name(data: str) -> str:
    """The stem of a path or an address as a name; characters that are not allowed become hyphens."""
    last = PurePosixPath(data.rstrip("/").replace(os.sep, "/")).name
    stem = last.rsplit(".", 1)[0] if "." in last.lstrip(".") else last
    name = re.sub(r"^[^A-Za-z0-9]+", "", re.sub(r"[^A-Za-z0-9_.,=+@ -]", "-", stem))[:200] or "video"
    return _MOVED_ASIDE.sub(r"-\1", name)


def check_name(name: object) -> None:
    """Raise UserError for a name that is not a safe relative path: parts of letters, digits and `_.,=+@ -`."""
    if not isinstance(name, str) or not name:
        raise UserError(f"the name {str(name)[:60]!r} must be a non-empty string")
    for part in name.split("/"):
        if not _PART.fullmatch(part) or part[-1] in ". " or len(part) > 200:
            raise UserError(
                f"the name {name[:60]!r} is not valid: use letters, digits, spaces and _.,=+@- in parts of at most 200 "
                "characters, separated by /, each starting with a letter or digit"
            )
        if _MOVED_ASIDE.search(part):
            raise UserError(f"the name {name[:60]!r} ends like that of a run moved aside: choose another")
        if part.casefold() in RESERVED:
            raise UserError(f"the name {name[:60]!r} contains the reserved name {part!r}: choose another")


def _videos_in_folder(folder: Path) -> list[Path]:
    """Video files, and folders with images. Hidden ones are left out."""
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return [path for path in found if path.suffix.lower() in VIDEO_SUFFIXES or _has_images(path)]


def _has_images(path: Path) -> bool:
    return path.is_dir() and any(inner.suffix.lower() in SUFFIXES for inner in path.iterdir())


def _read_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """(position for error messages, content) of each line that is not empty."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}, line {number}", _parse_row(f"{path}, line {number}", line)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file: pass a JSON Lines manifest, or a folder of videos") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): pass a JSON Lines manifest") from error


def _parse_row(where: str, line: str) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f'{where}: not valid JSON ({error}): write one object per line, as in {{"data": "a.mp4"}}'
        ) from error
    message = f'{where}: not an object with a string "data": write {{"data": "a.mp4"}}, with flags as further keys'
    if not isinstance(row, dict):
        raise UserError(message)
    found = {key.removeprefix("--").replace("-", "_"): value for key, value in row.items()}
    if len(found) < len(row):
        raise UserError(f"{where}: a key appears twice, in two spellings: remove one")
    if not isinstance(found.get("data"), str) or not found["data"]:
        raise UserError(message)
    if not found["data"].isprintable():
        raise UserError(
            f'{where}: "data" {found["data"][:60]!r} has unprintable characters: write a path or an address'
        )
    return found


def _build_video(where: str, row: dict, defaults: FleetDefaults, source: Path) -> FleetVideo:
    try:
        data = _resolved(row.pop("data"), source)
        name = row.pop("name", None) or default_name(data)
        check_name(name)
        chunk_options = _chunk_options(row, defaults.chunk_options)
        return FleetVideo(name, data, _choice(row, data, defaults), chunk_options)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _resolved(data: str, source: Path) -> str:
    """A relative path in a manifest is relative to the folder of the manifest."""
    if data in CLIPS or is_remote(data) or source.is_dir():
        return data
    try:
        return str(source.parent / Path(data).expanduser())
    except RuntimeError as error:
        raise UserError(
            f'the home folder in "data" {data[:60]!r} does not exist ({error}): write the full path'
        ) from error


def _chunk_options(row: dict, defaults: ChunkOptions) -> ChunkOptions:
    given = {name: row.pop(key) for key, name in _SEGMENT_KEYS.items() if key in row}
    for name, value in given.items():
        if type(value) is not type(getattr(defaults, name)):
            raise UserError(
                f"segment_{name} {str(value)[:60]!r} must be of type {type(getattr(defaults, name)).__name__}"
            )
    return defaults._replace(**given).checked()


def _choice(row: dict, data: str, defaults: FleetDefaults) -> Choice:
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
    return Choice(name, base, Config.from_dict(changed))


def _check_unique(where: str, name: str, seen: dict[str, str], in_folder: bool) -> None:
    """Raise UserError if a run folder would be equal to or inside another one, ignoring case."""
    key = name.casefold()
    parents = ["/".join(key.split("/")[:depth]) for depth in range(1, key.count("/") + 2)]
    clash = next((seen[parent] for parent in parents if parent in seen), None) or seen.get(f"{key}/")
    if clash:
        hint = "rename one, or write a manifest" if in_folder else 'give each its own "name"'
        raise UserError(f"{where}: the name {name!r} is already used by {clash}: {hint}")
    seen[key] = where
    seen.update({f"{parent}/": where for parent in parents[:-1]})
