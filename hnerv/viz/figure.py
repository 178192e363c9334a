"""Figures of matplotlib as SVG data URIs: small, alike, and readable on a phone. Equal numbers give equal bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hnerv.viz.colour import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (4.2, 2.7)
"""Width and height in inches."""
MAX_VECTOR_POINTS = 1000
"""Figures of more points are drawn as pixels: as vectors, each point would cost 150 bytes."""
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.fontsize": 8,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.0,
    "svg.fonttype": "none",  # text stays text: smaller, and readable by search and screen readers
    "svg.hashsalt": "hnerv",  # otherwise random identifiers differ from call to call
    "figure.dpi": 100,
}


class Series(NamedTuple):
    """A curve. Without a label it is not in the legend; without points it is a legend entry only."""

    x: Sequence[float]
    y: Sequence[float]
    label: str
    colour: str
    dash: object = "-"
    marker: str = ""
    marker_size: float = 3.5
    width: float = 1.4


class Group(NamedTuple):
    """Values of a histogram, drawn filled or as an outline."""

    values: np.ndarray
    label: str
    colour: str
    filled: bool


def svg_uri(draw: Callable[[Axes], None], extra: float = 0.0) -> str:
    """What `draw` puts on empty axes. `extra` inches of height make room for a long legend."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], SIZE[1] + extra), layout="constrained")
        draw(figure.add_subplot())
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def line_plot(
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    log: bool = False,
    healthy: tuple[float, float] | None = None,
    raster: bool = False,
) -> str:
    """Curves. `log` is about the y axis; `healthy` is a range of y to shade; `raster` draws the points as pixels."""

    def draw(axes: Axes) -> None:
        for one in series:
            style = {"color": one.colour, "ls": one.dash, "lw": one.width, "marker": one.marker, "ms": one.marker_size}
            axes.plot(one.x, one.y, label=one.label, rasterized=raster, **style)
        if log:
            _set_log_scale(axes)
        if healthy:
            # Only the part in view: the band must not stretch the axis.
            bottom, top = axes.get_ylim()
            band = max(healthy[0], bottom), min(healthy[1], top)
            axes.axhspan(*band, color=COLOURS[2], alpha=0.1, lw=0, label="healthy")
            axes.set_ylim(bottom, top)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _add_legend(axes)

    return svg_uri(draw, 0.16 * max(0, sum(bool(one.label) for one in series) - 4))


def cell_plot(values: np.ndarray, form: str, unit: str) -> str:
    """values (rows, columns) of the patch grid, written into the cells where there are at most 64."""

    def draw(axes: Axes) -> None:
        image = axes.imshow(values, cmap="cividis")
        middle = (values.min() + values.max()) / 2
        for (row, column), value in np.ndenumerate(values) if values.size <= 64 else ():
            ink = "black" if value > middle else "white"
            axes.text(column, row, format(value, form), ha="center", va="center", color=ink, fontsize=9)
        axes.set_xticks(range(values.shape[1]))
        axes.set_yticks(range(values.shape[0]))
        axes.grid(False)
        axes.set(xlabel="column of the patch grid", ylabel="row")
        axes.figure.colorbar(image, ax=axes, label=unit, shrink=0.8)

    return svg_uri(draw)


def raster_plot(values: np.ndarray, marked: Sequence[int], xlabel: str, ylabel: str, unit: str) -> str:
    """values (rows, columns) as a map that fills the axes; a triangle above every column in `marked`."""

    def draw(axes: Axes) -> None:
        image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap="cividis")
        many = values.shape[1] > MAX_VECTOR_POINTS
        axes.plot(marked, [-0.8] * len(marked), "v", color=COLOURS[1], ms=3.5, clip_on=False, rasterized=many)
        axes.grid(False)
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.set_yticks(range(0, len(values), max(1, len(values) // 8)))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.figure.colorbar(image, ax=axes, label=unit)

    return svg_uri(draw)


def histogram(groups: Sequence[Group], xlabel: str, ylabel: str) -> str:
    """Share of each group per bin, in percent of the group."""
    edges = np.histogram_bin_edges(np.concatenate([group.values for group in groups]), bins=24)

    def draw(axes: Axes) -> None:
        for values, label, colour, filled in groups:
            style = {"histtype": "stepfilled", "alpha": 0.35} if filled else {"histtype": "step", "lw": 1.8}
            shares = np.full(len(values), 100 / len(values))
            axes.hist(values, edges, weights=shares, color=colour, label=f"{label} ({len(values)})", **style)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _add_legend(axes)

    return svg_uri(draw)


def _set_log_scale(axes: Axes) -> None:
    """Plain numbers at the ticks, and at some minor ones where the axis spans at most one power of ten."""
    from matplotlib.ticker import LogFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))


def _add_legend(axes: Axes) -> None:
    """Above the axes, where it hides nothing; in two columns where the labels leave room."""
    lengths = sorted((len(text) for text in axes.get_legend_handles_labels()[1]), reverse=True)
    columns = 2 if sum(lengths[:2]) <= 48 else 1
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, borderaxespad=0.2)
