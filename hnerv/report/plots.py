"""Numbers of runs -> figures: which curve, which axis, and in words what a figure shows."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from hnerv.report.results import Measurement, RunResults
from hnerv.viz.colour import COLOURS, DARK_GREY, LIGHT_GREY
from hnerv.viz.figure import MAX_VECTOR_POINTS, Group, Series, cell_plot, histogram, line_plot, raster_plot

DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))


class Plot(NamedTuple):
    """`uri` goes into an <img> under `title`; `alt` describes what it shows.

    `clip` marks a figure about the CLIP head, which the page shows together with the targets.
    """

    title: str
    uri: str
    alt: str
    clip: bool


class Panel(NamedTuple):
    """A figure of curves over epochs, with a logarithmic axis or a healthy range to shade."""

    title: str
    axis: str
    log: bool = False
    healthy: tuple[float, float] | None = None


class Line(NamedTuple):
    """A curve of the panel of that title. Tags that only some epochs have are drawn with a marker."""

    panel: str
    tag: str
    label: str
    marker: str = ""


PANELS = (
    Panel("PSNR during training", "PSNR, dB"),
    Panel("Loss", "loss", log=True),
    Panel("Estimated rate", "bits per pixel"),
    Panel("CLIP loss", "loss", log=True),
    Panel("Similarity during training", "cosine"),
    Panel("Generalisation gap", "dB", healthy=(-math.inf, 3)),
    Panel("Gradient norms", "L2 norm", log=True),
    Panel("Gradient ratio of RGB head to CLIP head", "ratio of L2 norms", log=True, healthy=(0.1, 10)),
    Panel("Effective rank of the embeddings", "effective rank"),
    Panel("Loss spikes", "largest / median step loss"),
    Panel("Training speed", "patches/s"),
    Panel("Learning rate", "learning rate"),
    Panel("Epoch time", "seconds"),
)

LINES = (
    Line("PSNR during training", "Train/PSNR", "training, mean of patches"),
    Line("PSNR during training", "Eval/Frame/val_psnr", "unseen, mean of patches", "o"),
    Line("PSNR during training", "Eval/Frame/val_psnr_frame", "unseen, full frame", "s"),
    Line("Loss", "Train/Loss/total_loss", "total"),
    Line("Loss", "Train/Loss/pixel_loss", "pixel"),
    Line("Loss", "Train/Loss/clip_loss_weighted", "CLIP, weighted"),
    Line("Estimated rate", "Train/Rate/bpp", "file"),
    Line("Estimated rate", "Train/Rate/decoder_bpp", "decoder"),
    Line("Estimated rate", "Train/Rate/embedding_bpp", "embedding"),
    Line("Estimated rate", "Train/Rate/rgb_head_bpp", "RGB head"),
    Line("Estimated rate", "Train/Rate/clip_head_bpp", "CLIP head"),
    Line("CLIP loss", "Train/Loss/clip_loss", "training"),
    Line("Similarity during training", "Eval/Frame/train_clip_sim", "training", "^"),
    Line("Similarity during training", "Eval/Frame/val_clip_sim", "unseen", "o"),
    Line("Similarity during training", "Eval/Frame/val_clip_sim_centred", "unseen, centred", "s"),
    Line("Generalisation gap", "Eval/Gap/psnr_gap", "training minus unseen PSNR", "o"),
    Line("Generalisation gap", "Eval/Gap/psnr_gap_paired", "adjacent training frames only", "s"),
    Line("Gradient norms", "Train/Gradients/total_norm", "total"),
    Line("Gradient norms", "Train/Gradients/decoder_norm", "decoder"),
    Line("Gradient norms", "Train/Gradients/rgb_head_norm", "RGB head"),
    Line("Gradient norms", "Train/Gradients/clip_head_norm", "CLIP head"),
    Line("Gradient ratio of RGB head to CLIP head", "Train/Gradients/rgb_to_clip_ratio", "RGB head / CLIP head"),
    Line("Effective rank of the embeddings", "Eval/Embedding/val_effective_rank", "unseen, predicted", "o"),
    Line("Effective rank of the embeddings", "Eval/Embedding/val_target_rank", "unseen, true", "s"),
    Line("Effective rank of the embeddings", "Eval/Embedding/train_effective_rank", "training, predicted", "^"),
    Line("Effective rank of the embeddings", "Eval/Embedding/train_target_rank", "training, true", "v"),
    Line("Loss spikes", "Train/Stability/spike_ratio", "last 256 steps"),
    Line("Training speed", "Train/Performance/patches_per_second", "training"),
    Line("Learning rate", "Train/learning_rate", "last step of the epoch"),
    Line("Epoch time", "Train/Performance/epoch_seconds", "all steps"),
)

SPLITS = ((True, "training", COLOURS[0], "."), (False, "unseen", COLOURS[1], "D"))
"""(seen, label, colour, marker)."""


def training_plots(runs: list[RunResults]) -> list[Plot]:
    """The panels that any run has points for. Colour identifies the curve of one run, or the run of several."""
    return [plot for panel in PANELS if (plot := _panel_plot(panel, runs))]


def frame_plots(run: RunResults) -> list[Plot]:
    """PSNR, MS-SSIM and similarity over the frames, training and unseen marked."""
    columns = (
        ("psnr", "PSNR per frame, mean of patches", "PSNR, dB"),
        ("ms_ssim", "MS-SSIM per frame", "MS-SSIM"),
        ("clip_sim", "Similarity per frame", "cosine"),
        ("clip_sim_centred", "Centred similarity per frame", "centred cosine"),
    )
    return [_over_frames(run.frames, *column) for column in columns if _has(run.frames, column[0])]


def patch_plots(run: RunResults) -> list[Plot]:
    """Each patch position as a mean over frames, by split; and every patch over time."""
    plots = []
    for column, name, unit, form in (("psnr", "PSNR", "dB", ".1f"), ("clip_sim", "similarity", "cosine", ".3f")):
        if not _has(run.patches, column):
            continue
        for seen, split, *_ in SPLITS:
            if rows := [row for row in run.patches if row.seen == seen]:
                means = _patch_means(rows, column).reshape(run.record.scene.rows, run.record.scene.cols)
                alt = f"{unit} from {means.min():.4g} to {means.max():.4g} over the patch grid"
                title = f"Mean {name} by patch, {split} frames"
                plots.append(Plot(title, cell_plot(means, form, unit), alt, "clip" in column))
        plots.append(_patches_over_time(run.patches, column, f"{name[0].upper()}{name[1:]} of every patch", unit))
    return plots


def distribution_plots(run: RunResults) -> list[Plot]:
    """Distribution over frames and patches, by split, in shares because the splits differ in size."""
    columns = (
        (run.frames, "psnr", "PSNR of frames", "PSNR, dB", "frames"),
        (run.patches, "psnr", "PSNR of patches", "PSNR, dB", "patches"),
        (run.patches, "clip_sim", "Similarity of patches", "cosine", "patches"),
        (run.patches, "clip_sim_centred", "Centred similarity of patches", "centred cosine", "patches"),
    )
    return [_distribution(*column) for column in columns if _has(column[0], column[1])]


def _has(rows: list[Measurement], column: str) -> bool:
    return bool(rows) and column in rows[0].values


def _panel_plot(panel: Panel, runs: list[RunResults]) -> Plot | None:
    """None if no run has points. Of several runs the legend has a colour per run, and a dash per line."""
    lines, several = [line for line in LINES if line.panel == panel.title], len(runs) > 1
    series, words, clip = [], [], False
    for i, run in enumerate(runs):
        for j, (_, tag, label, marker) in enumerate(lines):
            # A logarithmic axis has no room for the zeros of warm-up.
            points = [(epoch, value) for epoch, value in run.curves.get(tag, []) if value > 0 or not panel.log]
            if points:
                colour, dash = (COLOURS[i % len(COLOURS)], DASHES[j]) if several else (COLOURS[j], "-")
                marker = marker or ("o" if len(points) == 1 else "")
                series.append(Series(*zip(*points, strict=True), "" if several else label, colour, dash, marker))
                words.append(f"{run.name}, {label}, last {points[-1][1]:.4g}")
                clip |= "clip" in tag or tag.startswith("Eval/Embedding/")
    if not series:
        return None
    if several:
        series += [Series((), (), _legend_name(run.name), COLOURS[i % len(COLOURS)]) for i, run in enumerate(runs)]
        if len(lines) > 1:
            series += [
                Series((), (), line.label, DARK_GREY, dash, line.marker)
                for line, dash in zip(lines, DASHES, strict=False)
            ]
    uri = line_plot(series, "epoch", panel.axis, panel.log, panel.healthy)
    return Plot(panel.title, uri, f"{panel.axis} over epochs: {'; '.join(words)}", clip)


def _legend_name(name: str, longest: int = 24) -> str:
    """The end of a long name: it identifies a run better than its start."""
    shown = name if len(name) <= longest else "…" + name[1 - longest :]
    # matplotlib takes text between dollars for a formula, and hides labels that begin with an underscore
    return ("\u200b" if shown.startswith("_") else "") + shown.replace("$", r"\$")


def _over_frames(rows: list[Measurement], column: str, title: str, axis: str) -> Plot:
    def series(chosen: list[Measurement], *style: object) -> Series:
        return Series([row.frame for row in chosen], [row.values[column] for row in chosen], *style)

    curves = [series(rows, "", LIGHT_GREY, "-", "", 4, 0.7)]
    for seen, label, colour, marker in SPLITS:
        curves.append(series([row for row in rows if row.seen == seen], label, colour, "none", marker, 4))
    uri = line_plot(curves, "frame", axis, raster=len(rows) > MAX_VECTOR_POINTS)
    return Plot(title, uri, _range_text(rows, column, axis), "clip" in column)


def _range_text(rows: list[Measurement], column: str, axis: str) -> str:
    ends = [pick(rows, key=lambda row: row.values[column]) for pick in (min, max)]
    return f"{axis} from " + " to ".join(f"{row.values[column]:.4g} at frame {row.frame}" for row in ends)


def _patch_means(rows: list[Measurement], column: str) -> np.ndarray:
    patches = [row.patch for row in rows]
    return np.bincount(patches, [row.values[column] for row in rows]) / np.bincount(patches)


def _patches_over_time(patches: list[Measurement], column: str, title: str, unit: str) -> Plot:
    frames = sorted({row.frame for row in patches})
    position = {frame: i for i, frame in enumerate(frames)}
    table = np.full((max(row.patch for row in patches) + 1, len(frames)), np.nan)
    for row in patches:
        table[row.patch, position[row.frame]] = row.values[column]
    unseen = sorted({position[row.frame] for row in patches if not row.seen})
    xlabel = "evaluated frame, in order" + (" (triangles: unseen)" if unseen else "")
    uri = raster_plot(table, unseen, xlabel, "patch, row by row", unit)
    alt = f"{title} over {len(frames)} frames: {_range_text(patches, column, unit)}"
    return Plot(title, uri, alt, "clip" in column)


def _distribution(rows: list[Measurement], column: str, title: str, axis: str, kind: str) -> Plot:
    groups = []
    for seen, label, colour, _ in SPLITS:
        if len(values := np.array([row.values[column] for row in rows if row.seen == seen])):
            groups.append(Group(values, label, colour, filled=seen))
    words = (f"{g.label}: mean {g.values.mean():.4g}, standard deviation {g.values.std():.3g}" for g in groups)
    alt = f"distribution of {axis} over {kind}: {'; '.join(words)}"
    return Plot(title, histogram(groups, axis, f"share of {kind}, %"), alt, "clip" in column)
