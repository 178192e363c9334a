"""A run is one folder: where it is, whether it may be written, what it records."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from hnerv.command import next_commands, pick_device
from hnerv.config import Config, differences
from hnerv.data.clip.targets import is_same_file
from hnerv.data.store import load_material
from hnerv.data.video import CLIPS, is_remote
from hnerv.errors import OtherRun, UserError
from hnerv.files import move_aside, read_json, replacing, write_json
from hnerv.presets import Choice
from hnerv.runs import is_segmented, lock
from hnerv.runs.checkpoint import load_checkpoint
from hnerv.runs.record import RunRecord, VideoRecord, read_record
from hnerv.tracking import NullLogger, RunLogger, events_folder, metrics_file, rewind

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "tensorboard",
    "numpy",
    "pillow",
    "decord",
    "av",
)


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
        """The folder of a run, `{params}` filled in, refused early where it cannot hold it.

        A video under another path than the run's is decoded and compared; with `same_path` it is refused, unread.
        Writes nothing. Raises UserError for a name outside `output`, a folder of another configuration, of another
        video or of something else, and one that cannot be written.
        """
        folder = cls(output / folder_name(exp_id, choice, output), overwrite)
        known = folder.known()
        if known:
            _refuse(folder.path, known, choice.config, same_path)
            if not same_path and _is_elsewhere(choice.config.video.data, known):
                _check_frames(folder.path, known.video, *_decoded(choice.config))
        elif not overwrite and not folder.latest.exists():
            _refuse_foreign(folder.path)
        refuse_unwritable(folder.path)
        return folder

    def known(self) -> RunRecord | None:
        """The record of the run that is already here and stays; None for a fresh run. Raises UserError."""
        path = self.path / "config.json"
        if self.overwrite or not path.exists():
            return None
        return read_record(path)

    def pinned(self, config: Config) -> Config:
        """`config` with the targets that the run found when it first started."""
        known = self.known()
        return known.pinned(config) if known else config

    def saved_state(self, record: RunRecord) -> dict | None:
        """The checkpoint to resume from: latest.pt, or best.pt where that is missing; None for a fresh run.

        `record` is what identifies the run. Writes nothing. Raises UserError when the folder holds a run of another
        record, or a checkpoint that cannot be read.
        """
        path = next((path for path in (self.latest, self.best) if path.exists()), None)
        if self.overwrite or path is None:
            return None
        state = load_checkpoint(path)
        _refuse_other(self.path, state["run"], record)
        if path == self.best:
            logging.getLogger("hnerv").warning("%s is missing; resuming from best.pt", self.latest)
        return state

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other process out of the folder for the block, from `saved_state` to the end of training.

        Makes the folder where there is none, and moves one that is to be overwritten aside. Raises UserError.
        """
        with contextlib.ExitStack() as held:
            try:
                if self.overwrite and self.path.exists():
                    with lock.locked(self.path):
                        pass
                    move_aside(self.path)
                self.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(lock.locked(self.path))
            except OSError as error:
                raise _unwritable(self.path, error) from error
            yield

    def last_precision(self) -> str | None:
        """Of the start before this one; None where environment.json does not record it. Raises UserError."""
        path = self.path / "environment.json"
        starts = read_json(path) if path.exists() else []
        last = starts[-1] if isinstance(starts, list) and starts else {}
        return last.get("precision") if isinstance(last, dict) else None

    def claim(
        self,
        record: RunRecord,
        state: dict | None,
        device: torch.device,
        precision: str,
        report_to: str = "tensorboard",
    ) -> NullLogger:
        """Fills the folder, which `locked` holds, or takes it over at `state`, its logs cut back to there.

        Returns the logger of what follows. Nothing is written for a run that is finished. Raises UserError.
        """
        try:
            if state and not self.latest.exists():
                with replacing(self.latest) as file:
                    file.write(self.best.read_bytes())
            if state and _finished(state):
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
        """The logger of what follows `state`, the logs cut back to there. Raises OSError."""
        rewind(self.path, state["progress"]["logs"] if state else {})
        first_step = state["progress"]["step"] + 1 if state else 0
        return RunLogger(events_folder(self.path), metrics_file(self.path), first_step, report_to)

    def next_commands(self) -> str:
        """What a user may want to do with a finished run."""
        return next_commands(self.latest, events_folder(self.path))


def folder_name(exp_id: str, choice: Choice, output: Path, more: Sequence[str] = ()) -> str:
    """--exp-id, `{params}` filled in, `more` words among them. Raises UserError where it leads out of `output`."""
    name = exp_id.replace("{params}", params_name(choice, more))
    _check_name(exp_id, name, output)
    return name


def params_name(choice: Choice, more: Sequence[str] = ()) -> str:
    """The preset, the settings that differ from it and `more` words, as a folder name of at most 200 characters."""
    changed = differences(choice.config, choice.base)
    words = [choice.preset] * bool(choice.preset)
    words += [f"{key}={_plain(ours)}" for key, (ours, _) in sorted(changed.items())] + [*more]
    name = re.sub(r"[^\w.=,+-]", "-", ",".join(words)) or "default"
    if len(name) > 200:
        name = name[:180] + "-" + hashlib.sha256(name.encode()).hexdigest()[:16]
    return name


def _refuse_other(path: Path, theirs: RunRecord, ours: RunRecord) -> None:
    """Raises UserError where a checkpoint's record names another configuration, video, target or size than ours."""
    _refuse(path, theirs, ours.config)
    _check_frames(path, theirs.video, ours.video.source, ours.video.digest)
    theirs.check_targets(path, ours.targets)
    if (theirs.width, theirs.coded_parameters) != (ours.width, ours.coded_parameters):
        raise UserError(
            f"{path} holds a model of width {theirs.width}, not {ours.width}, "
            "written by another version of hnerv: use that version, or choose another --exp-id"
        )


