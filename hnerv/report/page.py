"""Runs -> one HTML page, whole in itself: no request leaves it, every text in it is escaped."""

from __future__ import annotations

import time
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from hnerv import __version__
from hnerv.config import differences
from hnerv.errors import UserError
from hnerv.files import replacing
from hnerv.report.findings import RULES, Finding, findings_of
from hnerv.report.pictures import ERROR_TOP, Shown
from hnerv.report.plots import Plot, distribution_plots, frame_plots, patch_plots, training_plots
from hnerv.report.reading import RunData
from hnerv.report.wholes import Segment


class Story(NamedTuple):
    """A run and what is told of it. `missing` are sentences on what the page lacks and how to get it.

    `segments` are those of a video that is divided, in order.
    """

    run: RunData
    shown: list[Shown]
    missing: list[str]
    segments: tuple[Segment, ...] = ()

    @property
    def frames_shown(self) -> list[int]:
        return [shot.row.frame for shot in self.shown]


class Cells(NamedTuple):
    """A row of the summary table; a run has two cells (training, unseen) or one that spans both."""

    label: str
    help: str
    cells: list[list[str]]


class Table(NamedTuple):
    """`heads` are those of the columns after the first, rows are (name, cells)."""

    heads: list[str]
    rows: list[tuple[str, list[str]]]
    note: str


class Told(NamedTuple):
    """What the template needs of one run."""

    name: str
    targets: str
    targets_short: str
    findings: list[Finding]
    shown: list[Shown]
    missing: list[str]
    settings: dict[str, dict[str, str]]
    made: list[tuple[str, str]]
    baselines: Table | None
    segments: Table | None


