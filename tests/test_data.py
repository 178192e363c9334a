"""benchmarks/data: every table has a header with its origin, and rows that parse."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "data"
FILES = sorted(FOLDER.glob("*.csv"))
MIXED = {"commit", "value"}
"""Columns with numbers and words: some hashes are numbers. Any other column holds words or finite numbers."""


def is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def test_there_are_tables():
    names = {path.stem for path in FILES}
    assert names >= {"ladder", "codec", "video_codecs", "optimizers", "published", "retrieval"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_table_has_its_origin_and_finite_numbers(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert lines[: len(comments)] == comments, "comments only at the top"
    header = dict(line.removeprefix("# ").split(": ", 1) for line in comments)
    names, *rows = csv.reader(lines[len(comments) :])
    assert header["title"] and header["commit"] and (header.get("command") or header.get("source"))
    assert "commit" in names or not header["commit"].startswith("column commit")
    assert len(set(names)) == len(names) and rows
    assert all(cell == cell.strip() and "#" not in cell for row in rows for cell in row)
    for name, column in zip(names, zip(*rows, strict=True), strict=True):
        filled = [cell for cell in column if cell]
        assert filled, f"{name} is empty"
        assert name in MIXED or len({is_number(cell) for cell in filled}) == 1, f"{name}: {filled}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_table_is_referred_to(path):
    pages = [FOLDER.parent / "LOG.md", FOLDER.parents[1] / "docs" / "results.md"]
    assert any(f"data/{path.name})" in page.read_text(encoding="utf-8") for page in pages)
