"""A run is one folder: its location, the settings it belongs to, and access to it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from hnerv.config import Config, differences
from hnerv.data.clip.targets import is_same_file
from hnerv.data.store import load_material
from hnerv.data.video import CLIPS
from hnerv.errors import OtherRun, UserError
from hnerv.files import move_aside, replacing, write_json
from hnerv.presets import Choice
from hnerv.runs import PLAN
from hnerv.runs.checkpoint import load_checkpoint
from hnerv.runs.environment import append_environment, last_start
from hnerv.runs.lock import locked
from hnerv.runs.names import folder_name, value_text
from hnerv.runs.record import RunRecord, read_record
from hnerv.storage import is_remote
from hnerv.tracking import NullLogger, RunLogger, events_folder, metrics_file, rewind


@dataclass(frozen=True)
class RunFolder:
    """output/<exp>: found by `at`, written from `claim` on."""

    path: Path
    overwrite: bool

    @property
    def latest(self) -> Path:
        return self.path / "checkpoints" / "latest.pt"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best.pt"

    @classmethod
    def at(cls, output: Path, exp_id: str, choice: Choice, overwrite: bool, same_path: bool = False) -> RunFolder:
        """The folder of a run, `{params}` filled in. Writes nothing.

        If the run was started on a video at another path, the video is decoded and its frames are compared; with
        `same_path` the run is refused instead. Raises UserError for a name outside `output`, for a folder with a run
        of other settings or another video or with something else, and for one that cannot be written.
        """
        folder = cls(output / folder_name(exp_id, choice, output), overwrite)
        known = folder.known()
        if known:
            _check_settings(folder.path, known, choice.config, same_path)
            if not same_path and _has_moved(choice.config.video.data, known):
                _check_frames(folder.path, known, *_video_identity(choice.config))
        elif not overwrite and not folder.latest.exists():
            _check_no_foreign_files(folder.path)
        refuse_unwritable(folder.path)
        return folder

    def known(self) -> RunRecord | None:
        """The record of the run that is here and stays; None for a fresh run. Raises UserError."""
        path = self.path / "config.json"
        return None if self.overwrite or not path.exists() else read_record(path)

    def pinned(self, config: Config) -> Config:
        """`config` with the targets that the run found at its first start."""
        known = self.known()
        return known.pinned(config) if known else config

    def saved_state(self, record: RunRecord) -> dict | None:
        """The checkpoint to resume from: latest.pt, or best.pt where that is missing; None for a fresh run.

        `record` identifies the run. Writes nothing. Raises UserError for a run of another record, and for a checkpoint
        that cannot be read.
        """
        path = next((path for path in (self.latest, self.best) if path.exists()), None)
        if self.overwrite or path is None:
            return None
        state = load_checkpoint(path)
        _check_record(self.path, state["run"], record)
        if path == self.best:
            logging.getLogger("hnerv").warning("%s is missing; resuming from best.pt", self.latest)
        return state

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other process out of the folder for the block, from `saved_state` to the end of training.

        Creates the folder if needed, and moves one that is to be overwritten aside. Raises UserError.
        """
        with contextlib.ExitStack() as held:
            try:
                if self.overwrite and self.path.exists():
                    with locked(self.path):
                        pass
                    move_aside(self.path)
                self.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(self.path))
            except OSError as error:
                raise _unwritable(self.path, error) from error
            yield

    def last_precision(self) -> str | None:
        """The precision of the start before this one, None for the first. Raises UserError."""
        return last_start(self.path / "environment.json").get("precision")

    def claim(
        self,
        record: RunRecord,
        state: dict | None,
        device: torch.device,
        precision: str,
        report_to: str = "tensorboard",
    ) -> NullLogger:
        """Fills the folder, which `locked` holds, or takes it over at `state`, with its logs cut back to there.

        Returns the logger of the steps that follow. Writes nothing for a finished run. Raises UserError.
        """
        try:
            if state and not self.latest.exists():
                with replacing(self.latest) as file:
                    file.write(self.best.read_bytes())
            if state and state["progress"]["epoch"] >= state["run"].config.train.epochs:
                return NullLogger()
            write_json(self.path / "config.json", record.to_dict())
            append_environment(self.path / "environment.json", device, precision)
            for folder in (self.path, self.latest.parent):
                for half_written in folder.glob(".*.tmp"):
                    half_written.unlink()
            return self.reopen(state, report_to)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def reopen(self, state: dict | None, report_to: str = "tensorboard") -> NullLogger:
        """The logger of the steps after `state`, with the logs cut back to there. Raises OSError."""
        rewind(self.path, state["progress"]["logs"] if state else {})
        first_step = state["progress"]["step"] + 1 if state else 0
        return RunLogger(events_folder(self.path), metrics_file(self.path), first_step, report_to)