def render(stories: list[Story]) -> str:
    """The page of one run, or of several side by side. Raises UserError where their configurations cannot be read."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    runs = [story.run for story in stories]
    engine = Environment(
        loader=PackageLoader("hnerv.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    parts = resources.files("hnerv.report")
    return engine.get_template("page.html").render(
        title=" · ".join(run.name for run in runs),
        style=parts.joinpath("page.css").read_text(encoding="utf-8"),
        script=parts.joinpath("page.js").read_text(encoding="utf-8"),
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M"),
        runs=[_told(story) for story in stories],
        summary=summary_rows(runs),
        changed=changed_settings(runs),
        curves=training_plots(runs),
        groups=[(title, lead, _by_title([plots(run) for run in runs])) for title, lead, plots in GROUPS],
        rules=RULES,
        error_top=f"{100 * ERROR_TOP:g} %",
    )


def write_page(path: Path, stories: list[Story]) -> int:
    """Writes the page, whole or not at all; returns its bytes. Raises UserError."""
    return save_page(path, render(stories))


def save_page(path: Path, text: str) -> int:
    """Any page, whole or not at all; returns its bytes. Raises UserError."""
    data = text.encode("utf-8", errors="replace")
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): pass another file with --output") from error
    return len(data)


def summary_rows(runs: list[RunData]) -> list[Cells]:
    """The table at the top; rows that no run has a value for are left out."""
    rows = []
    for label, help, tag, form in SPLIT_ROWS:
        tags = [tag.format(split) for split in ("train", "val")]
        rows.append(Cells(label, help, [[_shown(run.values.get(tag), form) for tag in tags] for run in runs]))
    for label, help, number, form in RUN_ROWS:
        rows.append(Cells(label, help, [[_shown(number(run), form)] for run in runs]))
    return [row for row in rows if any(cell != "–" for cells in row.cells for cell in cells)]


def changed_settings(runs: list[RunData]) -> dict[str, list[str]]:
    """{setting: its value in each run} of the settings in which any run differs from the first."""
    if len(runs) == 1:
        return {}
    configs = [run.record.config for run in runs]
    names = dict.fromkeys(name for other in configs[1:] for name in differences(configs[0], other))
    return {name: [_plain(config.flat()[name]) for config in configs] for name in names}


def _told(story: Story) -> Told:
    run = story.run
    return Told(
        name=run.name,
        targets=run.targets,
        targets_short=short_targets(run.targets),
        findings=findings_of(run),
        shown=story.shown,
        missing=story.missing,
        settings={name: {k: _plain(v) for k, v in knobs.items()} for name, knobs in run.settings().items()},
        made=_made(run),
        baselines=beside_table(run),
        segments=segments_table(story.segments),
    )


def segments_table(segments: tuple[Segment, ...]) -> Table | None:
    """A row per segment, training / unseen in a cell; None where a video is not divided."""
    if not segments:
        return None
    shown = [row for row in SPLIT_ROWS if any(row[2].format("train") in part.run.values for part in segments)]
    rows = []
    for first, run in segments:
        frames = f"{first}–{first + run.record.scene.frames - 1}"
        pairs = ([_shown(run.values.get(tag.format(s)), form) for s in ("train", "val")] for *_, tag, form in shown)
        rows.append((run.name, [frames, str(run.epoch), *map(" / ".join, pairs)]))
    return Table(["frames", "epochs", *(label for label, *_ in shown)], rows, "")


def beside_table(run: RunData) -> Table | None:
    """The CLIP head and its baselines, training / unseen in a cell; None where they were not measured."""
    if not run.beside:
        return None
    shown = [name for name in BESIDE if any(name in values for row in run.beside for values in row.splits.values())]
    texts = [name for name in BESIDE if any(name in row.texts for row in run.beside)]
    heads = ["bytes", *shown, *(f"text {name}" for name in texts)]
    rows = []
    for row in run.beside:
        cells = ["–" if row.size is None else f"{row.size:,}"]
        cells += [" / ".join(_shown(row.splits.get(s, {}).get(n), "{:.3f}") for s in ("train", "val")) for n in shown]
        cells += [_shown(row.texts.get(name), "{:.3f}") for name in texts]
        rows.append((row.name, cells))
    found = run.summary["semantics"]
    count = f" The text columns use {found['queries']} queries." if texts else ""
    note = f"Each cell shows training / unseen frames, measured by eval.py at epoch {run.summary.get('epoch')}."
    return Table(heads, rows, f"{note} The size of the CLIP head is {found.get('head_bytes_are')}.{count}")


def short_targets(label: str, most: int = 64) -> str:
    """What the targets are, as far as there is room beside a picture: without what stands in parentheses."""
    label = label.split(" (")[0]
    return label if len(label) <= most else label[: most - 1] + "…"


def _by_title(plots: list[list[Plot]]) -> list[list[Plot | None]]:
    """Plots of each run -> rows of the same plot of every run, None where a run lacks it."""
    titles = dict.fromkeys(plot.title for mine in plots for plot in mine)
    return [[next((plot for plot in mine if plot.title == title), None) for mine in plots] for title in titles]


def _made(run: RunData) -> list[tuple[str, str]]:
    """(what, value): where the numbers come from."""
    from hnerv.training.pages import command_line

    video, scene, found = run.record.video, run.record.scene, dict(run.environment)
    if isinstance(found.get("command"), list):
        found["command"] = command_line([str(word) for word in found["command"]])
    return [
        ("video", f"{video.source}, read with {video.reader}"),
        ("frames", f"{scene.frames} of {scene.height}x{scene.width} pixels, {scene.fps:g} frames/s"),
        ("split", f"{len(scene.train)} training, {len(scene.val)} unseen"),
        ("patches", f"{scene.rows}x{scene.cols} per frame"),
        ("CLIP targets", run.targets),
        ("trained", f"{run.epoch} of {run.epochs} epochs, evaluated at epoch {run.values_epoch}"),
        *((key, _plain(value)) for key, value in found.items() if value is not None),
    ]


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def coded_parameters(run: RunData) -> int:
    return run.record.parameters


def estimated_rate(run: RunData) -> float:
    from hnerv.metrics import bits_per_pixel

    scene = run.record.scene
    return bits_per_pixel(coded_parameters(run), scene.frames, scene.height, scene.width)


BESIDE = ("cosine", "centred", "recall@1", "recall@10", "overlap@10", "Spearman")
"""Measures of `hnerv semantics` that the page shows."""

GROUPS = (
    ("Frame by frame", "The grey line connects frames in time order. Unseen frames were not trained on.", frame_plots),
    ("Patch by patch", "Where in the frame, and when, the model does well (bright) or poorly (dark).", patch_plots),
    ("Distributions", "Bars show shares within a split, because the splits differ in size.", distribution_plots),
)
"""(title, lead, plots of a run)."""

SPLIT_ROWS = (
    ("full-frame PSNR, dB", "from the error of the full 8-bit frame, as reported in the literature",
     "Eval/Frame/{}_psnr_frame", "{:.2f}"),
    ("PSNR, mean of patches, dB", "PSNR of each patch, averaged", "Eval/Frame/{}_psnr", "{:.2f}"),
    ("worst frame, dB", "lowest PSNR of a frame, mean of patches", "Eval/PSNR_Stats/{}_min", "{:.2f}"),
    ("MS-SSIM", "fewer than five scales for frames smaller than 161 pixels", "Eval/Frame/{}_ms_ssim", "{:.4f}"),
    ("similarity", "cosine to the targets", "Eval/Frame/{}_clip_sim", "{:.3f}"),
    ("centred similarity", "after removing the mean of the training targets",
     "Eval/Frame/{}_clip_sim_centred", "{:.3f}"),
    ("recall@1", "share of true embeddings that retrieve their own patch",
     "Eval/Frame/{}_clip_retrieval", "{:.3f}"),
)  # fmt: skip
"""(label, help, tag with a place for the split, format)."""

RUN_ROWS = (
    ("generalisation gap, dB", "training minus unseen PSNR, mean of patches",
     lambda run: run.values.get("Eval/Gap/psnr_gap"), "{:.2f}"),
    ("coded parameters", "decoder, heads and embeddings", coded_parameters, "{:,}"),
    ("rate, bits per pixel", "estimated at 8 bits per parameter, not a file size",
     estimated_rate, "{:.4f}"),
    ("decoding speed, frames/s", "on the machine that ran the evaluation",
     lambda run: run.summary.get("decode_fps"), "{:.1f}"),
    ("epochs", "completed", lambda run: run.epoch, "{}"),
    ("evaluated at epoch", "epoch that these results belong to", lambda run: run.values_epoch or None, "{}"),
)  # fmt: skip
"""(label, help, number of a run, format)."""
