"""A few frames of a run as small pictures: ground truth, reconstruction, and where they differ."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from hnerv.model.predict import FRAMES_AT_ONCE, predict, round8, to_uint8
from hnerv.report.reading import Row
from hnerv.runs.opening import OpenedRun

WIDEST = 480
"""Pixels of the longer side of a picture: wider frames are reduced."""
ERROR_TOP = 0.2
"""Absolute difference, of a range of 1, that has the brightest colour of an error map."""
QUALITIES = (85, 70, 50, 30)


class Shown(NamedTuple):
    """A frame of the slider, its three pictures as data URIs; `why` says what it was chosen for, '' if to fill."""

    row: Row
    why: str
    truth: str
    reconstruction: str
    error: str


def pick_frames(rows: list[Row], count: int, like: Iterable[int] = ()) -> dict[int, str]:
    """{frame: why it is shown} for at most `count` frames (at least 4): the worst and best of each split by PSNR.

    The others are spread evenly over the video, a third of them unseen where there are any. Where all frames of
    `like` were measured, it is these that are chosen.
    """
    ends = _extremes(rows)
    if like and {row.frame for row in rows}.issuperset(like):
        return {frame: ends.get(frame, "") for frame in like}
    room = max(0, count - len(ends))
    unseen = _spread([r.frame for r in rows if not r.seen and r.frame not in ends], (room + 2) // 3)
    seen = _spread([r.frame for r in rows if r.seen and r.frame not in ends], room - len(unseen))
    return dict(sorted((ends | dict.fromkeys([*unseen, *seen], "")).items()))


@torch.no_grad()
def draw_frames(run: OpenedRun, rows: list[Row], chosen: dict[int, str], budget: int) -> list[Shown]:
    """Decodes the frames of `chosen`; all pictures together take about `budget` bytes, or their coarsest quality."""
    run.model.eval()
    of = {row.frame: row for row in rows}
    triples = {}
    for encoded in (False, True):
        mine = [frame for frame in chosen if (of[frame].split == "val-encoded") == encoded]
        for where in torch.tensor(mine).split(FRAMES_AT_ONCE) if mine else ():
            triples |= zip(where.tolist(), _decode(run, where, encoded), strict=True)
    for quality in QUALITIES:
        coded = [[_uri(picture, quality) for picture in triples[frame]] for frame in chosen]
        if sum(len(uri) for uris in coded for uri in uris) <= budget:
            break
    return [Shown(of[frame], why, *uris) for (frame, why), uris in zip(chosen.items(), coded, strict=True)]


def _extremes(rows: list[Row]) -> dict[int, str]:
    found: dict[int, str] = {}
    for name, seen in (("training", True), ("unseen", False)):
        if mine := [row for row in rows if row.seen == seen]:
            found[max(mine, key=_psnr).frame] = f"best {name} frame"
            found[min(mine, key=_psnr).frame] = f"worst {name} frame"
    return found


def _psnr(row: Row) -> float:
    return row.values["psnr"]


def _spread(frames: list[int], count: int) -> list[int]:
    """At most `count` of them, evenly, each the middle of its share."""
    count = min(count, len(frames))
    return [frames[(2 * i + 1) * len(frames) // (2 * count)] for i in range(count)]


def _decode(run: OpenedRun, where: Tensor, sees_frames: bool) -> list[tuple[Image.Image, Image.Image, Image.Image]]:
    """Positions (B,) -> truth, reconstruction and error of each, as `evaluate` measured them, reduced."""
    batch = run.store.batch(where)
    rgb = round8(predict(run.model, batch.times, batch.frames if sees_frames else None, clip=False).rgb)
    error = (rgb - batch.frames).abs().mean(1)
    pairs = zip(batch.frames, rgb, error, strict=True)
    return [(_image(truth), _image(found), _heat(wrong)) for truth, found, wrong in pairs]


def _image(rgb: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] -> a picture of at most WIDEST pixels a side."""
    pixels = to_uint8(rgb).permute(1, 2, 0).cpu().contiguous().numpy()
    return _reduced(Image.fromarray(pixels))


def _heat(error: Tensor) -> Image.Image:
    """(H, W), mean absolute difference of the colours -> a picture, dark where they agree."""
    from matplotlib import colormaps

    colours = colormaps["inferno"]((error / ERROR_TOP).clamp(0, 1).cpu().numpy(), bytes=True)
    return _reduced(Image.fromarray(colours[..., :3].copy()))


def _reduced(picture: Image.Image) -> Image.Image:
    scale = WIDEST / max(picture.size)
    if scale >= 1:
        return picture
    return picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)


def _uri(picture: Image.Image, quality: int) -> str:
    file = io.BytesIO()
    picture.save(file, format="WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
