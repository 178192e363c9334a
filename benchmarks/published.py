"""Our figures next to published ones: Markdown tables from data/published*.csv and data/measured.csv.

    python benchmarks/published.py                  # the tables of docs/results.md
    python benchmarks/published.py --clip Jockey    # one clip of UVG

Prints PSNR on UVG at four rates, BD-rates, and PSNR on Bunny by size. Ours is "not measured" without a row in the data.
"""

from __future__ import annotations

import argparse
import csv
import math
from itertools import pairwise
from pathlib import Path

from common import markdown

from hnerv.codec.comparison.bd_rate import RatePoint, bd_rate

DATA = Path(__file__).resolve().parent / "data"
RATES = (0.015, 0.03, 0.06, 0.12)
"""bits per pixel: about those of HiNeRV's sizes S to XL on UVG."""
SIZES = (0.35, 0.75, 1.5, 3.0)
"""Millions of parameters on Bunny."""
MISSING = "not measured"
OURS = {"UVG": ("`uvg-codec`",), "Bunny": ("`bunny-*`", "`bunny-*-fast`")}
"""Presets with a row even if nothing is measured; * stands for the size."""
KIND = ("YUV 6:1:1", "frames")
"""Colour space and mean of our second row on UVG. No project publishes points of this kind."""

Row = dict[str, str]
Curve = list[tuple[float, float]]
"""(bits per pixel, PSNR in dB), by ascending rate."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", default="all", metavar="NAME", help="clip of UVG; all: mean over the seven (all)")
    args = parser.parse_args()
    print(uvg_table(args.clip), nvrc_line(), bunny_table(), sep="\n\n")


def table(name: str) -> list[Row]:
    """Rows of data/NAME.csv, {column: cell}."""
    lines = (DATA / f"{name}.csv").read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def curves_of(rows: list[Row], clip: str) -> dict[tuple[str, str, str], Curve]:
    """{(colour, psnr_of, series): curve} of the coded rows of a clip; series are in the order of their first rows."""
    curves: dict[tuple[str, str, str], Curve] = {}
    for row in rows:
        if row["clip"] == clip and row["bpp"]:
            key = row["colour"], row["psnr_of"], row.get("method") or row["series"]
            curves.setdefault(key, []).append((float(row["bpp"]), float(row["psnr_db"])))
    return {key: sorted(curve) for key, curve in curves.items()}


def psnr_at(curve: Curve, rate: float) -> float | None:
    """PSNR at a rate, linear in log rate between two points of the curve; None outside of its range."""
    for (low, below), (high, above) in pairwise(curve):
        if low <= rate <= high:
            return below + (above - below) * math.log(rate / low) / math.log(high / low)
    return None


def uvg_table(clip: str) -> str:
    """Series by colour space and mean, which must not be mixed: dB at RATES, BD-rate against x265 of the same kind."""
    published, ours = curves_of(table("published_uvg"), clip), curves_of(table("measured"), clip)
    rows = []
    for kind in dict.fromkeys([key[:2] for key in published] + [KIND]):
        group = {series: curve for (*other, series), curve in published.items() if tuple(other) == kind}
        anchor = next((curve for series, curve in group.items() if series.startswith("x265")), [])
        if kind[1] == "frames":  # the mean that this package reports
            group |= {f"ours, {name}": ours.get((*kind, name), []) for name in OURS["UVG"]}
        for series, curve in group.items():
            values = [psnr_at(curve, rate) for rate in RATES]
            cells = ["" if value is None else f"{value:.2f}" for value in values] if curve else [MISSING] * len(RATES)
            rows.append([series, ", ".join(kind), *cells, bd_cell(anchor, curve)])
    return markdown(["series", "PSNR", *(f"{rate:g} bpp" for rate in RATES), "BD-rate, x265"], rows)


def bd_cell(anchor: Curve, test: Curve) -> str:
    """BD-rate in per cent, '' for the anchor itself and where it is not defined."""
    # Only ratios of rates count, so that any unit is as good as bytes.
    points = [[RatePoint("", "", round(rate * 1e9), psnr, 0.0) for rate, psnr in curve] for curve in (anchor, test)]
    percent = bd_rate(*points).percent if anchor is not test else None
    return "" if percent is None else f"{percent:+.0f} %"


def nvrc_line() -> str:
    """The BD-rates of NVRC on UVG. Its paper only plots the points."""
    rows = [row for row in table("published_bd") if (row["method"], row["dataset"]) == ("NVRC", "UVG")]
    return "NVRC, RGB, BD-rate: " + ", ".join(f"{row['anchor']} {float(row['bd_percent']):+.1f} %" for row in rows)


def bunny_table() -> str:
    """PSNR of models before coding, trained on all frames of Bunny at 640x1280 for 300 epochs, by size."""
    protocol = {"resolution": "640x1280", "split": "1_1_1", "epochs": "300", "frames": "seen", "bpp": ""}
    cells: dict[str, dict[float, str]] = {}
    for row in table("published") + table("measured"):
        if protocol.items() <= row.items():
            series = row.get("method") or "ours, " + row["series"].replace(f"{row['parameters_m']}m", "*")
            sizes = cells.setdefault(series, {})
            size = float(row["parameters_m"])
            sizes[size] = ", ".join(filter(None, [sizes.get(size, ""), row["psnr_db"]]))
    ours = {f"ours, {name}": {} for name in OURS["Bunny"]}
    cells = {name: sizes for name, sizes in cells.items() if name not in ours} | {n: cells.get(n, {}) for n in ours}
    rows = [
        [name, *(sizes.get(size, MISSING if name in ours else "") for size in SIZES)] for name, sizes in cells.items()
    ]
    return markdown(["series", *(f"{size:g}M" for size in SIZES)], rows)


if __name__ == "__main__":
    main()
