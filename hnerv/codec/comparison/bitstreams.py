"""Rate points of .hnerv files and of video codecs on the frames that these files show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from hnerv.codec.chunks import open_coded_run
from hnerv.codec.comparison.bd_rate import Clip, DecodedBatch, RatePoint, quality
from hnerv.codec.comparison.codecs import Stopwatch, VideoCodec, check_codecs, conversion_quality, measure_codec
from hnerv.codec.comparison.table import Comparison
from hnerv.data.video.planes import SourcePlanes, plane_pairs
from hnerv.errors import UserError
from hnerv.evaluation import OpenedRun
from hnerv.model import DualHeadHNeRV
from hnerv.model.predict import FRAMES_AT_ONCE, predict, round8, to_uint8
from hnerv.runs.models import NO_TARGETS
from hnerv.vmaf import vmaf_meter, vmaf_obstacle


class MeasuredFile(NamedTuple):
    """A .hnerv file: its point, its video, the source frames (N, 3, H, W) uint8 on the CPU, notes for the reader.

    `planes` are those of the source in YUV, decoded again when they are read.
    """

    point: RatePoint
    clip: Clip
    frames: Tensor
    planes: SourcePlanes
    notes: list[str]


def compare_files(
    files: list[Path], codecs: list[VideoCodec], device: torch.device, data: str, vmaf: bool = False
) -> Comparison:
    """Points of every file and every codec on all frames of the video; VMAF where `vmaf`, if it is available.

    Raises UserError.
    """
    obstacle = vmaf_obstacle() if vmaf else ""
    vmaf = vmaf and not obstacle
    measured: list[MeasuredFile] = []
    for path in files:
        opened = open_coded_run(path, device, data, clip_targets=NO_TARGETS)
        if not measured:
            check_codecs(codecs, (opened.model.scene.height, opened.model.scene.width))
        measured.append(measure_file(path, opened, measured[0] if measured else None, vmaf))
    frames, clip, planes = measured[0].frames, measured[0].clip, measured[0].planes
    jobs = [(codec, crf) for codec in codecs for crf in codec.setup.ladder]
    points: dict[str, list[RatePoint]] = {codec.label: [] for codec in codecs}
    for codec, crf in tqdm(jobs, desc="codecs", unit="point", disable=None):
        points[codec.label].append(measure_codec(codec, frames, clip.fps, crf, planes, vmaf))
    conditions = f"{device.type}, {torch.get_num_threads()} threads, {FRAMES_AT_ONCE} frames at once"
    timing = f"hnerv is decoded on {conditions}; its time excludes building the model and the conversion to 8 bits."
    missing = [f"{obstacle}; VMAF is left out."] * bool(obstacle)
    notes = (timing, *missing, *(note for m in measured for note in m.notes))
    conversion = conversion_quality(frames, planes)
    return Comparison(clip, [m.point for m in measured], points, conversion, planes.why, notes)


def measure_file(path: Path, opened: OpenedRun, first: MeasuredFile | None, vmaf: bool = False) -> MeasuredFile:
    """A file on all frames, training and unseen. Raises UserError when they are not those of the `first` file."""
    scene, store = opened.model.scene, opened.store
    batches = torch.arange(scene.frames).split(FRAMES_AT_ONCE)
    frames = torch.cat([to_uint8(store.frames(where)).cpu() for where in batches])
    if first is not None and not torch.equal(frames, first.frames):
        raise UserError(f"{path} has other frames than {first.point.setting}: compare files of the same video")
    stopwatch = Stopwatch()
    decoded = stopwatch.timed(_decoded(opened.model.eval(), [where.float().to(store.device) for where in batches]))
    planes = opened.planes
    with vmaf_meter((scene.height, scene.width)) if vmaf else nullcontext() as meter:
        pairs = _with_planes(zip(decoded, map(store.frames, batches), strict=True), scene.frames, planes, vmaf)
        measured = quality(pairs, not planes.why, meter)
    size = path.stat().st_size
    point = RatePoint("hnerv", str(path), size, *measured[:2], None, stopwatch.seconds, *measured[2:])
    clip = Clip(scene.frames, scene.height, scene.width, scene.fps)
    return MeasuredFile(point, clip, frames if first is None else first.frames, planes, _notes(path, opened))


def _with_planes(
    pairs: Iterable[tuple[Tensor, Tensor]], count: int, planes: SourcePlanes, vmaf: bool
) -> Iterator[DecodedBatch]:
    """(decoded, source) batches of all frames, with their planes where something is measured on them."""
    source = None if planes.why else planes.read(range(count))
    for decoded, frames in pairs:
        needed = source is not None or vmaf
        converted = plane_pairs(round8(decoded), frames, source, planes.display) if needed else ()
        yield DecodedBatch(decoded, frames, [*converted])


def _decoded(model: DualHeadHNeRV, batches: list[Tensor]) -> Iterator[Tensor]:
    """Frames (B, 3, H, W) of each batch of times (B,)."""
    for times in batches:
        with torch.no_grad():
            rgb = predict(model, times, clip=False).rgb
        if rgb.is_cuda:
            torch.cuda.synchronize(rgb.device)
        yield rgb


def _notes(path: Path, opened: OpenedRun) -> list[str]:
    scene, notes = opened.model.scene, []
    if unseen := scene.frames - len(scene.train):
        notes.append(
            f"{path} was trained on {len(scene.train)} of the {scene.frames} frames, {unseen} are unseen; the other "
            "codecs code all frames, and all frames are measured."
        )
    if not opened.same_pixels:
        notes.append(f"NOT THE PIXELS THAT {path} WAS TRAINED ON: measured against {opened.source}.")
    return notes
