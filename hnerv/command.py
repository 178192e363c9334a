"""What the scripts share: errors in one line, the device, the log on stderr."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hnerv.errors import Interrupted, RunError, UserError, first_line, is_gpu_lost, is_out_of_memory, shortened

if TYPE_CHECKING:
    import torch


_WRONG_PATH = {
    errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EINVAL
}  # fmt: skip
"""A path that cannot be: a fault of the command line. Other errors of the system are faults of the surroundings."""


@contextlib.contextmanager
def one_line_errors(prog: str, debug: bool) -> Iterator[None]:
    """Ends the process with one line on stderr: status 2 for a UserError, 1 for a RunError, 128 + n for a signal.

    An error of the system that nobody foresaw has status 2 where a path cannot be, else 1. A GPU that is lost or out
    of memory has status 1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        yield
    except (UserError, RunError, Interrupted) as error:
        if debug:
            traceback.print_exc()
        sys.stderr.write(f"{prog}: {' '.join(str(error).split())}\n")
        sys.exit(error.status if isinstance(error, Interrupted) else 2 if isinstance(error, UserError) else 1)
    except RuntimeError as error:
        if is_out_of_memory(error):
            cause, fix = "out of GPU memory", "stop other processes on the GPU"
        elif is_gpu_lost(error):
            cause, fix = "the GPU failed", "check nvidia-smi"
        else:
            raise
        if debug:
            traceback.print_exc()
        sys.stderr.write(f"{prog}: {cause} ({first_line(error)}): {fix}, or pass --device cpu\n")
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if debug:
            traceback.print_exc()
        place = f"{error.filename}: " if error.filename else ""
        cause = " ".join(f"{place}{error.strerror or error}".split())
        sys.stderr.write(f"{prog}: {shortened(cause)}: use another path, or fix the cause\n")
        sys.exit(2 if error.errno in _WRONG_PATH else 1)
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: stopped; everything saved so far is intact\n")
        sys.exit(130)


def pick_device(name: str) -> torch.device:
    """'auto' -> CUDA where there is one, else the CPU. 'cuda:N' becomes the current CUDA device.

    Raises UserError for a device that is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name!r} is not a device: use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name!r} is not supported: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no CUDA device"
        raise UserError(
            f"--device {name}: torch {torch.__version__} finds {found}: use --device cpu, or fix the driver"
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # else pinned memory and graphs would take memory of the first GPU too
    return device


def next_commands(measured: Path, watched: Path) -> str:
    """How to evaluate and to watch what was trained, as a shell takes it."""
    return "\n".join(
        (
            f"evaluate:  {shlex.join(['python', 'eval.py', str(measured)])}",
            f"watch:     {shlex.join(['tensorboard', '--logdir', str(watched)])}",
        )
    )


MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Parameters of mallopt(3), from malloc.h."""


def keep_freed_memory() -> None:
    """Where the C library is glibc, freed blocks below 256 MB stay with the process; of an old one below 32 MB.

    By its defaults glibc hands large ones back to the system, and each step of a large model asks for all of its maps
    anew, page by page: that took two fifths of a step of 1.5M parameters at 640x1280. The process holds what it needed
    at its peak, and what lies between blocks: a sixth to a half more.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another system, or another C library
        mallopt = ctypes.CDLL(None).mallopt
        # The second alone would have every block above 128 kB mapped anew: it switches glibc's own adaptation off.
        if mallopt(MMAP_THRESHOLD, 256 << 20) or mallopt(MMAP_THRESHOLD, 32 << 20):
            mallopt(TRIM_THRESHOLD, -1)


MOST_THREADS = 1 << 16


def set_up_torch(threads: int, deterministic: bool = False, benchmark: bool = False) -> None:
    """CPU threads, 0 for torch's own choice; fp32 that is fp32, not TF32, on CUDA. Raises UserError for a wrong number.

    Convolutions are deterministic on CUDA, so that a file decodes to the same pixels twice. With `benchmark`, cuDNN
    takes the fastest algorithm for each shape instead, deterministic or not. With `deterministic`, every operation
    gives the same bits from the same run, and one that cannot raises; the CPU does so anyway. To be called before
    anything imports torch: OpenMP's threads would else spin for long while they wait, and a step takes several times as
    long as soon as another process wants one of the cores; and cuBLAS reads its workspace when CUDA starts.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    keep_freed_memory()
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic or not benchmark
    torch.backends.cudnn.benchmark = benchmark and not deterministic

    if threads < 0:
        raise UserError(f"--threads {threads} must be at least 0")
    if threads > MOST_THREADS:
        raise UserError(f"--threads {threads} is above {MOST_THREADS}: pass at most the number of cores, or 0")
    if threads:
        torch.set_num_threads(threads)
