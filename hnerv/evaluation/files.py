"""Files of an evaluation: eval/summary.json, the CSV tables, and the Eval/ tags under tensorboard/eval/."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from hnerv.errors import UserError
from hnerv.evaluation.combination import combine
from hnerv.evaluation.cost import cost_of
from hnerv.evaluation.measure import Report
from hnerv.evaluation.summary import CLIP_COLUMNS, eval_values, frame_columns, log_report
from hnerv.files import replacing, write_json
from hnerv.metrics import bits_per_pixel, ms_ssim_scales
from hnerv.model import Scene
from hnerv.runs.models import OpenedRun
from hnerv.tracking import RunLogger, events_folder, split_label

SUMMARY = "summary.json"
TABLES = ("per_frame.csv", "per_patch.csv")


class EvaluatedChunk(NamedTuple):
    """A chunk with its evaluation in eval/ of `folder`. `first` is the position of its first frame in the video.

    `tables` are the texts to print next to the summary.
    """

    first: int
    scene: Scene
    folder: Path
    summary: dict[str, Any]
    tables: Sequence[str] = ()


def write_evaluation(run: OpenedRun, report: Report, summary: Mapping[str, Any]) -> None:
    """Writes all files of a run or chunk in place of an earlier evaluation's; its images stay.

    Raises UserError when the files cannot be written.
    """
    with _writing(run.folder / "eval") as folder:
        with _event_logger(run.folder) as logger:
            logger.text("Model/Info/run", _text_page(run, report), run.epoch)
            log_report(logger, report, run.epoch, run.step)
        write_json(folder / SUMMARY, summary)
        _write_tables(folder, report)


def joint_summary(path: Path, chunks: Sequence[EvaluatedChunk]) -> dict[str, Any]:
    """The summary of a video in chunks. `path` is the evaluated run folder or .hnerv file."""
    summaries, frames = [chunk.summary for chunk in chunks], [chunk.scene.frames for chunk in chunks]
    joint = combine(summaries, frames)
    values = {tag: value for tag, value in joint.items() if tag.startswith("Eval/")}
    size, scene = 0 if path.is_dir() else path.stat().st_size, chunks[0].scene
    rate = bits_per_pixel(size, sum(frames), scene.height, scene.width)
    common = ("targets", "targets_kind", "unseen", "ms_ssim_scales", "video")
    return {
        "checkpoint": str(path),
        "epoch": joint["epoch"],
        "segments": len(chunks),
        **{key: summaries[0][key] for key in common},
        **values,
        **({"no_psnr_yuv": reason} if (reason := summaries[0].get("no_psnr_yuv")) else {}),
        "same_pixels_as_trained_on": all(summary["same_pixels_as_trained_on"] for summary in summaries),
        "coded_parameters": joint["coded_parameters"],
        **({"bpp": rate, "file_bytes": size} if size else {}),
        **{key: joint[key] for key in ("bpp_estimate_8bit", "gmac_per_frame", "decode_fps")},
    }


def write_joint_evaluation(folder: Path, chunks: Sequence[EvaluatedChunk], summary: Mapping[str, Any]) -> None:
    """Writes the files of a video in chunks to eval/ of `folder`, segments.csv with them, from those of its chunks.

    `summary` is that of all chunks. Raises UserError when the files cannot be written.
    """
    with _writing(folder / "eval") as place:
        for name in TABLES:
            _concatenate(place / name, [(chunk.first, chunk.folder / "eval" / name) for chunk in chunks])
        tags = list(dict.fromkeys(tag for chunk in chunks for tag in chunk.summary if tag.startswith("Eval/")))
        rows = [
            [number, chunk.first, chunk.scene.frames, *(chunk.summary.get(tag, "") for tag in tags)]
            for number, chunk in enumerate(chunks)
        ]
        _write_csv(place / "segments.csv", ["segment", "first", "frames", *tags], rows)
        with _event_logger(folder) as logger:
            logger.scalars({tag: summary[tag] for tag in summary if tag.startswith("Eval/")}, summary["epoch"])
        write_json(place / SUMMARY, summary)


def add_to_summary(folder: Path, summary: Mapping[str, Any], name: str, values: object) -> None:
    """Writes the summary with `values` under `name` over the one in eval/ of a run's folder. Raises UserError."""
    with _writing(folder / "eval") as place:
        write_json(place / SUMMARY, {**summary, name: values})


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    """Creates the folder; errors of writing in the block become a UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise UserError(
            f"cannot write the evaluation to {folder} ({error}): check disk space and permissions"
        ) from error


def _event_logger(folder: Path) -> RunLogger:
    """Logger to tensorboard/eval of a run's folder, in place of the event files of an earlier evaluation."""
    events = events_folder(folder) / "eval"
    for old in events.glob("events.out.tfevents.*"):
        old.unlink()
    return RunLogger(events, metrics=None, purge_step=0)


