"""Runs -> one self-contained HTML page: no request leaves it, and every text in it is escaped."""

from __future__ import annotations

import time
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from hnerv import __version__
from hnerv.config import differences
from hnerv.errors import UserError
from hnerv.evaluation import estimated_rate
from hnerv.files import replacing
from hnerv.report.contents import RunReport
from hnerv.report.findings import RULES, findings_of
from hnerv.report.plots import Plot, distribution_plots, frame_plots, patch_plots, training_plots
from hnerv.report.results import RunResults
from hnerv.training.pages import command_line
from hnerv.viz.image import ERROR_TOP

SPLIT_ROWS = (
    (
        "full-frame PSNR, dB",
        "from the error of the full 8-bit frame, as reported in the literature",
        "Eval/Frame/{}_psnr_frame",
        "{:.2f}",
    ),
    ("PSNR of YUV, dB", "weighted 6:1:1, against the planes of the source", "Eval/Frame/{}_psnr_yuv", "{:.2f}"),
    ("PSNR, mean of patches, dB", "PSNR of each patch, averaged", "Eval/Frame/{}_psnr", "{:.2f}"),
    ("worst frame, dB", "lowest PSNR of a frame, mean of patches", "Eval/PSNR_Stats/{}_min", "{:.2f}"),
    ("MS-SSIM", "fewer than five scales for frames smaller than 161 pixels", "Eval/Frame/{}_ms_ssim", "{:.4f}"),
    ("MS-SSIM in dB", "-10 log10(1 - MS-SSIM) of each frame, averaged", "Eval/Frame/{}_ms_ssim_db", "{:.2f}"),
    ("VMAF", "0 to 100, by ffmpeg's default model", "Eval/Frame/{}_vmaf", "{:.2f}"),
    ("similarity", "cosine to the targets", "Eval/Frame/{}_clip_sim", "{:.3f}"),
    (
        "centred similarity",
        "after removing the mean of the training targets",
        "Eval/Frame/{}_clip_sim_centred",
        "{:.3f}",
    ),
    (
        "recall@1",
        "share of true embeddings that retrieve their own patch, in their own or an adjacent frame",
        "Eval/Frame/{}_clip_retrieval",
        "{:.3f}",
    ),
    ("exact@1", "the same, in their own frame only", "Eval/Frame/{}_clip_retrieval_exact", "{:.3f}"),
)
"""(label, help, tag with a place for the split, format)."""

BASELINE_MEASURES = ("cosine", "centred", "recall@1", "exact@1", "recall@10", "overlap@10", "Spearman")
"""Measures of `hnerv semantics` that the page shows."""

MOST_VIDEOS = 5000
"""Rows of a fleet: browsers are slow with larger tables."""

PLOT_GROUPS = (
    ("Frame by frame", "The grey line connects frames in time order. Unseen frames were not trained on.", frame_plots),
    ("Patch by patch", "Where in the frame, and when, the model does well (bright) or poorly (dark).", patch_plots),
    ("Distributions", "Bars show shares within a split, because the splits differ in size.", distribution_plots),
)
"""(title, lead, plots of a run)."""


class PageTable(NamedTuple):
    """`heads` are those of the columns after the first, rows are (name, cells)."""

    heads: list[str]
    rows: list[tuple[str, list[str]]]
    note: str = ""


def render_report(reports: list[RunReport]) -> str:
    """The page of one run, or of several side by side."""
    runs = [report.run for report in reports]
    return _render(
        "page.html",
        title=" · ".join(run.name for run in runs),
        script=resources.files("hnerv.report").joinpath("page.js").read_text(encoding="utf-8"),
        runs=[_run_context(report) for report in reports],
        summary=summary_rows(runs),
        changed=changed_settings(runs),
        curves=training_plots(runs),
        groups=[(title, lead, _aligned([plots(run) for run in runs])) for title, lead, plots in PLOT_GROUPS],
        rules=RULES,
        error_top=f"{100 * ERROR_TOP:g} %",
    )


