"""Discovery of the models in a folder of many videos."""

from __future__ import annotations

import re
from pathlib import Path

from hnerv.errors import UserError
from hnerv.runs import PLAN, chunks_of
from hnerv.runs.models import checkpoint_of

ASIDE = re.compile(r".+\.old\d+")
"""Names of run folders that --overwrite moved aside."""


def is_run(folder: Path) -> bool:
    """True for the folder of a run, finished or not."""
    return (folder / "checkpoints").is_dir() or any((folder / name).is_file() for name in ("config.json", PLAN))


def is_collection(path: Path) -> bool:
    """True for a folder that is not a run itself: a search covers all models under it."""
    return path.is_dir() and not is_run(path)


def members_of(folder: Path) -> list[Path]:
    """The .hnerv files and run folders under a folder, at any depth, sorted.

    A run is included once it has a checkpoint, a run in segments once every segment has one. A file replaces the run
    that it was encoded from: X.hnerv replaces all of X/ next to it or around it, and a file in a run folder replaces
    the run. Hidden folders, links to folders and runs that --overwrite moved aside are skipped.
    """
    return sorted(_models_under(folder))


def files_of(path: Path) -> list[Path]:
    """Files of a member: the file itself, or the checkpoint of every segment of a run. Raises UserError."""
    return [path] if not path.is_dir() else [checkpoint_of(chunk.path) for chunk in chunks_of(path)]


def _has_models(run: Path) -> bool:
    """True if all checkpoints exist. A damaged plan counts as a model too, so that opening it reports the damage."""
    try:
        return all(path.is_file() for path in files_of(run))
    except UserError:
        return True


def _models_under(folder: Path) -> list[Path]:
    inside = _folder_entries(folder)
    files = [path for path in inside if path.suffix == ".hnerv" and path.is_file() and not path.name.startswith(".")]
    names = {path.stem for path in files}
    if files and (is_run(folder) or folder.resolve().name in names):
        return files
    if is_run(folder):
        return [folder] if _has_models(folder) else []
    models = list(files)
    for path in inside:
        skipped = path.name.startswith(".") or path.name in names or path.is_symlink() or ASIDE.fullmatch(path.name)
        if not skipped and path.is_dir():
            models.extend(_models_under(path))
    return models


def _folder_entries(folder: Path) -> list[Path]:
    """Entries of a folder; none if it is not readable."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []
