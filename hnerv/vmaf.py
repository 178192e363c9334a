"""VMAF by an `ffmpeg` executable on the PATH that has the filter libvmaf; nothing else of this package needs it."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hnerv.errors import UserError

_SECONDS = 10
"""Limit for the list of filters."""
_INPUTS = ("decoded.yuv", "source.yuv")


@functools.lru_cache
def vmaf_obstacle() -> str:
    """Why VMAF is not available, one sentence with the fix; '' if it is."""
    program = shutil.which("ffmpeg")
    if program is None:
        return "VMAF needs ffmpeg with the filter libvmaf, and there is no ffmpeg on the PATH: install one"
    try:
        done = subprocess.run([program, "-hide_banner", "-filters"], capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        return f"VMAF needs ffmpeg with the filter libvmaf, and {program} does not run ({error}): install another"
    if "libvmaf" not in done.stdout.split():
        return f"VMAF needs ffmpeg with the filter libvmaf, which {program} lacks: install a build with libvmaf"
    return ""


def can_measure_vmaf() -> bool:
    """Whether VMAF is available; logs the reason if it is not."""
    if why := vmaf_obstacle():
        logging.getLogger("hnerv").warning("%s; VMAF is left out", why)
    return not why


class VmafMeter:
    """Collects the frames of a video as raw yuv420p in two files of `folder`, then measures them."""

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        """`size` (H, W) in pixels. Raises UserError where 4:2:0 cannot hold it."""
        if size[0] % 2 or size[1] % 2:
            raise UserError(
                f"--vmaf needs even frame sizes, not {size[0]}x{size[1]}: remove it, or choose another --crop"
            )
        self.size, self.count = size, 0
        self._folder = folder
        self._files = [(folder / name).open("wb") for name in _INPUTS]

    def add(self, number: int, decoded: bytes, source: bytes) -> None:
        """Frame `number` in the order of the video, each H W 3 / 2 bytes; in any order."""
        self.count = max(self.count, number + 1)
        try:
            for file, data in zip(self._files, (decoded, source), strict=True):
                file.seek(number * len(data))
                file.write(data)
        except OSError as error:
            raise UserError(
                f"--vmaf cannot write to {self._folder} ({error}): free disk space, or set TMPDIR"
            ) from error

    def scores(self) -> list[float]:
        """VMAF of each frame, 0 ... 100, with ffmpeg's default model. Raises UserError if ffmpeg fails."""
        self.close()
        command = ["ffmpeg", "-hide_banner", "-nostdin", "-loglevel", "error"]
        for name in _INPUTS:
            size = f"{self.size[1]}x{self.size[0]}"
            command += ["-f", "rawvideo", "-pixel_format", "yuv420p", "-video_size", size, "-i", name]
        command += ["-lavfi", "[0:v][1:v]libvmaf=log_fmt=json:log_path=scores.json", "-f", "null", "-"]
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True)
        try:
            frames = json.loads((self._folder / "scores.json").read_text())["frames"]
            scores = [float(frame["metrics"]["vmaf"]) for frame in frames]
        except (OSError, ValueError, KeyError, TypeError) as error:
            cause = " ".join(done.stderr.split())[-200:] or f"exit status {done.returncode} and no scores"
            raise UserError(f"ffmpeg could not measure VMAF ({cause}): remove --vmaf") from error
        if len(scores) != self.count:
            raise UserError(f"ffmpeg measured VMAF of {len(scores)} of {self.count} frames: remove --vmaf")
        return scores

    def close(self) -> None:
        """No frame can be added after it."""
        for file in self._files:
            file.close()


@contextlib.contextmanager
def vmaf_meter(size: tuple[int, int]) -> Iterator[VmafMeter]:
    """A meter with a temporary folder, which is removed at the end of the block. Raises UserError."""
    with tempfile.TemporaryDirectory(prefix="hnerv-vmaf-", ignore_cleanup_errors=True) as folder:
        meter = VmafMeter(Path(folder), size)
        try:
            yield meter
        finally:
            meter.close()