def render_fleet(title: str, summary: str, targets: str, rows: list[list[str]]) -> str:
    """The page of a fleet: the table of its videos."""
    more = max(len(rows) - MOST_VIDEOS, 0)
    return _render("fleet.html", title=title, summary=summary, targets=targets, rows=rows[:MOST_VIDEOS], more=more)


def _render(template: str, **values: object) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    layout = {"loader": PackageLoader("hnerv.report", "."), "trim_blocks": True, "lstrip_blocks": True}
    return (
        Environment(autoescape=True, undefined=StrictUndefined, **layout)
        .get_template(template)
        .render(
            style=resources.files("hnerv.report").joinpath("page.css").read_text(encoding="utf-8"),
            version=__version__,
            written=time.strftime("%Y-%m-%d %H:%M"),
            **values,
        )
    )


def write_report(path: Path, reports: list[RunReport]) -> int:
    """Writes the page atomically; returns its bytes. Raises UserError."""
    return save_page(path, render_report(reports))


def save_page(path: Path, text: str) -> int:
    """Writes any page atomically; returns its bytes. Raises UserError."""
    data = text.encode("utf-8", errors="replace")
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): pass another file with --output") from error
    return len(data)


def _run_context(report: RunReport) -> dict[str, object]:
    """Template variables for one run."""
    run = report.run
    settings = run.record.config.to_dict()
    return {
        "name": run.name,
        "targets": run.targets,
        "targets_short": _short_label(run.targets),
        "findings": findings_of(run),
        "shown": report.shown,
        "missing": report.missing,
        "settings": {name: {key: _plain(v) for key, v in knobs.items()} for name, knobs in settings.items()},
        "facts": _facts(run),
        "baselines": baseline_table(run),
        "segments": chunk_table(run),
    }


def summary_rows(runs: list[RunResults]) -> list[tuple[str, str, list[list[str]]]]:
    """(label, help, cells of each run): two cells, training and unseen, or one that spans both.

    Rows without a value in any run are left out.
    """
    rows = [(label, help, [_pair(run.values, tag, form) for run in runs]) for label, help, tag, form in SPLIT_ROWS]
    columns = [_run_numbers(run) for run in runs]
    rows += [(label, help, [[column[label, help]] for column in columns]) for label, help in columns[0]]
    return [row for row in rows if any(cell != "–" for cells in row[2] for cell in cells)]


def _run_numbers(run: RunResults) -> dict[tuple[str, str], str]:
    """{(label, help): cell} of the numbers that do not belong to a split."""
    scene, parameters = run.record.scene, run.record.parameters
    rate = estimated_rate(parameters, scene)
    gap, fps = run.values.get("Eval/Gap/psnr_gap"), run.summary.get("decode_fps")
    paired = [run.values.get(f"Eval/Gap/psnr_gap_paired{end}") for end in ("", "_error")]
    return {
        ("generalisation gap, dB", "training minus unseen PSNR, mean of patches"): _number(gap, "{:.2f}"),
        ("gap to adjacent frames, dB", "training frames around an unseen frame minus that frame ± standard error"): (
            "–" if None in paired else "{:.2f} ± {:.2f}".format(*paired)
        ),
        ("coded parameters", "decoder, heads and embeddings"): f"{parameters:,}",
        ("rate, bits per pixel", "estimated at 8 bits per parameter, not a file size"): f"{rate:.4f}",
        ("decoding speed, frames/s", "on the machine that ran the evaluation"): _number(fps, "{:.1f}"),
        ("epochs", "completed"): str(run.epoch),
        ("evaluated at epoch", "epoch that these results belong to"): _number(run.values_epoch or None, "{}"),
    }


