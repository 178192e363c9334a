"""Names of run folders: those that --exp-id gives, and those of the videos of a fleet."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from hnerv.config import differences
from hnerv.errors import UserError
from hnerv.presets import Choice

RESERVED = {"manifest.jsonl", "lease.json", "fleet.csv", "report.html", "status.json"}
RESERVED |= {"segments", "checkpoints", "tensorboard", "eval", "index.faiss", "index.json"}
"""Other files and folders in a fleet folder or run folder; no part of a video's name may be one of them."""
_PART = re.compile(r"[^\W_][\w.,=+@ -]*", re.ASCII)
MOVED_ASIDE = re.compile(r"\.(old\d+)$", re.ASCII)
"""End of the name of a run that `move_aside` renamed; searches ignore such runs."""


def folder_name(exp_id: str, choice: Choice, output: Path, more: Sequence[str] = ()) -> str:
    """--exp-id, `{params}` filled in, `more` words among them. Raises UserError where it leads out of `output`."""
    name = exp_id.replace("{params}", params_name(choice, more))
    parts = Path(name).parts
    if not name.strip() or Path(name).is_absolute() or ".." in parts or not parts:
        raise UserError(
            f"--exp-id {exp_id!r} does not name a folder inside {output}: avoid empty names, '..' and a leading /"
        )
    if "\0" in name or any(len(os.fsencode(part)) > 255 for part in parts):
        raise UserError(f"--exp-id {exp_id[:40]!r}... has a component longer than 255 bytes: choose a shorter name")
    return name


def params_name(choice: Choice, more: Sequence[str] = ()) -> str:
    """The preset, the settings that differ from it and `more` words, as a folder name of at most 200 characters."""
    changed = differences(choice.config, choice.base)
    words = [choice.preset] * bool(choice.preset)
    words += [f"{key}={value_text(ours)}" for key, (ours, _) in sorted(changed.items())] + [*more]
    name = re.sub(r"[^\w.=,+-]", "-", ",".join(words)) or "default"
    if len(name) > 200:
        name = name[:180] + "-" + hashlib.sha256(name.encode()).hexdigest()[:16]
    return name


def value_text(value: object) -> str:
    """A setting as --exp-id and messages write it."""
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def default_name(data: str) -> str:
    """The stem of a path or an address as a name; characters that are not allowed become hyphens."""
    last = PurePosixPath(data.rstrip("/").replace(os.sep, "/")).name
    stem = last.rsplit(".", 1)[0] if "." in last.lstrip(".") else last
    name = re.sub(r"^[^A-Za-z0-9]+", "", re.sub(r"[^A-Za-z0-9_.,=+@ -]", "-", stem))[:200] or "video"
    return MOVED_ASIDE.sub(r"-\1", name)


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
        if MOVED_ASIDE.search(part):
            raise UserError(f"the name {name[:60]!r} ends like that of a run moved aside: choose another")
        if part.casefold() in RESERVED or part.casefold().endswith(".hnerv"):
            raise UserError(f"the name {name[:60]!r} contains the reserved name {part!r}: choose another")


def check_unique(name: str, where: str, seen: dict[str, str], hint: str) -> None:
    """Raise UserError if the folder of `name` equals, contains or lies in one of `seen`, to which it is added.

    Case is ignored. `seen` maps names to where they stand.
    """
    key = name.casefold()
    parents = ["/".join(key.split("/")[:depth]) for depth in range(1, key.count("/") + 2)]
    clash = next((seen[parent] for parent in parents if parent in seen), None) or seen.get(f"{key}/")
    if clash:
        raise UserError(f"the name {name!r} is already used by {clash}: {hint}")
    seen[key] = where
    seen.update({f"{parent}/": where for parent in parents[:-1]})
