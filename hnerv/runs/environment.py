"""Hardware and software of each start of a run: environment.json."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import torch

from hnerv.command import pick_device
from hnerv.files import read_json, write_json

PACKAGES = ("torch", "torchvision", "open_clip_torch", "tensorboard", "numpy", "pillow", "decord", "av")


def append_environment(path: Path, device: torch.device, precision: str) -> None:
    """environment.json is a list with one entry per start of the run."""
    write_json(path, [*_starts(path), environment(device, precision)])


def last_start(path: Path) -> dict[str, object]:
    """The last entry of an environment.json; {} without one. Raises UserError for a file that is no JSON."""
    starts = _starts(path)
    return starts[-1] if starts and isinstance(starts[-1], dict) else {}


def _starts(path: Path) -> list:
    """Its entries; none in a file of another form: a damaged note of provenance must not stop a run."""
    starts = read_json(path) if path.is_file() else []
    return starts if isinstance(starts, list) else []


def environment(device: torch.device | None = None, precision: str | None = None) -> dict[str, object]:
    """Command, commit, versions, device and arithmetic.

    `device` None: that of `--device auto`. `precision` ('bf16' or 'fp32') is that of the convolutions.
    """
    versions = {name: _version_of(name) for name in PACKAGES}
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
        **{name: version for name, version in versions.items() if version},
    }


def _version_of(package: str) -> str | None:
    """Of an installed package, else None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device_facts(device: torch.device) -> dict[str, object]:
    """'cpu' or 'cuda:N', and of a CUDA device its name and the versions below it; None for the CPU."""
    if device.type != "cuda":
        return {"device": device.type, **dict.fromkeys(("cuda", "cuda_version", "cudnn_version", "driver_version"))}
    index = torch.cuda.current_device() if device.index is None else device.index
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or ""
    return {
        "device": f"cuda:{index}",
        "cuda": torch.cuda.get_device_name(index),
        "cuda_version": torch.version.cuda,
        "cudnn_version": torch.backends.cudnn.version(),
        "driver_version": driver.split("\n")[0].strip() or None,
    }


def _commit() -> str | None:
    """Commit of the checkout that runs, with '+changes' where files differ from it; None outside git."""
    git = ("git", "-C", str(Path(__file__).resolve().parent))
    commit = _output(*git, "rev-parse", "HEAD")
    changes = _output(*git, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None or changes is None else commit + "+changes" * bool(changes)


def _output(*command: str) -> str | None:
    """Standard output of a command; None if it is missing, fails or takes 10 seconds."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
