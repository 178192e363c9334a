"""Which models a folder of many videos holds."""

from __future__ import annotations

import re
from pathlib import Path

from hnerv.errors import UserError
from hnerv.runs import PLAN, chunks_of
from hnerv.runs.opening import checkpoint_of

ASIDE = re.compile(r".+\.old\d+")
"""Folders of runs that --overwrite moved aside."""


def is_run(folder: Path) -> bool:
    """Whether it is the folder of a run, finished or not."""
    return (folder / "checkpoints").is_dir() or any((folder / name).is_file() for name in ("config.json", PLAN))


def is_collection(path: Path) -> bool:
    """Whether a search of `path` is one of all models under it: a folder that is no run itself."""
    return path.is_dir() and not is_run(path)


def members_of(folder: Path) -> list[Path]:
    """The .hnerv files and run folders under a folder, at any depth, sorted; a run counts from its first checkpoint on.

    A run in segments is one, and counts once each of them has a checkpoint.

    A file stands for what it was made of: X.hnerv for all that is in X/, beside it or around it, and any file for the
    run in whose folder it lies. Left out are hidden folders, links to folders and runs that --overwrite moved aside.
    """
    return sorted(_under(folder))


def files_of(path: Path) -> list[Path]:
    """Of a member: the file itself, or the checkpoint of every segment of a run. Raises UserError."""
    return [path] if not path.is_dir() else [checkpoint_of(chunk.path) for chunk in chunks_of(path)]


def _has_models(run: Path) -> bool:
    """One whose plan is damaged is looked at too, and said to be so there."""
    try:
        return all(path.is_file() for path in files_of(run))
    except UserError:
        return True


def _under(folder: Path) -> list[Path]:
    inside = _listed(folder)
    files = [path for path in inside if path.suffix == ".hnerv" and path.is_file() and not path.name.startswith(".")]
    names = {path.stem for path in files}
    if files and (is_run(folder) or folder.resolve().name in names):
        return files
    if is_run(folder):
        return [folder] if _has_models(folder) else []
    found = list(files)
    for path in inside:
        apart = path.name.startswith(".") or path.name in names or path.is_symlink() or ASIDE.fullmatch(path.name)
        if not apart and path.is_dir():
            found.extend(_under(path))
    return found


def _listed(folder: Path) -> list[Path]:
    """What is in a folder; nothing where it may not be read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []
