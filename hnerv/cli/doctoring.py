"""What this machine can do: one check a subject, none of which can end the others."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

EXTRAS = {
    "wandb": "--report-to wandb",
    "nvidia-ml-py": "logging GPU utilisation",
    "ray": "hnerv fleet",
    "faiss-cpu": "hnerv search on a folder",
    "bjontegaard": "the BD-rates of hnerv compare",
    "fsspec": "--data with an address",
}
"""Optional distribution -> what it is for."""
ENCODERS = ("libx264", "libx265", "libsvtav1")
LOW_MEMORY = 2e9
LOW_DISK = 5e9
"""Bytes: under these, the demo may not fit."""


class Check(NamedTuple):
    """`level` is ok, warning or fault; `says` is what was found; `mend` is '' where nothing is to be mended."""

    name: str
    level: str
    says: str
    mend: str = ""

    def line(self) -> str:
        """For the terminal."""
        return f"{self.level:8}{self.name:16}{self.says}" + (f": {self.mend}" if self.mend else "")


def check_all(output: Path, online: bool = False) -> list[Check]:
    """Every check, in order. `output` is the folder of all runs; `online` lets the hub be asked for CLIP weights."""
    subjects: list[tuple[str, Callable[[], Check | Iterator[Check]]]] = [
        ("python", check_python),
        ("torch", check_torch),
        ("torchvision", check_torchvision),
        ("tensorboard", check_tensorboard),
        ("GPU", check_gpu),
        ("cores", check_cores),
        ("memory", check_memory),
        ("disk", lambda: check_disk(output)),
        ("decord", check_decord),
        ("PyAV", check_pyav),
        ("video encoders", check_encoders),
        ("CLIP", lambda: check_clip(online)),
        ("extras", check_extras),
    ]
    return [check for name, subject in subjects for check in _guarded(name, subject)]


def _guarded(name: str, subject: Callable[[], Check | Iterator[Check]]) -> list[Check]:
    """A check that fails is a fault of its subject: a broken library may raise anything."""
    try:
        found = subject()
        return [found] if isinstance(found, Check) else list(found)
    except Exception as error:
        says = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return [Check(name, "fault", says, "reinstall in the checkout: pip install --force-reinstall -e .")]


def check_python() -> Check:
    """Its version and where it runs."""
    return Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def check_torch() -> Check:
    """Raises where torch cannot be imported."""
    import torch

    return Check("torch", "ok", torch.__version__)


def check_torchvision() -> Check:
    """Whether it was built for this torch: else its operators are not registered with it."""
    import torch

    try:
        nms = importlib.import_module("torchvision.ops").nms
        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except (ImportError, RuntimeError, OSError) as error:
        mend = "reinstall both from the same index: pip install --force-reinstall torch torchvision"
        return Check("torchvision", "fault", f"does not work with torch {torch.__version__} ({_brief(error)})", mend)
    return Check("torchvision", "ok", f"{metadata.version('torchvision')}, matches torch {torch.__version__}")


def check_tensorboard() -> Check:
    """Whether it is of a version that works here."""
    version = metadata.version("tensorboard")
    if tuple(map(int, version.split(".")[:2])) < (2, 21):
        return Check("tensorboard", "fault", f"{version} crashes with recent setuptools", "pip install -U tensorboard")
    importlib.import_module("torch.utils.tensorboard")
    return Check("tensorboard", "ok", version)


def check_gpu() -> Iterator[Check]:
    """CUDA, each device's architecture against those torch was built for, and a computation on it."""
    import torch

    if not torch.cuda.is_available():
        yield _no_gpu(torch.version.cuda)
        return
    built = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        architecture = f"sm_{capability[0]}{capability[1]}"
        if not runs_on(capability, built):
            mend = "install a torch build that supports it (pytorch.org), or train with --device cpu"
            yield Check("GPU", "fault", f"{name} is {architecture}, but torch is built for {' '.join(built)}", mend)
            continue
        torch.ones(2, device=f"cuda:{index}").sum().item()
        free, total = torch.cuda.mem_get_info(index)
        says = f"{name}, {architecture}, CUDA {torch.version.cuda}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        if free < LOW_MEMORY:
            yield Check("GPU", "warning", says, "stop other processes on it, or choose another with --device cuda:N")
        else:
            yield Check("GPU", "ok", says)


def _no_gpu(built_for: str | None) -> Check:
    seen = _driver_sees()
    if seen and built_for:
        mend = "update the driver, or check CUDA_VISIBLE_DEVICES"
        return Check("GPU", "fault", f"{seen} exists, but torch with CUDA {built_for} does not find it", mend)
    if seen:
        return Check(
            "GPU",
            "fault",
            f"{seen} exists, but this torch is built without CUDA",
            "install torch with CUDA (pytorch.org)",
        )
    return Check(
        "GPU", "warning", "no CUDA device; training runs on the CPU", "use --preset demo, which is sized for a CPU"
    )


def _driver_sees() -> str:
    """Name of the first GPU by NVIDIA's own tool, '' without one."""
    if not shutil.which("nvidia-smi"):
        return ""
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.split("\n")[0].strip() if done.returncode == 0 else ""


