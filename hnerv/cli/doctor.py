"""`hnerv doctor`: check the installation, the GPU, video readers, caches and CLIP weights of this machine."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from hnerv.flags import Parser

USES_TORCH = False
"""A torch that cannot be imported is one of the faults to report."""
EXTRAS = {"compare": ("bjontegaard",), "fleet": ("ray", "faiss-cpu")}
"""Optional distributions by the extra of pyproject.toml that installs them."""
LOW_DISK = 5e9
"""Bytes below which the cached frames and targets of a run may not fit."""


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    parser.add_argument("--online", action="store_true", help="check the hub for CLIP weights that are not cached")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output"),
        metavar="FOLDER",
        help="folder that holds all runs, to check its disk (output)",
    )
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def run(args: argparse.Namespace) -> None:
    """Print one line per check; exit with status 1 if there is a fault."""
    checks = check_all(args.output, args.online)
    if args.json:
        print(json.dumps([check.to_dict() for check in checks], indent=2))
    else:
        print("\n".join(check.line() for check in checks))
    if any(check.level == "fault" for check in checks):
        sys.exit(1)


class Check(NamedTuple):
    """One result. `level` is ok, warning or fault; `fix` is '' if there is nothing to fix."""

    name: str
    level: str
    result: str
    fix: str = ""

    def line(self) -> str:
        """For the terminal."""
        return f"{self.level:8}{self.name:16}{self.result}" + (f": {self.fix}" if self.fix else "")

    def to_dict(self) -> dict[str, str]:
        """The entry of --json."""
        return {"name": self.name, "level": self.level, "result": self.result, "fix": self.fix}


def check_all(output: Path, online: bool = False) -> list[Check]:
    """All checks, in order. `output` is the folder of all runs; `online` permits a request to the hub."""
    subjects: dict[str, Callable[[], Iterator[Check]]] = {
        "python": check_python,
        "torch": check_torch,
        "torchvision": check_torchvision,
        "tensorboard": check_tensorboard,
        "GPU": check_gpu,
        "decord": check_decord,
        "PyAV": check_pyav,
        "VMAF": check_vmaf,
        "disk": lambda: check_disk(output),
        "CLIP": lambda: check_clip(online),
        "extras": check_extras,
    }
    return [check for name, subject in subjects.items() for check in _guarded(name, subject)]


def _guarded(name: str, subject: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """The checks of a subject. A broken library may raise anything: that is a fault of this subject alone."""
    try:
        yield from subject()
    except Exception as error:
        fix = "reinstall in the checkout: pip install --force-reinstall -e ."
        yield Check(name, "fault", _brief(f"{type(error).__name__}: {error}", 200), fix)


def check_python() -> Iterator[Check]:
    """Version and platform."""
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def check_torch() -> Iterator[Check]:
    """Raises if torch cannot be imported."""
    yield Check("torch", "ok", importlib.import_module("torch").__version__)


def check_torchvision() -> Iterator[Check]:
    """Its compiled operators are registered only with the torch that it was built for."""
    import torch

    try:
        nms = importlib.import_module("torchvision.ops").nms
        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except (ImportError, RuntimeError, OSError) as error:
        fix = "reinstall both from the same index: pip install --force-reinstall torch torchvision"
        yield Check("torchvision", "fault", f"does not work with torch {torch.__version__} ({_brief(error)})", fix)
        return
    yield Check("torchvision", "ok", f"{metadata.version('torchvision')}, matches torch {torch.__version__}")


def check_tensorboard() -> Iterator[Check]:
    """Versions before 2.21 need pkg_resources, which setuptools has removed."""
    version = metadata.version("tensorboard")
    if tuple(map(int, version.split(".")[:2])) < (2, 21):
        yield Check("tensorboard", "fault", f"{version} crashes with recent setuptools", "pip install -U tensorboard")
        return
    importlib.import_module("torch.utils.tensorboard")
    yield Check("tensorboard", "ok", version)


def check_gpu() -> Iterator[Check]:
    """Driver, torch build and a computation on each device."""
    import torch

    if not torch.cuda.is_available():
        yield _no_gpu(_driver_gpu(), torch.version.cuda)
        return
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        name = f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}"
        try:
            torch.ones(2, device=f"cuda:{index}").sum().item()
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError as error:  # a build without code for this architecture has "no kernel image"
            built = " ".join(torch.cuda.get_arch_list())
            fix = "check nvidia-smi, or install a torch build that supports it (pytorch.org)"
            yield Check("GPU", "fault", f"{name} fails ({_brief(error)}); torch is built for {built}", fix)
            continue
        memory = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        yield Check("GPU", "ok", f"{name}, CUDA {torch.version.cuda}, {memory}")


def _no_gpu(name: str, cuda_version: str | None) -> Check:
    """`name` of a GPU that torch does not find, '' without one; `cuda_version` of torch, None without CUDA."""
    if not name:
        fix = "use --preset demo, which is sized for a CPU"
        return Check("GPU", "warning", "no CUDA device; training runs on the CPU", fix)
    if cuda_version:
        result = f"{name} exists, but torch with CUDA {cuda_version} does not find it"
        return Check("GPU", "fault", result, "update the driver, or check CUDA_VISIBLE_DEVICES")
    result = f"{name} exists, but this torch is built without CUDA"
    return Check("GPU", "fault", result, "install torch with CUDA (pytorch.org)")


def _driver_gpu() -> str:
    """Name of the first GPU by nvidia-smi, '' without one."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.split("\n")[0].strip() if done.returncode == 0 else ""


