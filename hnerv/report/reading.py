"""What a run folder holds, as plain numbers: its record, its curves, its evaluation. Opens no checkpoint."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import NamedTuple

from hnerv.errors import UserError
from hnerv.files import read_json
from hnerv.runs.record import RunRecord, read_record

Curve = list[tuple[int, float]]
"""(epoch, value), in order."""


class Row(NamedTuple):
    """A frame (patch -1) or a patch of an evaluation; `split` is train, val or val-encoded; `values` by column."""

    frame: int
    patch: int
    split: str
    values: dict[str, float]

    @property
    def seen(self) -> bool:
        """Whether it was trained on."""
        return self.split == "train"


class Beside(NamedTuple):
    """A means of having embeddings, the CLIP head or a baseline, as `hnerv semantics` measures it.

    `size` in bytes, None where they are the true ones; `splits` {'train', 'val': {measure: value}}, `texts` {measure:
    value} of text queries, empty where there are none.
    """

    name: str
    size: int | None
    splits: dict[str, dict[str, float]]
    texts: dict[str, float]

    @property
    def unseen(self) -> dict[str, float]:
        """Of unseen frames where there are any, otherwise of those that were trained on."""
        return self.splits.get("val") or self.splits.get("train", {})


class RunData(NamedTuple):
    """`values` are those of the last evaluation, {Eval/ tag: value}, and `values_epoch` is its epoch (0: none).

    `summary`, `frames`, `patches` and `beside` (the CLIP head first) are eval.py's, empty where it has not been run.
    """

    folder: Path
    name: str
    record: RunRecord
    curves: dict[str, Curve]
    values: dict[str, float]
    values_epoch: int
    summary: dict
    frames: list[Row]
    patches: list[Row]
    environment: dict
    beside: tuple[Beside, ...] = ()

    @property
    def epoch(self) -> int:
        """The last epoch that was trained, 0 before the first ended."""
        return max((points[-1][0] for tag, points in self.curves.items() if tag.startswith("Train/")), default=0)

    @property
    def epochs(self) -> int:
        """How many the configuration asks for."""
        return self.record.config.train.epochs

    @property
    def targets(self) -> str:
        """What the similarities of this run are to."""
        return self.record.targets_label

    def settings(self) -> dict[str, dict[str, object]]:
        """{section: {setting: value}} as it was trained."""
        return self.record.config.to_dict()


def read_run(folder: Path, name: str = "") -> RunData:
    """The folder of a run, finished or not. Raises UserError where it is none, or where a file of it is damaged."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder (it has no config.json): pass output/NAME")
    record = read_record(path)
    curves = read_curves(folder / "metrics.jsonl")
    summary = _summary(folder / "eval" / "summary.json")
    values, epoch = _last_evaluation(curves, summary)
    starts = read_json(folder / "environment.json") if (folder / "environment.json").is_file() else []
    return RunData(
        folder=folder,
        name=name or folder.resolve().name,
        record=record,
        curves=curves,
        values=values,
        values_epoch=epoch,
        summary=summary,
        frames=_rows(folder / "eval" / "per_frame.csv"),
        patches=_rows(folder / "eval" / "per_patch.csv"),
        environment=starts[-1] if starts else {},
        beside=_beside(folder / "eval" / "summary.json", summary),
    )


def read_curves(path: Path) -> dict[str, Curve]:
    """metrics.jsonl -> {tag: points}; 'seconds' is the time of an epoch. Empty where there is no file.

    A last line that its writer had not ended is left out. Raises UserError for any other that is no record.
    """
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore or delete it") from error
    curves: dict[str, Curve] = {}
    for number, line in enumerate(lines[:-1], start=1):
        record = _record(path, number, line)
        for tag, value in record.items():
            if tag not in ("kind", "epoch", "step") and isinstance(value, int | float):
                curves.setdefault(tag, []).append((record["epoch"], float(value)))
    return curves


def is_current(folder: Path, epoch: int, checkpoint: Path) -> bool:
    """Whether eval/ is of `checkpoint`, which stands at `epoch`, and not older than it."""
    summary, tables = folder / "eval" / "summary.json", ("per_frame.csv", "per_patch.csv")
    if not summary.is_file() or not all((folder / "eval" / name).is_file() for name in tables):
        return False
    found = _summary(summary)
    same = found.get("epoch") == epoch and Path(found.get("checkpoint", "")).name == checkpoint.name
    return same and summary.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns


def _record(path: Path, number: int, line: str) -> dict:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("epoch"), int):
        raise UserError(f"{path} is damaged at line {number}: delete that line")
    return record


def _summary(path: Path) -> dict:
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a summary written by eval.py: delete it and run eval.py again")
    return found


def _beside(path: Path, summary: dict) -> tuple[Beside, ...]:
    """Raises UserError where the rows are not those that eval.py writes."""
    try:
        return tuple(_beside_row(row) for row in summary.get("semantics", {"rows": ()})["rows"])
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is damaged at 'semantics': delete it and run eval.py again") from error


def _beside_row(row: dict) -> Beside:
    size = None if row["bytes"] is None else int(row["bytes"])
    splits = {name: _numbers(values) for name, values in row["splits"].items()}
    return Beside(str(row["name"]), size, splits, _numbers(row.get("texts", {})))


def _numbers(values: dict) -> dict[str, float]:
    return {str(name): float(value) for name, value in values.items()}


def _last_evaluation(curves: dict[str, Curve], summary: dict) -> tuple[dict[str, float], int]:
    """That of training or that of eval.py, whichever is of the later epoch; eval.py's where both are of the same."""
    ours = {tag: points[-1] for tag, points in curves.items() if tag.startswith("Eval/")}
    epoch = max((at for at, _ in ours.values()), default=0)
    if summary.get("epoch", -1) >= epoch:
        return {tag: value for tag, value in summary.items() if tag.startswith("Eval/")}, summary["epoch"]
    return {tag: value for tag, (at, value) in ours.items() if at == epoch}, epoch


def _rows(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [_row(cells) for cells in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run eval.py again") from error


def _row(cells: dict[str, str]) -> Row:
    own = {"frame", "patch", "split"}
    values = {name: float(text) for name, text in cells.items() if name not in own}
    return Row(int(cells["frame"]), int(cells.get("patch", -1)), cells["split"], values)