def runs_on(capability: tuple[int, int], built: list[str]) -> bool:
    """Whether code for one of the architectures `built` (sm_XY, compute_XY) runs on a device.

    Machine code runs on its own major version from its minor version on, unless it is of a special kind (sm_90a: that
    one alone); intermediate code (compute) is compiled for any later device.
    """
    for name in built:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", name)
        if not match:
            continue
        kind, made = match[1], (int(match[2]), int(match[3]))
        if match[4] == "a":
            fits = made == capability
        elif kind == "compute":
            fits = made <= capability
        else:
            fits = made[0] == capability[0] and made[1] <= capability[1]
        if fits:
            return True
    return False


def check_cores() -> Check:
    """Cores that this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check("cores", "ok", f"{count} available to this process")


def check_memory() -> Check:
    """Free memory of the machine."""
    free, total = memory()
    if not total:
        return Check("memory", "ok", "unknown on this system")
    says = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if free < LOW_MEMORY:
        return Check("memory", "warning", says, "close other programs, or use fewer --frames or a smaller --resize")
    return Check("memory", "ok", says)


def memory() -> tuple[int, int]:
    """(available, all) bytes of this machine; available is all where it is not told, both 0 where nothing is."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0, 0
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return total, total
    available = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.M)
    return (int(available[1]) * 1024 if available else total), total


def check_disk(output: Path) -> Iterator[Check]:
    """Where runs go, and where targets and weights are cached."""
    from hnerv.files import cache_folder

    for name, folder, other in (("runs", output, "--output"), ("cache", cache_folder(), "HNERV_CACHE")):
        place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(place).free
        says = f"{folder}: {free / 1e9:.1f} GB free"
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            yield Check(f"disk {name}", "fault", f"{place} is not writable", f"choose another folder with {other}")
        elif free < LOW_DISK:
            yield Check(f"disk {name}", "warning", says, f"free disk space, or choose another folder with {other}")
        else:
            yield Check(f"disk {name}", "ok", says)


def check_decord() -> Check:
    """Its wheels exist for Linux x86-64 and Windows; HNERV_READER=decord asks for it."""
    import torch  # noqa: F401  decord crashes where it is loaded before torch

    try:
        return Check("decord", "ok", f"{importlib.import_module('decord').__version__} reads video files on request")
    except (ImportError, OSError) as error:
        if (sys.platform, platform.machine()) in (("linux", "x86_64"), ("win32", "AMD64")):
            return Check(
                "decord",
                "warning",
                f"cannot be loaded ({_brief(error)})",
                "pip install decord; without it PyAV reads all video files",
            )
        return Check("decord", "ok", "no wheel for this system; PyAV reads all video files")


def check_pyav() -> Check:
    """It must decode what `data` usually holds."""
    import av

    lacking = [name for name in ("h264", "hevc", "av1") if not _has_codec(name, "r")]
    if lacking:
        return Check("PyAV", "warning", f"{av.__version__} cannot read {', '.join(lacking)}", "pip install -U av")
    return Check("PyAV", "ok", f"{av.__version__} reads h264, hevc, av1")


def check_encoders() -> Check:
    """What a comparison with ordinary codecs needs."""
    lacking = [name for name in ENCODERS if not _has_codec(name, "w")]
    if lacking:
        mend = "only hnerv compare needs them: pip install --only-binary av -U av"
        return Check("video encoders", "warning", f"PyAV has no {', '.join(lacking)}", mend)
    return Check("video encoders", "ok", f"PyAV has {', '.join(ENCODERS)}")


def check_clip(online: bool) -> Check:
    """Whether `--clip-weights auto` will find CLIP. Without `online` no network is touched."""
    from hnerv.data.clip import hub
    from hnerv.data.clip.weights import identify

    spec = identify("auto", "ViT-B-32", 0)
    if path := hub.cached(spec.repo, spec.files):
        return Check("CLIP", "ok", f"{spec.source}, in the Hugging Face cache ({path})")
    mend = "pass --clip-weights FILE or --clip-targets FILE"
    if not online:
        says = f"{spec.source} is not cached, and the hub was not checked (pass --online)"
        return Check("CLIP", "warning", says, f"{mend}; without the hub, training uses a random encoder")
    try:
        return Check("CLIP", "ok", f"{spec.source} is available on the hub: {hub.served(spec.repo, spec.files)}")
    except hub.HubUnavailable as error:
        mend += "; otherwise a random encoder is used"
        return Check("CLIP", "warning", f"{spec.source} is not cached, and {error}", mend)


def check_extras() -> Iterator[Check]:
    """Optional packages: their absence is no fault."""
    for name, use in EXTRAS.items():
        try:
            yield Check(name, "ok", f"{metadata.version(name)}, for {use}")
        except metadata.PackageNotFoundError:
            yield Check(name, "ok", f"not installed; optional, for {use} (pip install {name})")


def _has_codec(name: str, mode: str) -> bool:
    import av

    try:
        av.codec.Codec(name, mode)
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:100]
