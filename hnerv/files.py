"""Small files that others read while they are written."""

from __future__ import annotations

import json
import os
from pathlib import Path

from hnerv.errors import UserError


def write_json(path: Path, data: object) -> None:
    """Indented JSON, through a temporary file, so that a reader never sees half of it. Inverse of `read_json`."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: Path):
    """Raises UserError when the file cannot be read as JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it, or move its folder aside") from error
