"""Verdicts, and the same numbers in table, CSV, JSON and plot."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
from PIL import Image

from hnerv.codec.comparison.bd_rate import RatePoint
from hnerv.codec.comparison.table import bytes_at_our_psnr, text_table, to_dict, verdict, write_comparison
from hnerv.errors import UserError


def ours(size: int, psnr: float, name: str = "a.hnerv") -> RatePoint:
    return RatePoint("hnerv", name, size, psnr, 0.95, None, 2.0)


CASES = [
    (2500, 30.0, "x264 medium needs 80 % of our bytes at equal PSNR: we lose"),
    (1000, 30.0, "x264 medium needs 200 % of our bytes at equal PSNR: we win"),
    (2000, 30.0, "x264 medium needs 100 % of our bytes at equal PSNR: a draw"),
    (100_000, 30.0, "x264 medium needs 2.0 % of our bytes at equal PSNR: we lose"),
    (1000, 25.0, "a draw"),
    (8000, 40.0, "a draw"),
    (1000, 24.9, "x264 medium was measured only from 25.00 to 40.00 dB: no ratio at equal PSNR"),
    (1000, 40.1, "x264 medium was measured only from 25.00 to 40.00 dB: no ratio at equal PSNR"),
]


@pytest.mark.parametrize(("size", "psnr", "words"), CASES)
def test_verdict(compared, size, psnr, words):
    found = compared([])
    line = verdict(ours(size, psnr), "x264 medium", found.codecs["x264 medium"])
    assert line == f"a.hnerv ({psnr:.2f} dB): {line.split(': ', 1)[1]}" and line.endswith(words)


def test_bytes_grow_by_a_constant_factor_between_two_points(compared):
    """5 dB are a factor of 2: half of that is the square root."""
    points = compared([]).codecs["x264 medium"]
    share = bytes_at_our_psnr(ours(1000, 32.5), points[::-1])
    assert share.ratio == pytest.approx(2 * math.sqrt(2))
    assert (share.low, share.high) == (25.0, 40.0)


def test_a_table_of_one_loss_says_so_and_shows_every_point(compared):
    text = text_table(compared([ours(4000, 30.0)], notes=("14 frames are unseen.",)))
    lines = text.splitlines()
    assert lines[0] == "10 frames of 20x40, 24 frames/s"
    assert lines[2].split() == ["hnerv", "a.hnerv", "4,000", "4.0000", "30.00", "0.9500", "-", "2.00"]
    assert lines[3].split() == ["x264", "medium", "crf", "0", "1,000", "1.0000", "25.00", "0.9000", "1.50", "0.25"]
    assert len([line for line in lines if " crf " in line]) == 8
    assert [line.split(": ")[-1] for line in lines if "of our bytes" in line] == ["we lose", "we lose"]
    assert "BD-rate" not in text
    assert "42.00 dB" in text and lines[-1] == "14 frames are unseen."
    assert len({len(line) for line in lines[1:11]}) == 1


def test_four_points_of_ours_have_a_bd_rate(compared):
    pytest.importorskip("bjontegaard")
    found = compared([ours(size, psnr) for size, psnr in zip([800, 1600, 3200, 6400], [25, 30, 35, 40], strict=True)])
    lines = [line for line in text_table(found).splitlines() if "BD-rate" in line]
    assert lines == [
        "BD-rate against x264 medium: -20.0 % bytes at equal PSNR, averaged over 25.00 to 40.00 dB: we win",
        "BD-rate against x265 medium: +60.0 % bytes at equal PSNR, averaged over 25.00 to 40.00 dB: we lose",
    ]
    assert to_dict(found)["bd_rate_of_ours_against"]["x264 medium"]["percent"] == pytest.approx(-20)


def test_four_points_without_a_curve_have_a_sentence(compared):
    found = compared([ours(1000, psnr) for psnr in (26.0, 27.0, 28.0, 29.0)])
    assert "BD-rate against x264 medium is not available: on one of the curves, PSNR does not rise" in text_table(found)


def test_files_hold_the_points(compared, tmp_path):
    found = compared([ours(4000, 30.0)])
    written = write_comparison(tmp_path / "new", found)
    assert [path.name for path in written] == ["comparison.csv", "comparison.json", "comparison.png"]
    table = list(csv.DictReader(io.StringIO(written[0].read_text())))
    data = json.loads(written[1].read_text())
    assert len(table) == len(data["points"]) == 9
    assert table[0] == {key: "" if value is None else str(value) for key, value in data["points"][0].items()}
    assert data["points"][0]["bpp"] == 8 * 4000 / (10 * 20 * 40)
    assert data["bytes_of_rival_over_ours_at_our_psnr"][1] == {
        "ours": "a.hnerv",
        "rival": "x265 medium",
        "ratio": pytest.approx(0.25),
        "low": 25.0,
        "high": 40.0,
    }
    with Image.open(written[2]) as image:
        assert image.format == "PNG" and len(image.convert("RGB").getcolors(1 << 24)) > 10


def test_a_failing_disk_is_one_line(compared, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the comparison"):
        write_comparison(tmp_path / "file", compared([ours(4000, 30.0)]))
