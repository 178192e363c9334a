"""benchmarks/published.py: its tables are those of the results, and every published figure has a source."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("bjontegaard")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def published(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("published")


def test_the_tables_of_the_results_are_printed(published, monkeypatch, capsys):
    """Of some series and of every one that is ours."""
    monkeypatch.setattr("sys.argv", ["published.py"])
    published.main()
    printed = capsys.readouterr().out.splitlines()
    _, section = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").split("\n## Ours next to published\n")
    rows = [line for line in section.splitlines() if line.startswith("|") and "---" not in line]
    assert {*rows} <= {*printed} and {line for line in printed if line.startswith("| ours")} <= {*rows}
    assert all(any(line.startswith(f"| {name}") for line in rows) for name in ("C3", "HiNeRV", "HNeRV", "HM", "VTM"))


@pytest.mark.parametrize("name", ["published_uvg", "published_bd", "published"])
def test_a_published_figure_has_its_source(published, name):
    assert all(row["source"] and row["read_from"] for row in published.table(name))


def test_published_points_on_uvg_state_what_was_measured(published):
    rows = published.table("published_uvg")
    assert {(row["colour"], row["psnr_of"]) for row in rows} == {
        ("RGB", "frames"),
        ("RGB", "clip"),
        ("YUV 6:1:1", "clip"),
    }
    for row in rows:
        assert not row["bpp"] or 0.001 < float(row["bpp"]) < 1
        assert 22 < float(row["psnr_db"]) < 46
    curves = published.curves_of(rows, "all")
    assert all(np.all(np.diff(curve, axis=0) > 0) for curve in curves.values()), "PSNR rises with the rate"


def test_the_mean_over_clips_is_that_of_the_clips(published):
    """HiNeRV's file has its own average."""
    rows = [row for row in published.table("published_uvg") if row["method"] == "HiNeRV" and row["bpp"]]
    for size in ("S", "M", "L", "XL", "XXL"):
        points = [row for row in rows if row["setting"] == size]
        (mean,) = (row for row in points if row["clip"] == "all")
        clips = [float(row["psnr_db"]) for row in points if row["clip"] != "all"]
        assert len(clips) == 7 and float(mean["psnr_db"]) == pytest.approx(np.mean(clips), abs=1e-3)


def test_psnr_at_a_rate(published):
    curve = [(0.01, 30.0), (0.02, 33.0), (0.08, 37.0)]
    rates, values = zip(*curve, strict=True)
    for rate in (0.01, 0.013, 0.02, 0.05, 0.08):
        assert published.psnr_at(curve, rate) == pytest.approx(np.interp(np.log(rate), np.log(rates), values))
    assert published.psnr_at(curve, 0.009) is None and published.psnr_at(curve, 0.09) is None