def changed_settings(runs: list[RunResults]) -> dict[str, list[str]]:
    """{setting: its value in each run} of the settings in which any run differs from the first."""
    configs = [run.record.config for run in runs]
    names = dict.fromkeys(name for other in configs[1:] for name in differences(configs[0], other))
    return {name: [_plain(config.flat()[name]) for config in configs] for name in names}


def chunk_table(run: RunResults) -> PageTable | None:
    """A row per chunk, training / unseen in a cell; None for a video with one chunk."""
    if len(run.chunks) < 2:
        return None
    shown = [row for row in SPLIT_ROWS if any(row[2].format("train") in chunk.values for chunk in run.chunks)]
    rows = []
    for chunk in run.chunks:
        frames = f"{chunk.first}–{chunk.first + chunk.record.scene.frames - 1}"
        pairs = (" / ".join(_pair(chunk.values, tag, form)) for *_, tag, form in shown)
        rows.append((chunk.name, [frames, str(chunk.epoch), *pairs]))
    return PageTable(["frames", "epochs", *(label for label, *_ in shown)], rows)


def baseline_table(run: RunResults) -> PageTable | None:
    """The CLIP head and its baselines, training / unseen in a cell; None if they were not measured."""
    if not run.baselines:
        return None
    splits = [values for row in run.baselines for values in row.splits.values()]
    shown = [name for name in BASELINE_MEASURES if any(name in values for values in splits)]
    texts = [name for name in BASELINE_MEASURES if any(name in row.texts for row in run.baselines)]
    rows = []
    for row in run.baselines:
        values = {f"{split} {name}": value for split, means in row.splits.items() for name, value in means.items()}
        cells = [" / ".join(_pair(values, f"{{}} {name}", "{:.3f}")) for name in shown]
        cells += [_number(row.texts.get(name), "{:.3f}") for name in texts]
        rows.append((row.name, [_number(row.size, "{:,}"), *cells]))
    semantics = run.summary["semantics"]
    note = f"Each cell shows training / unseen frames, measured by eval.py at epoch {run.summary.get('epoch')}."
    note += f" The size of the CLIP head is {semantics.get('head_bytes_are')}."
    note += f" The text columns use {semantics['queries']} queries." if texts else ""
    return PageTable(["bytes", *shown, *(f"text {name}" for name in texts)], rows, note)


def _short_label(label: str, longest: int = 64) -> str:
    """The targets as far as there is room next to a picture: without the part in parentheses."""
    label = label.split(" (")[0]
    return label if len(label) <= longest else label[: longest - 1] + "…"


def _aligned(plots: list[list[Plot]]) -> list[list[Plot | None]]:
    """Plots of each run -> rows with the same plot of every run, None if a run lacks it."""
    by_title = [{plot.title: plot for plot in mine} for mine in plots]
    return [[mine.get(title) for mine in by_title] for title in dict.fromkeys(t for mine in by_title for t in mine)]


def _facts(run: RunResults) -> list[tuple[str, str]]:
    """(name, value): where the numbers come from."""
    video, scene, environment = run.record.video, run.record.scene, dict(run.environment)
    if isinstance(environment.get("command"), list):
        environment["command"] = command_line([str(word) for word in environment["command"]])
    return [
        ("video", f"{video.source}, read with {video.reader}"),
        ("frames", f"{scene.frames} of {scene.height}x{scene.width} pixels, {scene.fps:g} frames/s"),
        ("split", f"{len(scene.train)} training, {len(scene.val)} unseen"),
        ("patches", f"{scene.rows}x{scene.cols} per frame"),
        ("CLIP targets", run.targets),
        ("trained", f"{run.epoch} of {run.epochs} epochs, evaluated at epoch {run.values_epoch}"),
        *((key, _plain(value)) for key, value in environment.items() if value is not None),
    ]


def _pair(values: dict[str, float], tag: str, form: str) -> list[str]:
    """Cells for training and unseen frames; `tag` has a place for the split."""
    return [_number(values.get(tag.format(split)), form) for split in ("train", "val")]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
