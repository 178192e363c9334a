"""Checkpoints: plain dictionaries and tensors, written so that a good file is never lost, read without pickle."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from hnerv.errors import RunError, UserError
from hnerv.files import replacing
from hnerv.runs.record import PARTS, RunRecord

FORMAT = 2
KEYS = {"format", "run", "model", "optimizer", "progress", "evaluation"}
PROGRESS_KEYS = {
    "epoch", "step", "step_in_epoch", "records", "times", "best", "logs", "window", "peak", "rollbacks", "lr_scale",
    "clock",
}  # fmt: skip


def save_checkpoint(path: Path, state: dict) -> None:
    """Writes atomically (`files.replacing`); `state["run"]` is a RunRecord. Raises RunError if the disk refuses."""
    try:
        with replacing(path) as file:
            torch.save({"format": FORMAT, **state, "run": state["run"].to_dict()}, file)
    except (OSError, RuntimeError) as error:
        kept = "the previous checkpoint is intact" if path.exists() else "there is no previous checkpoint"
        raise RunError(
            f"cannot write {path} ({error}); {kept}: free disk space or fix the permissions, then run the same command"
        ) from error


def load_checkpoint(path: Path) -> dict:
    """The state that `save_checkpoint` was given, tensors on the CPU. Raises UserError for a missing or damaged one."""
    try:
        _check_sums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: pass a run folder, a checkpoint (.pt) or a .hnerv file") from None
    except Exception as error:  # what the unpickler raises on foreign bytes has no bounds
        if path.suffix == ".hnerv":
            raise UserError(f"{path} is a .hnerv file: pass the run folder or checkpoint it was made from") from error
        cause = str(error).split("\n")[0][:160] or type(error).__name__
        raise UserError(f"{path} is corrupt or not an hnerv checkpoint ({cause}): {_mend(path)}") from error
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"{path} is not an hnerv checkpoint: pass one written by train_patch_dual.py")
    if type(state["format"]) is not type(FORMAT) or state["format"] != FORMAT:
        raise UserError(
            f"{path} has format {state['format']}, but this version reads {FORMAT}: use the hnerv version that wrote "
            "it (its commit is in the run's environment.json)"
        )
    if set(state) != KEYS:
        raise UserError(f"{path} is damaged: missing or extra keys {sorted(set(state) ^ KEYS, key=str)}: {_mend(path)}")
    for part, needed in (("run", PARTS), ("progress", PROGRESS_KEYS)):
        if missing := needed - set(state[part] if isinstance(state[part], dict) else ()):
            raise UserError(f"{path} is damaged: its {part!r} is missing {sorted(missing)}: {_mend(path)}")
    record = RunRecord.from_dict(state["run"], path)
    if fault := _fault(state):
        raise UserError(f"{path} is damaged: its {fault!r} is invalid: {_mend(path)}")
    return {**state, "run": record}


def _fault(state: dict) -> str:
    """The part whose values are of another kind than we write, '' where there is none."""
    progress, optimizer = state["progress"], state["optimizer"]
    if not _is_dict_of(state["model"], _is_weight):
        return "model"
    if not isinstance(optimizer, dict) or not {"state", "param_groups"} <= set(optimizer):
        return "optimizer"
    if any(type(progress[key]) is not int or progress[key] < 0 for key in ("epoch", "step", "step_in_epoch")):
        return "progress"
    if type(progress["best"]) not in (int, float) or not _is_dict_of(progress["logs"], lambda size: type(size) is int):
        return "progress"
    return "" if _is_dict_of(state["evaluation"], lambda value: type(value) in (int, float)) else "evaluation"


def _is_dict_of(part: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(part, dict) and all(isinstance(key, str) and fits(value) for key, value in part.items())


def _is_weight(value: object) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_complex()
        and not value.is_quantized
    )


def _mend(path: Path) -> str:
    """Only a run's own latest.pt may be deleted: its best.pt then takes its place."""
    if path.name == "latest.pt" and path.with_name("best.pt").is_file():
        return "pass best.pt, or delete this file to resume from best.pt"
    return "pass the run folder or another of its checkpoints"


_FOLDER = 0x10
"""Of the attributes that MS-DOS gave to files: torch reads nothing from an entry that has it, and says nothing."""


def _check_sums(path: Path) -> None:
    """torch reads the archive without looking at its check sums, so a flipped bit would pass as a weight."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise zipfile.BadZipFile(f"{entry.filename} is compressed, which checkpoints never are")
            if entry.external_attr & _FOLDER:
                raise zipfile.BadZipFile(f"{entry.filename} is marked as a folder")
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise zipfile.BadZipFile("it declares more bytes than it has")
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
