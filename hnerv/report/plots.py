"""Numbers of runs -> figures, as SVG data URIs: small, alike, and readable on a phone.

Colours are those of Okabe and Ito, which the colour-blind tell apart; split and run differ in line and marker too.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from hnerv.report.reading import Curve, Row, RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))
SIZE = (4.2, 2.7)
MOST_POINTS = 1000
"""Beyond, the points of a figure are drawn as pixels: each would else cost 150 bytes."""


class Plot(NamedTuple):
    """`uri` goes into an <img>; `alt` says in words what it shows; `title` stands above it.

    `clip` where it shows something of the CLIP head: what that is measured against is then to stand beside it.
    """

    title: str
    uri: str
    alt: str
    clip: bool


class Line(NamedTuple):
    tag: str
    label: str
    marker: str = ""


class Panel(NamedTuple):
    """Curves of one unit over epochs. `band` is a healthy range to shade."""

    title: str
    axis: str
    lines: tuple[Line, ...]
    log: bool = False
    band: tuple[float, float] | None = None


PANELS = (
    Panel(
        "PSNR during training", "PSNR, dB",
        (
            Line("Train/PSNR", "training, mean of patches"),
            Line("Eval/Frame/val_psnr", "unseen, mean of patches", "o"),
            Line("Eval/Frame/val_psnr_frame", "unseen, full frame", "s"),
        ),
    ),
    Panel(
        "Loss", "loss",
        (
            Line("Train/Loss/total_loss", "total"),
            Line("Train/Loss/pixel_loss", "pixel"),
            Line("Train/Loss/clip_loss_weighted", "CLIP, weighted"),
        ),
        log=True,
    ),
    Panel("CLIP loss", "loss", (Line("Train/Loss/clip_loss", "training"),), log=True),
    Panel(
        "Similarity during training", "cosine",
        (
            Line("Eval/Frame/train_clip_sim", "training", "^"),
            Line("Eval/Frame/val_clip_sim", "unseen", "o"),
            Line("Eval/Frame/val_clip_sim_centred", "unseen, centred", "s"),
        ),
    ),
    Panel(
        "Generalisation gap", "dB", (Line("Eval/Gap/psnr_gap", "training minus unseen PSNR", "o"),), band=(-math.inf, 3)
    ),
    Panel(
        "Gradient norms", "L2 norm",
        (
            Line("Train/Gradients/total_norm", "total"),
            Line("Train/Gradients/decoder_norm", "decoder"),
            Line("Train/Gradients/rgb_head_norm", "RGB head"),
            Line("Train/Gradients/clip_head_norm", "CLIP head"),
        ),
        log=True,
    ),
    Panel(
        "Gradient ratio of RGB head to CLIP head", "ratio of L2 norms",
        (Line("Train/Gradients/rgb_to_clip_ratio", "RGB head / CLIP head"),), log=True, band=(0.1, 10),
    ),
    Panel(
        "Effective rank of the embeddings", "effective rank",
        (
            Line("Eval/Embedding/val_effective_rank", "unseen, predicted", "o"),
            Line("Eval/Embedding/val_target_rank", "unseen, true", "s"),
            Line("Eval/Embedding/train_effective_rank", "training, predicted", "^"),
            Line("Eval/Embedding/train_target_rank", "training, true", "v"),
        ),
    ),
    Panel(
        "Loss spikes", "largest / median step loss", (Line("Train/Stability/spike_ratio", "last 256 steps"),),
    ),
    Panel(
        "Training speed", "patches/s", (Line("Train/Performance/patches_per_second", "training"),),
    ),
    Panel("Learning rate", "learning rate", (Line("Train/learning_rate", "last step of the epoch"),)),
    Panel("Epoch time", "seconds", (Line("Train/Performance/epoch_seconds", "all steps"),)),
)  # fmt: skip

SPLITS = ((True, "training", COLOURS[0], "."), (False, "unseen", COLOURS[1], "D"))
"""(seen, label, colour, marker)."""


def training_plots(runs: list[RunData]) -> list[Plot]:
    """The panels that any run has points for. Of one run the colour tells the curve, of several it tells the run."""
    return [plot for panel in PANELS if (plot := _panel(panel, runs))]


def frame_plots(run: RunData) -> list[Plot]:
    """PSNR, MS-SSIM and similarity over the frames, training and unseen marked."""
    columns = [
        ("psnr", "PSNR per frame, mean of patches", "PSNR, dB"),
        ("ms_ssim", "MS-SSIM per frame", "MS-SSIM"),
    ]
    columns += [("clip_sim", "Similarity per frame", "cosine")]
    columns += [("clip_sim_centred", "Centred similarity per frame", "centred cosine")]
    return [_over_frames(run.frames, *column) for column in columns if _has(run.frames, column[0])]


def patch_plots(run: RunData) -> list[Plot]:
    """Each patch position as a mean over frames, by split; and every patch over time."""
    rows, cols = run.record.scene.rows, run.record.scene.cols
    found = []
    for column, name, unit in (("psnr", "PSNR", "dB"), ("clip_sim", "similarity", "cosine")):
        if not _has(run.patches, column):
            continue
        for seen, split, *_ in SPLITS:
            if chosen := [row for row in run.patches if row.seen == seen]:
                found.append(_positions(chosen, column, f"Mean {name} by patch, {split} frames", unit, rows, cols))
        found.append(_patches_over_time(run.patches, column, f"{name[0].upper()}{name[1:]} of every patch", unit))
    return found


def distribution_plots(run: RunData) -> list[Plot]:
    """How frames and patches are spread, by split, as shares: the splits differ in size."""
    of = (
        (run.frames, "psnr", "PSNR of frames", "PSNR, dB", "frames"),
        (run.patches, "psnr", "PSNR of patches", "PSNR, dB", "patches"),
        (run.patches, "clip_sim", "Similarity of patches", "cosine", "patches"),
        (run.patches, "clip_sim_centred", "Centred similarity of patches", "centred cosine", "patches"),
    )
    return [_histogram(*one) for one in of if _has(one[0], one[1])]


def _has(rows: list[Row], column: str) -> bool:
    return bool(rows) and column in rows[0].values


def _panel(panel: Panel, runs: list[RunData]) -> Plot | None:
    drawn = [
        (i, run.name, j, line, points)
        for i, run in enumerate(runs)
        for j, line in enumerate(panel.lines)
        if (points := _drawable(run.curves.get(line.tag, []), panel.log))
    ]
    if not drawn:
        return None

    several = len(runs) > 1

    def draw(axes: Axes) -> None:
        for i, _, j, line, points in drawn:
            colour, dash = (COLOURS[i % len(COLOURS)], DASHES[j]) if several else (COLOURS[j], "-")
            marker = line.marker or ("o" if len(points) == 1 else "")
            label = None if several else line.label
            axes.plot(*zip(*points, strict=True), color=colour, ls=dash, marker=marker, ms=3.5, lw=1.4, label=label)
        if panel.log:
            _logarithmic(axes)
        if several:
            _name_runs_and_lines(axes, runs, panel)
        if panel.band:
            _shade(axes, *panel.band)
        axes.set_xlabel("epoch")
        axes.set_ylabel(panel.axis)
        _legend(axes)

    entries = len(runs) + len(panel.lines) if several else len(panel.lines)
    clip = any(_of_clip(line.tag) for _, _, _, line, _ in drawn)
    words = "; ".join(f"{name}, {line.label}, last {points[-1][1]:.4g}" for _, name, _, line, points in drawn)
    return _plot(panel.title, f"{panel.axis} over epochs: {words}", draw, clip, 0.16 * max(0, entries - 4))


def _of_clip(tag: str) -> bool:
    return "clip" in tag or tag.startswith("Eval/Embedding/")


def _drawable(points: Curve, log: bool) -> Curve:
    """A logarithmic axis has no place for the zeros of warm-up."""
    return [point for point in points if point[1] > 0] if log else points


def _logarithmic(axes: Axes) -> None:
    """Plain numbers at the ticks, and some between the powers of ten where there is one power or none."""
    from matplotlib.ticker import LogFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))


def _shade(axes: Axes, low: float, high: float) -> None:
    """The healthy range, as far as it is in view, without changing the view."""
    bottom, top = axes.get_ylim()
    axes.axhspan(max(low, bottom), min(high, top), color=COLOURS[2], alpha=0.1, lw=0, label="healthy")
    axes.set_ylim(bottom, top)


def _over_frames(rows: list[Row], column: str, title: str, axis: str) -> Plot:
    many = len(rows) > MOST_POINTS

    def draw(axes: Axes) -> None:
        axes.plot(
            [r.frame for r in rows],
            [r.values[column] for r in rows],
            color="#BBBBBB",
            lw=0.7,
            zorder=1,
            rasterized=many,
        )
        for seen, label, colour, marker in SPLITS:
            mine = [r for r in rows if r.seen == seen]
            axes.plot(
                [r.frame for r in mine], [r.values[column] for r in mine], marker, color=colour, ms=4, label=label,
                rasterized=many,
            )  # fmt: skip
        axes.set_xlabel("frame")
        axes.set_ylabel(axis)
        _legend(axes)

    return _plot(title, _extremes(rows, column, axis), draw, "clip" in column)


def _extremes(rows: list[Row], column: str, axis: str) -> str:
    low, high = (pick(rows, key=lambda row: row.values[column]) for pick in (min, max))
    return (
        f"{axis} from {low.values[column]:.4g} at frame {low.frame} to {high.values[column]:.4g} at frame {high.frame}"
    )


def _positions(patches: list[Row], column: str, title: str, unit: str, rows: int, cols: int) -> Plot:
    import numpy as np

    sums, counts = np.zeros(rows * cols), np.zeros(rows * cols)
    for row in patches:
        sums[row.patch] += row.values[column]
        counts[row.patch] += 1
    form = "{:.1f}" if unit == "dB" else "{:.3f}"
    means = (sums / counts).reshape(rows, cols)

    def draw(axes: Axes) -> None:
        image = axes.imshow(means, cmap="cividis")
        middle = (means.min() + means.max()) / 2
        for (y, x), value in np.ndenumerate(means):
            if means.size <= 64:
                ink = "black" if value > middle else "white"
                axes.text(x, y, form.format(value), ha="center", va="center", color=ink, fontsize=9)
        axes.set_xticks(range(cols))
        axes.set_yticks(range(rows))
        axes.grid(False)
        axes.set_xlabel("column of the patch grid")
        axes.set_ylabel("row")
        axes.figure.colorbar(image, ax=axes, label=unit, shrink=0.8)

    return _plot(
        title, f"{unit} from {means.min():.4g} to {means.max():.4g} over the patch grid", draw, "clip" in column
    )


def _patches_over_time(patches: list[Row], column: str, title: str, unit: str) -> Plot:
    import numpy as np

    frames = sorted({row.frame for row in patches})
    place = {frame: i for i, frame in enumerate(frames)}
    table = np.full((max(row.patch for row in patches) + 1, len(frames)), np.nan)
    for row in patches:
        table[row.patch, place[row.frame]] = row.values[column]
    unseen = sorted({place[row.frame] for row in patches if not row.seen})
    many = len(frames) > MOST_POINTS

    def draw(axes: Axes) -> None:
        image = axes.imshow(table, aspect="auto", interpolation="nearest", cmap="cividis")
        axes.plot(unseen, [-0.8] * len(unseen), "v", color=COLOURS[1], ms=3.5, clip_on=False, rasterized=many)
        axes.grid(False)
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.set_yticks(range(0, len(table), max(1, len(table) // 8)))
        axes.set_xlabel("evaluated frame, in order" + (" (triangles: unseen)" if unseen else ""))
        axes.set_ylabel("patch, row by row")
        axes.figure.colorbar(image, ax=axes, label=unit)

    return _plot(
        title, f"{title} over {len(frames)} frames: {_extremes(patches, column, unit)}", draw, "clip" in column
    )


def _histogram(rows: list[Row], column: str, title: str, axis: str, what: str) -> Plot:
    import numpy as np

    values = {seen: np.array([r.values[column] for r in rows if r.seen == seen]) for seen, *_ in SPLITS}
    edges = np.histogram_bin_edges(np.concatenate([*values.values()]), bins=24)

    def draw(axes: Axes) -> None:
        for seen, label, colour, _ in SPLITS:
            if len(mine := values[seen]):
                shares = np.full(len(mine), 100 / len(mine))
                style = {"histtype": "stepfilled", "alpha": 0.35} if seen else {"histtype": "step", "lw": 1.8}
                axes.hist(mine, edges, weights=shares, color=colour, label=f"{label} ({len(mine)})", **style)
        axes.set_xlabel(axis)
        axes.set_ylabel(f"share of {what}, %")
        _legend(axes)

    words = "; ".join(
        f"{label}: mean {values[seen].mean():.4g}, standard deviation {values[seen].std():.3g}"
        for seen, label, *_ in SPLITS
        if len(values[seen])
    )
    return _plot(title, f"distribution of {axis} over {what}: {words}", draw, "clip" in column)


def _name_runs_and_lines(axes: Axes, runs: list[RunData], panel: Panel) -> None:
    """Legend entries: a colour for each run, and a dash for each line where there are several."""
    for i, run in enumerate(runs):
        axes.plot([], [], color=COLOURS[i % len(COLOURS)], lw=1.4, label=short(run.name))
    if len(panel.lines) > 1:
        for j, line in enumerate(panel.lines):
            axes.plot([], [], color="#555555", ls=DASHES[j], marker=line.marker, ms=3.5, lw=1.4, label=line.label)


def _legend(axes: Axes) -> None:
    """Above the axes, where it hides nothing; in two columns where the labels leave room."""
    labels = sorted((len(text) for text in axes.get_legend_handles_labels()[1]), reverse=True)
    columns = 2 if sum(labels[:2]) <= 48 else 1
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, borderaxespad=0.2)


def _plot(title: str, alt: str, draw: Callable[[Axes], None], clip: bool, extra: float = 0.0) -> Plot:
    """`extra` inches of height make room for a long legend."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], SIZE[1] + extra), layout="constrained")
        draw(figure.add_subplot())
        return Plot(title, svg_uri(figure), alt, clip)


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
    "svg.fonttype": "none",
    "svg.hashsalt": "hnerv",
    "figure.dpi": 100,
}
"""The text of figures stays text; equal numbers give equal bytes."""


def svg_uri(figure: Figure) -> str:
    """A figure as a data URI."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def short(name: str, most: int = 24) -> str:
    """A run's name as legends have room for it: its end tells more than its start."""
    shown = name if len(name) <= most else "…" + name[1 - most :]
    # matplotlib takes what stands between dollars for a formula, and hides a name that begins with an underscore
    return ("\u200b" if shown.startswith("_") else "") + shown.replace("$", r"\$")


def disambiguated(names: Iterable[str], longer: Iterable[str]) -> list[str]:
    """Each name where it is the only one of its kind, else its longer form."""
    names = list(names)
    return [long if names.count(name) > 1 else name for name, long in zip(names, longer, strict=True)]