def environment(device: torch.device | None = None, precision: str | None = None) -> dict[str, object]:
    """What a number of this run was measured with: command, commit, versions, device, arithmetic.

    `device` computes, None: that of `--device auto`. `precision` ('bf16' or 'fp32') is that of the convolutions.
    """
    import torch

    versions = {name: metadata.version(name) for name in PACKAGES if _installed(name)}
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        **_device_facts(device or pick_device("auto")),
        "precision": precision,
        "tf32": torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32,
        **versions,
    }


def _device_facts(device: torch.device) -> dict[str, object]:
    """'cpu' or 'cuda:N', and of a CUDA device its name and the versions below it; None for the CPU."""
    import torch

    if device.type != "cuda":
        return {"device": device.type, **dict.fromkeys(("cuda", "cuda_version", "cudnn_version", "driver_version"))}
    index = torch.cuda.current_device() if device.index is None else device.index
    return {
        "device": f"cuda:{index}",
        "cuda": torch.cuda.get_device_name(index),
        "cuda_version": torch.version.cuda,
        "cudnn_version": torch.backends.cudnn.version(),
        "driver_version": _driver_version(),
    }


def _driver_version() -> str | None:
    """Of NVIDIA's driver; None where nvidia-smi is missing, or fails."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def append_environment(path: Path, device: torch.device, precision: str) -> None:
    """environment.json is a list with one entry per start of the run."""
    starts = read_json(path) if path.exists() else []
    write_json(path, [*starts, environment(device, precision)])


def _check_name(exp_id: str, name: str, output: Path) -> None:
    parts = Path(name).parts
    if not name.strip() or Path(name).is_absolute() or ".." in parts or not parts:
        raise UserError(
            f"--exp-id {exp_id!r} does not name a folder inside {output}: avoid empty names, '..' and a leading /"
        )
    if "\0" in name or any(len(os.fsencode(part)) > 255 for part in parts):
        raise UserError(f"--exp-id {exp_id[:40]!r}... has a component longer than 255 bytes: choose a shorter name")


def _refuse(path: Path, theirs: RunRecord, ours: Config, same_path: bool = False) -> None:
    """Raises OtherRun where the run of the record `theirs` has other settings than `ours`.

    Files may have moved: targets are known by their sha256, a video by its frames, which the caller compares, or with
    `same_path` by its absolute path.
    """
    differing = differences(theirs.config, ours)
    if not same_path or len({os.path.abspath(place) for place in differing.get("data", ())}) == 1:
        for name in ("data", "raw_video"):
            differing.pop(name, None)
    label = theirs.targets.weights if theirs.targets else ""
    if "clip_targets" in differing and is_same_file(*differing["clip_targets"], label):
        del differing["clip_targets"]
    if differing:
        raise OtherRun(
            f"{path} holds a run with another configuration ({_told(differing)}): choose another --exp-id, "
            "pass its settings to resume it, or --overwrite to move it aside"
        )


def _is_elsewhere(data: str, known: RunRecord) -> bool:
    """Whether --data is another place than the one that the run of the record `known` read."""
    if data in CLIPS or is_remote(data):
        return data != known.config.video.data
    return os.path.realpath(os.path.expanduser(data)) != known.video.source


def _decoded(config: Config) -> tuple[str, str]:
    """Source and digest of the video of a configuration. Raises UserError."""
    import torch

    without_targets = config.replaced({"clip_weights": "none", "clip_targets": ""})
    video = load_material(without_targets, torch.device("cpu")).video
    return video.source, video.digest


def _check_frames(path: Path, theirs: VideoRecord, source: str, digest: str) -> None:
    """Raises UserError where a video has other frames than the run of the record's part `theirs` was trained on."""
    if digest == theirs.digest:
        return
    if source == theirs.source:
        raise UserError(
            f"{source} no longer decodes to the frames that {path} was trained on: restore the video, or choose "
            "another --exp-id"
        )
    raise UserError(
        f"{source} does not decode to the frames that {path} was trained on, those of {theirs.source}: set --data "
        "to that video or an exact copy, choose another --exp-id, or pass --overwrite to move the run aside"
    )


def _refuse_foreign(path: Path) -> None:
    """A folder of something else is not written into: cutting back the logs would cost its owner files."""
    if is_segmented(path):
        raise OtherRun(
            f"{path} holds a segmented run: choose another --exp-id, pass its --segment-* flags to resume it, or "
            "--overwrite to move it aside"
        )
    if path.is_dir() and (found := [p.name for p in path.iterdir() if not p.name.startswith(".")]):
        raise UserError(
            f"{path} holds {sorted(found)[0]!r} but no config.json of a run: choose another --exp-id, "
            "or pass --overwrite to move it aside"
        )


def refuse_unwritable(path: Path) -> None:
    """Before minutes are spent on targets; a full disk is found by `claim`. Raises UserError."""
    parent = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise _unwritable(path, f"{parent} is not a writable folder")


def _unwritable(path: Path, cause: object) -> UserError:
    return UserError(f"cannot write the run folder {path} ({cause}): choose another --output")


def _finished(state: dict) -> bool:
    return state["progress"]["epoch"] >= state["run"].config.train.epochs


def _told(differing: dict[str, tuple[object, object]]) -> str:
    return "; ".join(
        f"{key} is {_plain(theirs)}, this command has {_plain(ours)}" for key, (theirs, ours) in differing.items()
    )


def _plain(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _commit() -> str | None:
    """Commit of the checkout that runs, with '+changes' where files differ from it; None outside git."""
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")
