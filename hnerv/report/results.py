"""Contents of a run folder as plain numbers: its record, curves and evaluation. Opens no checkpoint.

A run has chunks, mostly one; each is a run folder of its own, and `read_run` joins their contents.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hnerv.errors import UserError
from hnerv.evaluation import combine, estimated_rate
from hnerv.files import read_json
from hnerv.model import joined_scene
from hnerv.runs import chunks_of
from hnerv.runs.environment import last_start
from hnerv.runs.record import RunRecord, read_record

Curve = list[tuple[int, float]]
"""(epoch, value), in order."""


class Measurement(NamedTuple):
    """A frame (patch -1) or a patch, measured by eval.py; `split` is train, val or val-encoded; `values` by column."""

    frame: int
    patch: int
    split: str
    values: dict[str, float]

    @property
    def seen(self) -> bool:
        """Whether it was trained on."""
        return self.split == "train"


class EmbeddingScores(NamedTuple):
    """The CLIP head or one of its baselines, as `hnerv semantics` measures it.

    `size` in bytes, None for true embeddings; `splits` {'train', 'val': {measure: value}}; `texts` {measure: value} of
    text queries, empty without queries.
    """

    name: str
    size: int | None
    splits: dict[str, dict[str, float]]
    texts: dict[str, float]

    @property
    def unseen(self) -> dict[str, float]:
        """Measures of the unseen frames, or of the training frames if there are no unseen ones."""
        return self.splits.get("val") or self.splits.get("train", {})


class RunResults(NamedTuple):
    """`values` are those of the last evaluation, {Eval/ tag: value}, and `values_epoch` is its epoch (0: none).

    `summary`, `frames`, `patches` and `baselines` (the CLIP head first) are eval.py's, empty before it has run.
    """

    folder: Path
    name: str
    record: RunRecord
    curves: dict[str, Curve]
    values: dict[str, float]
    values_epoch: int
    summary: dict
    frames: list[Measurement]
    patches: list[Measurement]
    environment: dict
    baselines: tuple[EmbeddingScores, ...] = ()
    first: int = 0
    """Position of the first frame within the video, of a chunk."""
    chunks: tuple[RunResults, ...] = ()
    """The chunks that have been started, in order; empty for a chunk itself."""

    @property
    def epoch(self) -> int:
        """The last epoch that was trained, 0 before the end of the first."""
        return max((points[-1][0] for tag, points in self.curves.items() if tag.startswith("Train/")), default=0)

    @property
    def epochs(self) -> int:
        """Number of epochs that the configuration sets."""
        return self.record.config.train.epochs

    @property
    def targets(self) -> str:
        """The targets that the similarities of this run refer to."""
        return self.record.targets_label


def headline_values(run: RunResults) -> dict[str, object]:
    """The numbers of a run that a table of many shows; those that were not measured are missing.

    Full-frame PSNR of training frames and of the others in dB, an estimate of the rate in bits per pixel at 8 bits per
    parameter, similarity of unseen frames (else of all) to the targets, seconds of training.
    """
    values = {
        "psnr": run.values.get("Eval/Frame/train_psnr_frame"),
        "psnr_unseen": run.values.get("Eval/Frame/val_psnr_frame"),
        "bpp_estimate_8bit": estimated_rate(run.record.parameters, run.record.scene),
        "clip_sim": run.values.get("Eval/Frame/val_clip_sim", run.values.get("Eval/Frame/train_clip_sim")),
        "seconds": sum(seconds for chunk in run.chunks for _, seconds in chunk.curves.get("seconds", [])),
        "targets": run.targets,
    }
    return {key: value for key, value in values.items() if value is not None}


def read_run(folder: Path, name: str = "") -> RunResults:
    """Reads a run folder, finished or not. `name` defaults to that of the folder.

    Raises UserError where it is no run folder, where no chunk has been started, or where a file is damaged.
    """
    parts = chunks_of(folder)
    started = [part for part in parts if not part.is_part or (part.path / "config.json").is_file()]
    if not started:
        raise UserError(f"no segment of {folder} has been started: run the training command first")
    chunks = tuple(_read_chunk(part.path)._replace(first=part.first) for part in started)
    return _joined(chunks)._replace(folder=folder, name=name or folder.resolve().name, chunks=chunks)


def _read_chunk(folder: Path) -> RunResults:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder (it has no config.json): pass output/NAME")
    curves, summary = read_curves(folder / "metrics.jsonl"), _read_summary(folder / "eval" / "summary.json")
    values, epoch = _last_evaluation(curves, summary)
    return RunResults(
        folder=folder,
        name=folder.resolve().name,
        record=read_record(path),
        curves=curves,
        values=values,
        values_epoch=epoch,
        summary=summary,
        frames=_measurements(folder / "eval" / "per_frame.csv"),
        patches=_measurements(folder / "eval" / "per_patch.csv"),
        environment=last_start(folder / "environment.json"),
        baselines=_baselines(folder / "eval" / "summary.json", summary),
    )


def _joined(chunks: Sequence[RunResults]) -> RunResults:
    """Curves are means over the chunks, frames are counted through, values are those of all frames.

    Baselines of the CLIP head are left out: they are measured chunk by chunk.
    """
    if len(chunks) == 1:
        return chunks[0]
    record, measured = chunks[0].record, [chunk for chunk in chunks if chunk.values]
    sizes = [chunk.record.coded_parameters for chunk in chunks]
    joined_record = dataclasses.replace(
        record,
        scene=joined_scene([chunk.record.scene for chunk in chunks]),
        coded_parameters={name: sum(size.get(name, 0) for size in sizes) for name in sizes[0]},
        config=record.config.replaced({"frames": f"{len(chunks)} segments"}),
    )
    return chunks[0]._replace(
        record=joined_record,
        curves=_mean_curves(chunks),
        values=combine([chunk.values for chunk in measured]),
        values_epoch=min((chunk.values_epoch for chunk in measured), default=0),
        summary=_joined_summary(chunks),
        frames=[row._replace(frame=row.frame + chunk.first) for chunk in chunks for row in chunk.frames],
        patches=[row._replace(frame=row.frame + chunk.first) for chunk in chunks for row in chunk.patches],
        environment=chunks[-1].environment,
        baselines=(),
    )


def _mean_curves(chunks: Sequence[RunResults]) -> dict[str, Curve]:
    """{tag: mean over the chunks that have the tag at that epoch}."""
    curves: dict[str, Curve] = {}
    for tag in dict.fromkeys(tag for chunk in chunks for tag in chunk.curves):
        at: dict[int, list[float]] = {}
        for chunk in chunks:
            for epoch, value in chunk.curves.get(tag, []):
                at.setdefault(epoch, []).append(value)
        curves[tag] = [(epoch, sum(values) / len(values)) for epoch, values in sorted(at.items())]
    return curves


def _joined_summary(chunks: Sequence[RunResults]) -> dict:
    """The epoch, and the speed of decoding all frames; empty until every chunk has been evaluated."""
    if not all("decode_fps" in chunk.summary for chunk in chunks):
        return {}
    frames = [chunk.record.scene.frames for chunk in chunks]
    seconds = sum(count / chunk.summary["decode_fps"] for count, chunk in zip(frames, chunks, strict=True))
    return {"epoch": min(chunk.summary["epoch"] for chunk in chunks), "decode_fps": sum(frames) / seconds}


def read_curves(path: Path) -> dict[str, Curve]:
    """metrics.jsonl -> {tag: points}; 'seconds' is the time of an epoch. Empty without a file.

    A last line that is still being written is left out. Raises UserError for any other that is no record.
    """
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore or delete it") from error
    curves: dict[str, Curve] = {}
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
            epoch = record["epoch"]
            if type(epoch) is not int:
                raise TypeError("invalid epoch")
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is damaged at line {number}: delete that line") from error
        for tag, value in record.items():
            if tag not in ("kind", "epoch", "step") and isinstance(value, int | float):
                curves.setdefault(tag, []).append((epoch, float(value)))
    return curves


def is_current(folder: Path, epoch: int, checkpoint: Path) -> bool:
    """Whether eval/ is an evaluation of `checkpoint`, which is at `epoch`, and not older than it."""
    path, tables = folder / "eval" / "summary.json", ("per_frame.csv", "per_patch.csv")
    if not path.is_file() or not all((folder / "eval" / name).is_file() for name in tables):
        return False
    summary = _read_summary(path)
    same = summary.get("epoch") == epoch and Path(summary.get("checkpoint", "")).name == checkpoint.name
    return same and path.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns


def _read_summary(path: Path) -> dict:
    summary = read_json(path) if path.is_file() else {}
    if not isinstance(summary, dict) or type(summary.get("epoch", 0)) is not int:
        raise UserError(f"{path} is not a summary written by eval.py: delete it and run eval.py again")
    return summary


def _baselines(path: Path, summary: dict) -> tuple[EmbeddingScores, ...]:
    def numbers(values: dict) -> dict[str, float]:
        return {str(name): float(value) for name, value in values.items()}

    try:
        return tuple(
            EmbeddingScores(
                str(row["name"]),
                None if row["bytes"] is None else int(row["bytes"]),
                {name: numbers(values) for name, values in row["splits"].items()},
                numbers(row.get("texts", {})),
            )
            for row in summary.get("semantics", {"rows": ()})["rows"]
        )
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is damaged at 'semantics': delete it and run eval.py again") from error


def _last_evaluation(curves: dict[str, Curve], summary: dict) -> tuple[dict[str, float], int]:
    """The evaluation of training or of eval.py: that of the later epoch, or eval.py's if both have the same epoch."""
    last = {tag: points[-1] for tag, points in curves.items() if tag.startswith("Eval/")}
    epoch = max((at for at, _ in last.values()), default=0)
    if summary.get("epoch", -1) >= epoch:
        return {tag: value for tag, value in summary.items() if tag.startswith("Eval/")}, summary["epoch"]
    return {tag: value for tag, (at, value) in last.items() if at == epoch}, epoch


def _measurements(path: Path) -> list[Measurement]:
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [_measurement(row) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run eval.py again") from error


def _measurement(row: dict[str, str]) -> Measurement:
    values = {name: float(text) for name, text in row.items() if name not in ("frame", "patch", "split")}
    return Measurement(int(row["frame"]), int(row.get("patch", -1)), row["split"], values)
