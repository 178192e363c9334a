"""Set-up shared by all commands: one-line errors, the device, torch and its threads."""

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


_WRONG_PATH = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
_WRONG_PATH |= {errno.EACCES, errno.EPERM}
"""Errors of a path on the command line (status 2); other system errors have status 1."""


@contextlib.contextmanager
def one_line_errors(prog: str, debug: bool) -> Iterator[None]:
    """Turn expected errors into one line on stderr and an exit status.

    Status 2: UserError, or an OSError of a path that cannot exist. 1: RunError, any other OSError, and a GPU that is
    lost or out of memory. 128 + n: a signal. Other exceptions are faults of the program and pass.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may have characters that the terminal lacks
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        yield
    except BrokenPipeError:  # the reader of stdout, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: stopped; everything saved so far is intact\n")
        sys.exit(130)
    except Exception as error:
        expected = line_and_status(error)
        if expected is None:
            raise
        if debug:
            traceback.print_exc()
        sys.stderr.write(f"{prog}: {expected[0]}\n")
        sys.exit(expected[1])


def line_and_status(error: Exception) -> tuple[str, int] | None:
    """The message of an expected error, in one line, and its exit status; None for a fault of the program."""
    if isinstance(error, UserError | RunError | Interrupted):
        status = error.status if isinstance(error, Interrupted) else 2 if isinstance(error, UserError) else 1
        return " ".join(str(error).split()), status
    if isinstance(error, OSError):
        path = f"{error.filename}: " if error.filename else ""
        cause = " ".join(f"{path}{error.strerror or error}".split())
        line = f"{shortened(cause)}: use another path, or fix the cause"
        return line, 2 if error.errno in _WRONG_PATH else 1
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        return f"out of GPU memory ({first_line(error)}): stop other processes on the GPU, or pass --device cpu", 1
    if isinstance(error, RuntimeError) and is_gpu_lost(error):
        return f"the GPU failed ({first_line(error)}): check nvidia-smi, or pass --device cpu", 1
    return None


def pick_device(name: str) -> torch.device:
    """The device of --device; auto: CUDA if available, else the CPU. 'cuda:N' becomes the current CUDA device.

    Raises UserError for an unknown, unsupported or missing device.
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
        torch.cuda.set_device(device)  # otherwise pinned memory and CUDA graphs would also allocate on the first GPU
    return device


def next_commands(run: Path) -> str:
    """The commands that evaluate and watch the run of a folder, quoted for a shell."""
    checkpoint, events = run / "checkpoints" / "latest.pt", run / "tensorboard"
    if not checkpoint.is_file():  # of a video in segments
        checkpoint = events = run
    evaluate = shlex.join(["python", "eval.py", str(checkpoint)])
    watch = shlex.join(["tensorboard", "--logdir", str(events)])
    return f"evaluate:  {evaluate}\nwatch:     {watch}"


MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Parameters of mallopt(3), from malloc.h."""


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks below 256 MB (an old glibc: 32 MB) for the next allocation. No effect elsewhere.

    By default glibc returns large blocks to the system, and each step of a large model faults in the pages of all its
    feature maps again: two fifths of a step of 1.5M parameters at 640x1280. The price is a resident size that stays
    at its peak, a sixth to a half more with fragmentation.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another system or C library
        mallopt = ctypes.CDLL(None).mallopt
        # Setting either threshold switches off glibc's own adaptation. With the trim threshold alone, every block
        # above 128 kB would be mapped and unmapped each time, so it follows only where the first call succeeded.
        if mallopt(MMAP_THRESHOLD, 256 << 20) or mallopt(MMAP_THRESHOLD, 32 << 20):
            mallopt(TRIM_THRESHOLD, -1)


MAX_THREADS = 1 << 16


def check_threads(threads: int) -> None:
    """Raises UserError for a number of CPU threads out of range; 0 is torch's own choice."""
    if threads < 0:
        raise UserError(f"--threads {threads} must be at least 0")
    if threads > MAX_THREADS:
        raise UserError(f"--threads {threads} is above {MAX_THREADS}: pass at most the number of cores, or 0")


def set_up_torch(threads: int, deterministic: bool | None = False, benchmark: bool = False) -> None:
    """Set CPU threads (0: chosen by torch), fp32 precision and determinism. Raises UserError for wrong `threads`.

    Products are true fp32 on CUDA, not TF32. cuDNN's algorithms are deterministic, so that a file always decodes to
    the same pixels; with `benchmark`, cuDNN takes the fastest for each shape instead. With `deterministic`, every
    operation is bit-reproducible, or raises if it has no such implementation; on the CPU this always holds. None
    leaves that setting as it is.

    The environment variable is read once, by cuBLAS when CUDA starts.
    """
    check_threads(threads)
    keep_freed_memory()
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    if deterministic is not None:
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = bool(deterministic) or not benchmark
    torch.backends.cudnn.benchmark = benchmark and not deterministic
    if threads:
        torch.set_num_threads(threads)