def _text_page(run: OpenedRun, report: Report) -> str:
    """Markdown: the targets of the similarities in these events, and what was evaluated."""
    return (
        f"**{run.record.targets_label}**\n\n"
        f"- unseen frames: {_unseen_mode(run, report)}\n"
        f"- checkpoint: `{run.checkpoint}`, epoch {run.epoch}\n"
    )


def summary_of(run: OpenedRun, report: Report, **more: object) -> dict[str, Any]:
    """The values of a report, the costs of decoding, and where they come from; `more` are entries to add.

    Small frames have fewer than the 5 `ms_ssim_scales` of the literature: their MS-SSIM is another quantity.
    """
    scene, targets = run.model.scene, run.record.targets
    return {
        "checkpoint": str(run.checkpoint),
        "epoch": run.epoch,
        "targets": run.record.targets_label,
        "targets_kind": targets.kind if targets else "none",
        "unseen": _unseen_mode(run, report),
        **eval_values(report),
        **({"no_psnr_yuv": report.no_planes} if report.no_planes else {}),
        "ms_ssim_scales": ms_ssim_scales(scene.height, scene.width),
        "video": run.source,
        "same_pixels_as_trained_on": run.same_pixels,
        **cost_of(run),
        **more,
    }


def _unseen_mode(run: OpenedRun, report: Report) -> str:
    return report.unseen if run.config.model.embedding == "encoder" else "decoded at their time stamps"


def _write_tables(folder: Path, report: Report) -> None:
    """per_frame.csv and per_patch.csv: one row per frame or patch, in the order of the video and of its patches."""
    frames, patches = [], []
    for name, split in report.splits():
        label, columns = split_label(name, report.unseen), frame_columns(split).values()
        for i, position in enumerate(split.positions.tolist()):
            clip = [measure[i].double() for measure in split.clip] if split.clip else []
            pixels = [split.psnr[i].double().mean(), *(column[i] for column in columns)]
            frames.append([position, label, *pixels, *(measure.mean() for measure in clip)])
            for patch, psnr in enumerate(split.psnr[i]):
                patches.append([position, patch, label, psnr, *(measure[patch] for measure in clip)])
    clip_names = CLIP_COLUMNS if report.train.clip else ()
    frames.sort(key=lambda row: row[0])
    patches.sort(key=lambda row: row[:2])
    names = *frame_columns(report.train), *clip_names
    _write_csv(folder / TABLES[0], ["frame", "split", "psnr", *names], frames)
    _write_csv(folder / TABLES[1], ["frame", "patch", "split", "psnr", *clip_names], patches)


def _concatenate(path: Path, tables: Sequence[tuple[int, Path]]) -> None:
    """One CSV table of several (first frame, path), read one by one; frames are numbered as in the video."""
    with replacing(path) as file:
        for number, (first, table) in enumerate(tables):
            header, *lines = table.read_text(encoding="utf-8").splitlines()
            if not number:
                file.write(f"{header}\n".encode())
            for line in lines:
                frame, _, rest = line.partition(",")
                file.write(f"{int(frame) + first},{rest}\n".encode())


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([f"{float(value):.6f}" if isinstance(value, Tensor) else value for value in row])
    with replacing(path) as file:
        file.write(text.getvalue().encode())