def check_decord() -> Iterator[Check]:
    """Optional reader (HNERV_READER=decord), with wheels for Linux x86-64 and Windows only."""
    import torch  # noqa: F401  decord crashes if it is loaded before torch

    try:
        version = importlib.import_module("decord").__version__
    except (ImportError, OSError) as error:
        if (sys.platform, platform.machine()) in (("linux", "x86_64"), ("win32", "AMD64")):
            fix = "pip install decord; without it PyAV reads all video files"
            yield Check("decord", "warning", f"cannot be loaded ({_brief(error)})", fix)
        else:
            yield Check("decord", "ok", "no wheel for this system; PyAV reads all video files")
        return
    yield Check("decord", "ok", f"{version} reads video files on request")


def check_pyav() -> Iterator[Check]:
    """Decoders for videos, and the encoders that `hnerv compare` needs."""
    import av

    for name, mode, verb, codecs, use in (
        ("PyAV", "r", "reads", ("h264", "hevc", "av1"), ""),
        ("video encoders", "w", "writes", ("libx264", "libx265", "libsvtav1"), "only hnerv compare needs them: "),
    ):
        missing = [codec for codec in codecs if not _has_codec(codec, mode)]
        if missing:
            fix = f"{use}pip install --only-binary av -U av"
            yield Check(name, "warning", f"PyAV {av.__version__} has no {', '.join(missing)}", fix)
        else:
            yield Check(name, "ok", f"PyAV {av.__version__} {verb} {', '.join(codecs)}")


def check_vmaf() -> Iterator[Check]:
    """Optional: only --vmaf needs it."""
    from hnerv.vmaf import vmaf_obstacle

    why = vmaf_obstacle()
    yield Check("VMAF", "ok", f"optional: {why}" if why else f"measured by {shutil.which('ffmpeg')}")


def _has_codec(name: str, mode: str) -> bool:
    import av

    try:
        av.codec.Codec(name, mode)
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def check_disk(output: Path) -> Iterator[Check]:
    """Free space for runs, and for the cache of frames and targets."""
    from hnerv.files import cache_folder

    for name, folder, setting in (("runs", output, "--output"), ("cache", cache_folder(), "HNERV_CACHE")):
        existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(existing).free
        result, fix = f"{folder}: {free / 1e9:.1f} GB free", f"free disk space, or choose another folder with {setting}"
        yield Check(f"disk {name}", "warning", result, fix) if free < LOW_DISK else Check(f"disk {name}", "ok", result)


def check_clip(online: bool) -> Iterator[Check]:
    """Whether `--clip-weights auto` will find CLIP, and where it looks. Without `online`, no network is used."""
    from huggingface_hub import constants

    from hnerv.data.clip import hub
    from hnerv.data.clip.weights import identify

    spec = identify("auto", "ViT-B-32", 0)
    if path := hub.cached(spec.repo, spec.files):
        yield Check("CLIP", "ok", f"{spec.source}, in the Hugging Face cache ({path})")
        return
    reason, fallback = "the hub was not checked (pass --online)", "without the hub, training uses a random encoder"
    if online:
        try:
            name = hub.served(spec.repo, spec.files)
        except hub.HubUnavailable as error:
            reason, fallback = str(error), "otherwise a random encoder is used"
        else:
            yield Check("CLIP", "ok", f"{spec.source} is available on the hub: {name}")
            return
    result = f"{spec.source} is not in the Hugging Face cache ({constants.HF_HUB_CACHE}), and {reason}"
    yield Check("CLIP", "warning", result, f"pass --clip-weights FILE or --clip-targets FILE; {fallback}")


def check_extras() -> Iterator[Check]:
    """Optional packages: a missing one is no fault."""
    for extra, names in EXTRAS.items():
        missing = [name for name in names if not _is_installed(name)]
        result = f"optional: pip install -e '.[{extra}]' adds {', '.join(missing)}" if missing else "installed"
        yield Check(f"extra {extra}", "ok", result)


def _is_installed(distribution: str) -> bool:
    try:
        return bool(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return False


def _brief(error: object, length: int = 100) -> str:
    return " ".join(str(error).split())[:length]
