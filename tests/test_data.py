"""benchmarks/data: every table has a header with its origin, and rows that parse."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "data"
FILES = sorted(FOLDER.glob("*.csv"))
TEXT = {
    "axis", "budget", "change", "clip_loss", "codec", "commit", "file", "frames", "lists_probed", "matrices", "method",
    "optimizer", "query", "read_from", "resolution", "scale", "setting", "source", "split", "stages", "targets",
    "value", "variant",
}  # fmt: skip
"""Columns of words; all others hold numbers. `value` of growth.csv is a number or a resolution."""


def header_and_rows(path: Path) -> tuple[dict[str, str], list[list[str]]]:
    """({key: text} of the comment lines at the top, rows with that of the names first)."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert lines[: len(comments)] == comments, "comments only at the top"
    header = dict(line.removeprefix("# ").split(": ", 1) for line in comments)
    return header, list(csv.reader(lines[len(comments) :]))


def test_there_are_tables():
    names = {path.stem for path in FILES}
    assert names >= {"ladder", "codec", "video_codecs", "optimizers", "published", "retrieval"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_table_has_its_origin_and_finite_numbers(path):
    header, (names, *rows) = header_and_rows(path)
    assert header["title"] and header["commit"] and (header.get("command") or header.get("source"))
    assert "commit" in names or not header["commit"].startswith("column commit")
    assert len(set(names)) == len(names) and rows
    for row in rows:
        assert len(row) == len(names) and not any("#" in cell or cell != cell.strip() for cell in row), row
        for name, cell in zip(names, row, strict=True):
            assert name in TEXT or cell == "" or math.isfinite(float(cell)), f"{name}: {cell}"
    for name, column in zip(names, zip(*rows, strict=True), strict=True):
        assert any(column), f"{name} is empty"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_table_is_referred_to(path):
    pages = [FOLDER.parent / "LOG.md", FOLDER.parents[1] / "docs" / "results.md"]
    assert any(f"data/{path.name})" in page.read_text(encoding="utf-8") for page in pages)
