"""A run is one folder: where it is, whether it may be written, what it records."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from hnerv.checkpoint import load_checkpoint
from hnerv.config import Config, differences
from hnerv.dataset import content_of, pin_targets
from hnerv.errors import UserError
from hnerv.files import read_json, write_json
from hnerv.tracking import NullLogger, RunLogger, events_folder, metrics_file, rewind

PACKAGES = ("torch", "torchvision", "open_clip_torch", "tensorboard", "numpy", "pillow", "decord", "av")


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
    def at(
        cls, output: Path, exp_id: str, preset: str, config: Config, base: Config, overwrite: bool
    ) -> RunFolder:  # fmt: skip
        """The folder of a run, `{params}` filled in, refused early where it holds another configuration.

        `base` is the configuration that `{params}` names the differences from. Writes nothing. Raises UserError.
        """
        name = exp_id.replace("{params}", params_name(preset, config, base))
        _check_name(exp_id, name, output)
        folder = cls(output / name, overwrite)
        known = folder.known()
        if known:
            _refuse(folder.path, differences(Config.from_dict(known["config"]), config))
        elif not overwrite and not folder.latest.exists():
            _refuse_foreign(folder.path)
        return folder

    def known(self) -> dict | None:
        """The record of the run that is already here and stays; None for a fresh run."""
        path = self.path / "config.json"
        if self.overwrite or not path.exists():
            return None
        record = read_json(path)
        if not isinstance(record, dict) or not {"config", "targets"} <= set(record):
            raise UserError(f"{path} is not the record of a run: restore it, or --overwrite to move its folder aside")
        return record

    def pinned(self, config: Config) -> Config:
        """`config` with the targets that the run found when it first started."""
        known = self.known()
        return pin_targets(config, known) if known else config

    def claim(self, record: dict) -> dict | None:
        """Creates the folder with its config.json, or finds the run in it. Returns the latest checkpoint, if any.

        `record` is what identifies the run. The logs of a resumed run are cut back to its checkpoint. Raises
        UserError, and writes nothing, when the folder holds a run of another record or cannot be written. Nothing is
        written for a finished run either.
        """
        state = load_checkpoint(self.latest) if self.latest.exists() and not self.overwrite else None
        if state is not None:
            refuse_other(self.path, state["run"], record)
            if _finished(state):
                return state
        try:
            if self.overwrite and self.path.exists():
                _move_aside(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "config.json", record)
            append_environment(self.path / "environment.json")
            rewind(self.path, state["progress"]["logs"] if state else {})
            for half_written in self.latest.parent.glob(".*.tmp"):
                half_written.unlink()
        except OSError as error:
            raise UserError(f"cannot write the run folder {self.path} ({error}): choose another --output") from error
        return state

    def logger(self, state: dict | None) -> NullLogger:
        """A logger that goes on where `state` left off; TensorBoard forgets the first step to come and what follows."""
        if state and _finished(state):
            return NullLogger()
        purge_step = state["progress"]["step"] + 1 if state else 0
        return RunLogger(events_folder(self.path), metrics_file(self.path), purge_step)

    def next_commands(self) -> str:
        """What a user may want to do with a finished run."""
        return f"evaluate:  python eval.py {self.latest}\nwatch:     tensorboard --logdir {events_folder(self.path)}"


def params_name(preset: str, config: Config, base: Config) -> str:
    """The preset and the settings that differ from it, as a folder name of at most 200 characters."""
    changed = differences(config, base)
    words = [preset] * bool(preset) + [f"{key}={_plain(ours)}" for key, (ours, _) in sorted(changed.items())]
    name = re.sub(r"[^\w.=,+-]", "-", ",".join(words)) or "default"
    if len(name) > 200:
        name = name[:180] + "-" + hashlib.sha256(name.encode()).hexdigest()[:16]
    return name


def refuse_other(path: Path, theirs: dict, ours: dict) -> None:
    """Raises UserError where a checkpoint's record names another configuration, video or target than this run's."""
    _refuse(path, differences(Config.from_dict(theirs["config"]), Config.from_dict(ours["config"])))
    if theirs["video"]["digest"] != ours["video"]["digest"]:
        raise UserError(
            f"{path} was trained on other frames than {ours['video']['source']} now gives: restore the video, "
            "or choose another --exp-id"
        )
    labels = [(r["targets"] or {}).get("weights", "none") for r in (theirs, ours)]
    if content_of(labels[0]) != content_of(labels[1]):
        raise UserError(
            f"{path} was trained on the targets {labels[0]!r} and {labels[1]!r} are what --clip-weights gives now: "
            "make the former available, name them, or choose another --exp-id"
        )
    if theirs["model"] != ours["model"]:
        raise UserError(
            f"{path} holds a model of width {theirs['model']['width']}, not {ours['model']['width']}, "
            "made by another version of hnerv: use that one, or choose another --exp-id"
        )


def environment() -> dict[str, object]:
    """What a number of this run was measured with: command, commit, versions, device."""
    import torch

    versions = {name: metadata.version(name) for name in PACKAGES if _installed(name)}
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cuda": cuda,
        **versions,
    }


def append_environment(path: Path) -> None:
    """environment.json is a list with one entry per start of the run."""
    starts = read_json(path) if path.exists() else []
    write_json(path, [*starts, environment()])


def _check_name(exp_id: str, name: str, output: Path) -> None:
    parts = Path(name).parts
    if not name.strip() or Path(name).is_absolute() or ".." in parts or not parts:
        raise UserError(
            f"--exp-id {exp_id!r} does not name a folder inside {output}: no empty name, no '..', no leading /"
        )
    if "\0" in name or any(len(os.fsencode(part)) > 255 for part in parts):
        raise UserError(f"--exp-id {exp_id[:40]!r}... has a part of over 255 bytes: choose a shorter name")


def _refuse(path: Path, differing: dict[str, tuple[object, object]]) -> None:
    if differing:
        raise UserError(
            f"{path} holds a run with another configuration ({_told(differing)}): choose another --exp-id, "
            "give its settings to resume it, or --overwrite to move it aside"
        )


def _refuse_foreign(path: Path) -> None:
    """A folder of something else is not written into: cutting back the logs would cost its owner files."""
    if path.is_dir() and (found := [p.name for p in path.iterdir() if not p.name.startswith(".")]):
        raise UserError(
            f"{path} holds {sorted(found)[0]!r} but no config.json of a run: choose another --exp-id, "
            "or --overwrite to move it aside"
        )


def _finished(state: dict) -> bool:
    return state["progress"]["epoch"] >= state["run"]["config"]["train"]["epochs"]


def _move_aside(path: Path) -> None:
    number = next(n for n in range(1, 10**6) if not path.with_name(f"{path.name}.old{n}").exists())
    os.replace(path, path.with_name(f"{path.name}.old{number}"))


def _told(differing: dict[str, tuple[object, object]]) -> str:
    return ", ".join(f"{key} {_plain(theirs)} there, {_plain(ours)} here" for key, (theirs, ours) in differing.items())


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
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")
