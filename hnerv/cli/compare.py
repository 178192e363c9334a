"""`hnerv compare`: .hnerv files against x264, x265 and SVT-AV1 on the same frames."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hnerv.cli import add_device
from hnerv.command import pick_device
from hnerv.errors import UserError
from hnerv.flags import Parser

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hnerv.codec.comparison import Clip, Comparison, RatePoint, Rival
    from hnerv.evaluation import OpenedRun


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE.hnerv", help="files of one video, one rate point each"
    )
    parser.add_argument(
        "--data",
        default="",
        metavar="PATH|CLIP",
        help="the video; not needed if a file of that name is in the current folder",
    )
    parser.add_argument(
        "--against",
        default="x264,x265,svt-av1",
        metavar="CODECS",
        help="comma-separated, each NAME or NAME:PRESET: x264, x265 (preset medium), svt-av1 (preset 6); default: all",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="write the comparison here as CSV, JSON and a plot"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_device(parser)


def run(ask: argparse.Namespace) -> None:
    """Measures ours, then the rivals, and says who wins. Raises UserError before anything is coded."""
    from hnerv.codec.comparison import parse_rivals, text_table, to_dict, write_comparison

    rivals = parse_rivals(ask.against)
    _check_paths(ask.files, ask.output)
    found = compare(ask.files, rivals, pick_device(ask.device), ask.data)
    print(json.dumps(to_dict(found), indent=2) if ask.json else text_table(found))
    if ask.output:
        written = [path.name for path in write_comparison(ask.output, found)]
        if not ask.json:
            print(f"files: {', '.join(written)} in {ask.output}")


def compare(files: list[Path], rivals: list[Rival], device: torch.device, data: str) -> Comparison:
    """Points of every file and every rival on all frames of the clip. Raises UserError."""
    import torch

    from hnerv.codec import open_stream
    from hnerv.codec.comparison import Comparison, check_rivals, conversion_psnr
    from hnerv.model.predict import FRAMES_AT_ONCE
    from hnerv.runs.opening import NO_TARGETS

    measured: list[_Measured] = []
    for path in files:
        opened = open_stream(path, device, data, clip_targets=NO_TARGETS)
        if not measured:
            check_rivals(rivals, (opened.model.scene.height, opened.model.scene.width))
        measured.append(_measure(path, opened, measured[0] if measured else None))
    frames, clip = measured[0].frames, measured[0].clip
    how = f"{device.type}, {torch.get_num_threads()} threads, {FRAMES_AT_ONCE} frames at once"
    timing = f"hnerv is decoded on {how}; its time excludes building the model and the conversion to 8 bits."
    notes = (timing, *(note for m in measured for note in m.notes))
    points = _encode_all(rivals, frames, clip.fps)
    return Comparison(clip, [m.point for m in measured], points, conversion_psnr(frames), notes)


class _Measured(NamedTuple):
    point: RatePoint
    clip: Clip
    frames: Tensor
    """(N, 3, H, W) uint8 on the CPU, what was coded."""
    notes: tuple[str, ...]


def _check_paths(files: list[Path], output: Path | None) -> None:
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is not a file: pass one written by `hnerv encode`")
    if output and output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file: pass a folder")


def _measure(path: Path, opened: OpenedRun, first: _Measured | None) -> _Measured:
    """One file of ours. Raises UserError when its frames are not those of the first."""
    import torch

    from hnerv.codec.comparison import Clip, RatePoint, quality

    scene = opened.model.scene
    clip = Clip(scene.frames, scene.height, scene.width, scene.fps)
    frames = _source_frames(opened)
    if first is not None and not torch.equal(frames, first.frames):
        raise UserError(f"{path} has other frames than {first.point.setting}: compare files of the same video")
    decoder = _Decoder(opened)
    measured = quality(decoder.pairs())
    point = RatePoint("hnerv", str(path), path.stat().st_size, *measured, None, decoder.seconds)
    return _Measured(point, clip, frames if first is None else first.frames, _notes(path, opened))


class _Decoder:
    """Every frame of a model from the model alone, seen in training or not; adds up the seconds that this takes."""

    def __init__(self, opened: OpenedRun) -> None:
        self.seconds = 0.0
        self._opened = opened

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(decoded, source) batches (B, 3, H, W) in [0, 1]."""
        import torch

        from hnerv.model.predict import FRAMES_AT_ONCE, predict

        model, store = self._opened.model.eval(), self._opened.store
        for where in torch.arange(model.scene.frames).split(FRAMES_AT_ONCE):
            batch = store.batch(where)
            start = time.perf_counter()
            with torch.no_grad():
                decoded = predict(model, batch.times, clip=False).rgb
            if decoded.is_cuda:
                torch.cuda.synchronize(decoded.device)
            self.seconds += time.perf_counter() - start
            yield decoded, batch.frames


def _source_frames(opened: OpenedRun) -> Tensor:
    """(N, 3, H, W) uint8 on the CPU."""
    import torch

    from hnerv.model.predict import to_uint8

    batches = torch.arange(opened.model.scene.frames).split(16)
    return torch.cat([to_uint8(opened.store.frames(where)).cpu() for where in batches])


def _notes(path: Path, opened: OpenedRun) -> tuple[str, ...]:
    scene = opened.model.scene
    unseen = scene.frames - len(scene.train)
    notes = []
    if unseen:
        notes.append(
            f"{path} was trained on {len(scene.train)} of the {scene.frames} frames, {unseen} are unseen; the other "
            "codecs code all frames, and all frames are measured."
        )
    if not opened.same_pixels:
        notes.append(f"NOT THE PIXELS THAT {path} WAS TRAINED ON: measured against {opened.source}.")
    return tuple(notes)


def _encode_all(rivals: list[Rival], frames: Tensor, fps: float) -> dict[str, list[RatePoint]]:
    from tqdm import tqdm

    from hnerv.codec.comparison import encode_rival

    jobs = [(rival, crf) for rival in rivals for crf in rival.encoder.ladder]
    points: dict[str, list[RatePoint]] = {rival.label: [] for rival in rivals}
    for rival, crf in tqdm(jobs, desc="codecs", unit="point", disable=None):
        points[rival.label].append(encode_rival(rival, frames, fps, crf))
    return points
