"""A Report -> numbers by name: the Eval/ tags, histograms, and the printed table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hnerv.evaluation.health import EmbeddingHealth
from hnerv.evaluation.measure import Report, SplitReport
from hnerv.metrics import ms_ssim_db, paired_gap, psnr_yuv
from hnerv.tables import Column, format_table
from hnerv.tracking import NullLogger, split_name

CLIP_COLUMNS = (
    "clip_sim",
    "clip_sim_centred",
    "clip_retrieval",
    "clip_retrieval_exact",
    "clip_recall5",
    "clip_recall10",
    "clip_overlap10",
    "clip_spearman",
)
"""Names of the fields of ClipMeasures in tags and CSV files."""

PAIRED_GAP = "Eval/Gap/psnr_gap_paired"
PAIRED_GAP_ERROR = "Eval/Gap/psnr_gap_paired_error"


def eval_values(report: Report) -> dict[str, float]:
    """{Eval/ tag: value}, without what was not measured. Deviations are of the population (divided by F)."""
    values: dict[str, float] = {}
    for name, split in report.splits():
        values |= _split_values(name, split)
    values |= gap_values(values) | _paired_gap_values(report)
    for moment, numbers in report.features._asdict().items():
        values |= {f"Model/Features/stage{n}_{moment}": number for n, number in enumerate(numbers)}
    return values


def gap_values(values: dict[str, float]) -> dict[str, float]:
    """Training minus unseen frames, where {Eval/ tag: value} has both."""
    gaps = {}
    for quantity in ("psnr", "clip_sim"):
        pair = [values.get(f"Eval/Frame/{name}_{quantity}") for name in ("train", "val")]
        if None not in pair:
            gaps[f"Eval/Gap/{quantity}_gap"] = pair[0] - pair[1]
    return gaps


def _paired_gap_values(report: Report) -> dict[str, float]:
    """Empty without unseen frames, and where they are too few for a standard error."""
    if report.val is None:
        return {}
    columns = (column for _, split in report.splits() for column in (split.positions, split.psnr.double().mean(1)))
    gap = paired_gap(*columns)
    return {} if gap is None else {PAIRED_GAP: gap.gap, PAIRED_GAP_ERROR: gap.error}


def _split_values(name: str, split: SplitReport) -> dict[str, float]:
    frame_psnr = split.psnr.double().mean(1)
    values = {
        f"Eval/Frame/{name}_psnr": frame_psnr.mean(),
        **{f"Eval/Frame/{name}_{key}": column.double().mean() for key, column in frame_columns(split).items()},
        f"Eval/PSNR_Stats/{name}_std": frame_psnr.std(correction=0),
        f"Eval/PSNR_Stats/{name}_min": frame_psnr.min(),
        f"Eval/PSNR_Stats/{name}_max": frame_psnr.max(),
        f"Eval/Patch/{name}_psnr_std": split.psnr.double().std(correction=0),
        f"Eval/Info/num_{name}_frames": len(split.positions),
        f"Eval/Info/num_{name}_patches": split.psnr.numel(),
    }
    if split.clip:
        sim = split.clip.sim.double()
        means = (measure.double().mean() for measure in split.clip)
        values |= {
            f"Eval/Frame/{name}_clip_dist": 1 - sim.mean(),
            **{f"Eval/Frame/{name}_{column}": mean for column, mean in zip(CLIP_COLUMNS, means, strict=True)},
            f"Eval/Patch/{name}_clip_sim_std": sim.std(correction=0),
            f"Eval/Patch/{name}_clip_sim_min": sim.min(),
            f"Eval/Patch/{name}_clip_sim_max": sim.max(),
            **_health_values(name, split.health),
        }
    return {tag: float(value) for tag, value in values.items()}


def frame_columns(split: SplitReport) -> dict[str, Tensor]:
    """{name in tags and CSV files: measure of pixels of each frame (F,)}, without what was not measured."""
    columns = {"psnr_frame": split.psnr_frame, "ms_ssim": split.ms_ssim, "ms_ssim_db": ms_ssim_db(split.ms_ssim)}
    if split.planes is not None:
        columns |= {"psnr_y": split.planes[:, 0], "psnr_yuv": psnr_yuv(split.planes)}
    return columns if split.vmaf is None else columns | {"vmaf": split.vmaf}


def _health_values(name: str, health: EmbeddingHealth) -> dict[str, float]:
    values = {f"Eval/Embedding/{name}_{key}": value for key, value in health.predicted._asdict().items()}
    values |= {
        f"Eval/Embedding/{name}_target_rank": health.target.effective_rank,
        f"Eval/Embedding/{name}_target_pairwise_sim": health.target.pairwise_sim,
        f"Eval/Embedding/{name}_norm": health.norm,
    }
    return values if health.nmse is None else values | {f"Eval/Patch/{name}_clip_nmse": health.nmse}


def eval_histograms(report: Report) -> dict[str, Tensor]:
    """{Eval/Histogram tag: values of the frames (F,)}."""
    histograms = {}
    for name, split in report.splits():
        histograms[f"Eval/Histogram/{name}_psnr_distribution"] = split.psnr.mean(1)
        if split.clip:
            histograms[f"Eval/Histogram/{name}_clip_sim_distribution"] = split.clip.sim.mean(1)
    return histograms


def log_report(logger: NullLogger, report: Report, epoch: int, step: int) -> dict[str, float]:
    """Writes an evaluation under its epoch; returns its values."""
    values = eval_values(report)
    logger.scalars(values, epoch)
    for tag, sample in eval_histograms(report).items():
        logger.histogram(tag, sample, epoch)
    label = {"unseen": report.unseen} if report.unseen == "encode" else {}
    logger.record("eval", {"epoch": epoch, "step": step, **label, **values})
    return values


def table(values: Mapping[str, Any], targets: str, unseen: str = "") -> str:
    """{Eval/ tag: value} as a text table, training and unseen frames side by side. `targets` explains similarity."""
    columns = [Column("", "36"), *(Column(split_name(s, unseen), a) for s, a in (("train", ">12"), ("val", ">16")))]
    rows = []
    for label, tag, form in _ROWS:
        cells = [values.get(tag.format(split)) for split in ("train", "val")]
        if cells != [None, None]:
            rows.append((label, *(cell if cell is None else format(cell, form) for cell in cells)))
    lines = [format_table(columns, rows)]
    if (gap := values.get("Eval/Gap/psnr_gap")) is not None:
        lines.append(f"generalisation gap, dB: {gap:.3f}{_paired_gap_text(values)}")
    if "Eval/Frame/train_clip_sim" in values:
        lines.append(f"similarity is measured against the targets: {targets}")
    if "Eval/Frame/val_psnr" not in values:
        lines.append("The split holds out no frames: there are no results for unseen frames.")
    elif unseen == "encode":
        lines.append("Unseen frames were decoded from their own embeddings: the encoder has seen them.")
    if "no_psnr_yuv" in values:
        lines.append(f"PSNR in YUV was not measured: {values['no_psnr_yuv']}.")
    return "\n".join(lines)


def _paired_gap_text(values: Mapping[str, Any]) -> str:
    if PAIRED_GAP not in values:
        return ""
    return f", {values[PAIRED_GAP]:.3f} ± {values[PAIRED_GAP_ERROR]:.3f} to adjacent training frames (standard error)"


_ROWS = (
    ("frames", "Eval/Info/num_{}_frames", ".0f"),
    ("patches", "Eval/Info/num_{}_patches", ".0f"),
    ("PSNR, mean of patches, dB", "Eval/Frame/{}_psnr", ".3f"),
    ("  standard deviation over frames", "Eval/PSNR_Stats/{}_std", ".3f"),
    ("  worst frame, mean of patches", "Eval/PSNR_Stats/{}_min", ".3f"),
    ("  best frame, mean of patches", "Eval/PSNR_Stats/{}_max", ".3f"),
    ("  standard deviation over patches", "Eval/Patch/{}_psnr_std", ".3f"),
    ("full-frame PSNR (literature), dB", "Eval/Frame/{}_psnr_frame", ".3f"),
    ("PSNR of YUV, weighted 6:1:1, dB", "Eval/Frame/{}_psnr_yuv", ".3f"),
    ("  luma", "Eval/Frame/{}_psnr_y", ".3f"),
    ("MS-SSIM", "Eval/Frame/{}_ms_ssim", ".5f"),
    ("  in dB, mean over frames", "Eval/Frame/{}_ms_ssim_db", ".3f"),
    ("VMAF", "Eval/Frame/{}_vmaf", ".3f"),
    ("similarity to the targets", "Eval/Frame/{}_clip_sim", ".4f"),
    ("  standard deviation over patches", "Eval/Patch/{}_clip_sim_std", ".4f"),
    ("  centred", "Eval/Frame/{}_clip_sim_centred", ".4f"),
    ("  recall@1", "Eval/Frame/{}_clip_retrieval", ".4f"),
    ("  exact@1 (its own frame only)", "Eval/Frame/{}_clip_retrieval_exact", ".4f"),
    ("  recall@5", "Eval/Frame/{}_clip_recall5", ".4f"),
    ("  recall@10", "Eval/Frame/{}_clip_recall10", ".4f"),
    ("  overlap@10", "Eval/Frame/{}_clip_overlap10", ".4f"),
    ("  Spearman", "Eval/Frame/{}_clip_spearman", ".4f"),
)
"""(label, tag with a place for the split, format)."""
