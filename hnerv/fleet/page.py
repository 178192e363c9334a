"""The table of a fleet as one self-contained HTML page: it makes no requests, and all text is escaped."""

from __future__ import annotations

import time
from importlib import resources
from pathlib import Path

from hnerv import __version__
from hnerv.fleet.table import Row, summary
from hnerv.report.page import save_page

HEADINGS = ("video", "state", "PSNR, dB", "unseen, dB", "rate, bpp (estimate)", "similarity", "seconds")
HEADINGS += ("retries", "steps repeated", "cause")
MAX_ROWS = 5000
"""Browsers are slow with larger tables."""


def write_page(path: Path, title: str, rows: list[Row]) -> int:
    """Write the page atomically; returns its size in bytes. Raises UserError."""
    return save_page(path, render(title, rows))


def render(title: str, rows: list[Row]) -> str:
    """HTML of the page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("hnerv.fleet", "."), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html").render(
        title=title,
        style=resources.files("hnerv.report").joinpath("page.css").read_text(encoding="utf-8"),
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M"),
        summary=summary(rows),
        targets=sorted({row.targets for row in rows if row.targets}),
        headings=HEADINGS,
        rows=[{"name": row.name, "cells": _cells(row), "cause": row.cause} for row in rows[:MAX_ROWS]],
        more=max(len(rows) - MAX_ROWS, 0),
    )


def _cells(row: Row) -> list[str]:
    numbers = zip(row[2:7], ("{:.2f}", "{:.2f}", "{:.4f}", "{:.3f}", "{:.0f}"), strict=True)
    shown = ["–" if value is None else form.format(value) for value, form in numbers]
    return [row.state, *shown, str(row.retries), str(row.repeated_steps)]