def refuse_unwritable(path: Path) -> None:
    """Called before minutes are spent on targets; a full disk is found by `claim`. Raises UserError."""
    parent = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise _unwritable(path, f"{parent} is not a writable folder")


def _unwritable(path: Path, cause: object) -> UserError:
    return UserError(f"cannot write the run folder {path} ({cause})", "choose another --output")


def _check_record(path: Path, theirs: RunRecord, ours: RunRecord) -> None:
    """Raises UserError where a checkpoint in `path` has other settings, frames, targets or sizes than ours."""
    _check_settings(path, theirs, ours.config)
    _check_frames(path, theirs, ours.video.source, ours.video.digest)
    theirs.check_targets(path, ours.targets)
    if (theirs.width, theirs.coded_parameters) != (ours.width, ours.coded_parameters):
        raise UserError(
            f"{path} holds a model of width {theirs.width}, not {ours.width}, written by another version of hnerv",
            "use that version, or choose another --exp-id",
        )


def _check_settings(path: Path, theirs: RunRecord, ours: Config, same_path: bool = False) -> None:
    """Raises OtherRun where the run in `path` has other settings than `ours`.

    Files may have moved: targets are compared by their sha256, a video by its frames (by the caller), or with
    `same_path` by its absolute path.
    """
    differing = differences(theirs.config, ours)
    if not same_path or len({os.path.abspath(location) for location in differing.get("data", ())}) == 1:
        for name in ("data", "raw_video"):
            differing.pop(name, None)
    label = theirs.targets.weights if theirs.targets else ""
    if "clip_targets" in differing and is_same_file(*differing["clip_targets"], label):
        del differing["clip_targets"]
    if differing:
        pairs = (
            f"{key} is {value_text(old) or 'not set'}, this command has {value_text(new) or 'not set'}"
            for key, (old, new) in differing.items()
        )
        raise OtherRun(
            f"{path} holds a run with another configuration ({'; '.join(pairs)})",
            "choose another --exp-id, pass its settings to resume it, or --overwrite to move it aside",
        )


def _has_moved(data: str, known: RunRecord) -> bool:
    """Whether --data is another location than the one that the run read."""
    if data in CLIPS or is_remote(data):
        return data != known.config.video.data
    return os.path.realpath(os.path.expanduser(data)) != known.video.source


def _video_identity(config: Config) -> tuple[str, str]:
    """Source and digest of the video of a configuration. Raises UserError."""
    without_targets = config.replaced({"clip_weights": "none", "clip_targets": ""})
    video = load_material(without_targets, torch.device("cpu")).video
    return video.source, video.digest


def _check_frames(path: Path, theirs: RunRecord, source: str, digest: str) -> None:
    """Raises UserError where a video has other frames than the run in `path` was trained on."""
    if digest == theirs.video.digest:
        return
    if source == theirs.video.source:
        raise UserError(
            f"{source} no longer decodes to the frames that {path} was trained on",
            "restore the video, or choose another --exp-id",
        )
    raise UserError(
        f"{source} does not decode to the frames that {path} was trained on, those of {theirs.video.source}",
        "set --data to that video or an exact copy, choose another --exp-id, or pass --overwrite to move the run aside",
    )


def _check_no_foreign_files(path: Path) -> None:
    """A folder of something else is not written into: cutting back the logs would cost its owner files."""
    if (path / PLAN).is_file():
        raise OtherRun(
            f"{path} holds a segmented run",
            "choose another --exp-id, pass its --segment-* flags to resume it, or --overwrite to move it aside",
        )
    if path.is_dir() and (names := [p.name for p in path.iterdir() if not p.name.startswith(".")]):
        raise UserError(
            f"{path} holds {sorted(names)[0]!r} but no config.json of a run",
            "choose another --exp-id, or pass --overwrite to move it aside",
        )
