"""The table of a fleet as one HTML page, whole in itself: no request leaves it, every text in it is escaped."""

from __future__ import annotations

import time
from importlib import resources
from pathlib import Path

from hnerv import __version__
from hnerv.fleet.table import Row, summary
from hnerv.report.page import save_page

HEADS = (
    "video", "state", "PSNR, dB", "unseen, dB", "rate, bpp (estimate)", "similarity", "seconds", "retries",
    "steps repeated", "cause",
)  # fmt: skip
MOST = 5000
"""Rows of a page; a browser takes its time over more."""


def write_page(path: Path, title: str, rows: list[Row]) -> int:
    """Writes the page, whole or not at all; returns its bytes. Raises UserError."""
    return save_page(path, render(title, rows))


def render(title: str, rows: list[Row]) -> str:
    """The page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    engine = Environment(loader=PackageLoader("hnerv.fleet", "."), autoescape=True, undefined=StrictUndefined)
    return engine.get_template("page.html").render(
        title=title,
        style=resources.files("hnerv.report").joinpath("page.css").read_text(encoding="utf-8"),
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M"),
        summary=summary(rows),
        targets=sorted({row.targets for row in rows if row.targets}),
        heads=HEADS,
        rows=[{"name": row.name, "cells": _cells(row), "cause": row.cause} for row in rows[:MOST]],
        more=max(len(rows) - MOST, 0),
    )


def _cells(row: Row) -> list[str]:
    numbers = zip(row[2:7], ("{:.2f}", "{:.2f}", "{:.4f}", "{:.3f}", "{:.0f}"), strict=True)
    shown = ["–" if value is None else form.format(value) for value, form in numbers]
    return [row.state, *shown, str(row.retries), str(row.repeated_steps)]
