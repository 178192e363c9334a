"""Checkpoints: plain dictionaries and tensors, written so that a good file is never lost, read without pickle."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch

from hnerv.errors import RunError, UserError, first_line
from hnerv.files import replacing
from hnerv.runs.record import RunRecord

FORMAT = 3
KEYS = {"format", "run", "model", "optimizer", "progress", "evaluation"}
CURRENT = "current"
"""The key of the current weights, where `model` holds their average (--ema-decay) or rounded ones (--rate-weight)."""
RATE = "rate"
"""The key of the steps and densities that --rate-weight trains."""
COUNTS = ("epoch", "step", "step_in_epoch")
PROGRESS_KEYS = {
    *COUNTS,
    "records",
    "times",
    "best",
    "logs",
    "window",
    "peak",
    "rollbacks",
    "lr_scale",
    "clock",
    "rate_weight",
}
_MSDOS_FOLDER = 0x10


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
        _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: pass a run folder, a checkpoint (.pt) or a .hnerv file") from None
    except Exception as error:  # the unpickler raises any exception on foreign bytes
        if path.suffix == ".hnerv":
            raise UserError(f"{path} is a .hnerv file: pass the run folder or checkpoint it was made from") from error
        cause = first_line(error) or type(error).__name__
        raise UserError(f"{path} is corrupt or not an hnerv checkpoint ({cause})", _fix(path)) from error
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"{path} is not an hnerv checkpoint: pass one written by train_patch_dual.py")
    if type(state["format"]) is not int or state["format"] != FORMAT:
        raise UserError(
            f"{path} has format {state['format']}, but this version reads {FORMAT}: use the hnerv version that wrote "
            "it (its commit is in the run's environment.json)"
        )
    if wrong := set(state) - {CURRENT, RATE} ^ KEYS:
        raise UserError(f"{path} is damaged: missing or extra keys {sorted(wrong, key=str)}", _fix(path))
    if fault := _invalid_part(state):
        raise UserError(f"{path} is damaged: its {fault!r} is invalid", _fix(path))
    record = RunRecord.from_dict(state["run"], path)
    decay, weight = record.config.train.ema_decay, record.config.loss.rate_weight
    for key, expected in ((CURRENT, decay > 0 or weight > 0), (RATE, weight > 0)):
        if (key in state) != expected:
            has = "has" if key in state else "lacks"
            settings = f"--ema-decay {decay} and --rate-weight {weight}"
            raise UserError(f"{path} is damaged: it {has} the weights {key!r}, with {settings}", _fix(path))
    return {**state, "run": record}


def _check_archive(path: Path) -> None:
    """Raises BadZipFile for an archive that torch would read without noticing the damage.

    torch compares no checksums, so a flipped bit would pass as a weight. It inflates compressed entries, which its own
    files never have, to any size. It reads nothing from an entry marked as a folder, and leaves its tensor as it was
    allocated: that mark stands in the directory of the archive, which no checksum covers.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise zipfile.BadZipFile(f"{entry.filename} is compressed, which checkpoints never are")
            if entry.external_attr & _MSDOS_FOLDER:
                raise zipfile.BadZipFile(f"{entry.filename} is marked as a folder")
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


def _invalid_part(state: dict) -> str:
    """The part with values that `save_checkpoint` never writes, '' if there is none.

    RunRecord checks the record, `load_state_dict` the shapes of weights and of the state of the optimiser.
    """
    progress = state["progress"]
    checks = {
        "model": _are_weights(state["model"]),
        **{key: _are_weights(state.get(key, {})) for key in (CURRENT, RATE)},
        "optimizer": isinstance(state["optimizer"], dict),
        "progress": isinstance(progress, dict)
        and progress.keys() >= PROGRESS_KEYS
        and all(type(progress[key]) is int and progress[key] >= 0 for key in COUNTS)
        and all(isinstance(progress[key], float | int) for key in ("best", "peak", "lr_scale", "rate_weight"))
        and _is_dict_of(progress["logs"], int),
        "evaluation": _is_dict_of(state["evaluation"], (int, float)),
    }
    return next((part for part, valid in checks.items() if not valid), "")


def _are_weights(part: object) -> bool:
    return _is_dict_of(part, torch.Tensor) and not any(value.is_complex() for value in part.values())


def _is_dict_of(part: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(part, dict) and all(isinstance(k, str) and isinstance(v, kind) for k, v in part.items())


def _fix(path: Path) -> str:
    """Only latest.pt of a run may be deleted: the run then resumes from best.pt."""
    if path.name == "latest.pt" and path.with_name("best.pt").is_file():
        return "pass best.pt, or delete this file to resume from best.pt"
    return "pass the run folder or another of its checkpoints"
