"""Text queries that a run is measured with: a list of the package, or one of the user's."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from hnerv.errors import UserError


def default_queries() -> list[str]:
    """Short captions of what may be in any video, queries.txt of this package."""
    return _lines(resources.files("hnerv.evaluation.semantics").joinpath("queries.txt").read_text(encoding="utf-8"))


def read_queries(path: Path) -> list[str]:
    """One query a line, blank lines left out. Raises UserError where there is none, or no text in UTF-8."""
    try:
        found = _lines(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        cause = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(
            f"--queries {path} cannot be read ({cause}): pass a text file with one query per line"
        ) from error
    if not found:
        raise UserError(f"--queries {path} contains no queries: write one per line")
    return found


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
