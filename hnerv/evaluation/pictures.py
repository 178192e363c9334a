"""The pictures of an evaluation for TensorBoard, and the points of its projector.

F frames, P patches, H W pixels. Frames on the host are uint8 (F, H, W, 3).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hnerv.data.store import FrameStore
from hnerv.evaluation.measure import Report, SplitReport
from hnerv.geometry import PatchGrid
from hnerv.model import DualHeadHNeRV
from hnerv.model.predict import FRAMES_AT_ONCE, predict, to_uint8
from hnerv.tracking import NullLogger, Points, split_label, split_name
from hnerv.tracking.images import (
    MARK,
    SMALLEST,
    captioned,
    cell_map,
    colours,
    display_scale,
    gif,
    png,
    resized,
    scale_bar,
    side_by_side,
    stacked,
)

GIF_FRAMES = 24
POINTS = 512
ERROR_TOP = 0.1
"""The error, of pixels in [0, 1], that the error map shows at the end of its scale."""
SEAM_TOP = 4.0


class Decoded(NamedTuple):
    """truth, rgb (F, H, W, 3) uint8; clip (F, P, D) or None; all on the CPU, in the order of `positions` (F,)."""

    positions: list[int]
    truth: np.ndarray
    rgb: np.ndarray
    clip: Tensor | None


@torch.no_grad()
def decode(model: DualHeadHNeRV, store: FrameStore, report: Report, positions: list[int]) -> Decoded:
    """The frames at `positions`, embedded as the evaluation embedded them, and their sources."""
    encoded = set(report.val.positions.tolist()) if report.val and report.unseen == "encode" else set()
    truth, rgb, clip = [], [], []
    was_training = model.training
    model.eval()
    for where in torch.tensor(positions).split(FRAMES_AT_ONCE):
        for chunk in (where,) if not encoded else where.split(1):
            batch = store.batch(chunk)
            prediction = predict(model, batch.times, batch.frames if chunk[0].item() in encoded else None)
            truth.append(_bytes(batch.frames))
            rgb.append(_bytes(prediction.rgb))
            clip.append(prediction.clip)
    model.train(was_training)
    vectors = None if clip[0] is None else torch.cat(clip).cpu()
    return Decoded(positions, np.concatenate(truth), np.concatenate(rgb), vectors)


def _bytes(frames: Tensor) -> np.ndarray:
    return to_uint8(frames).permute(0, 2, 3, 1).cpu().numpy()


def log_pictures(logger: NullLogger, model: DualHeadHNeRV, store: FrameStore, report: Report, epoch: int) -> None:
    """Every Eval/Images tag, where the logger shows pictures at all."""
    if not logger.shows:
        return
    chosen = {f"{name}_{what}": row for name, split in report.splits() for what, row in _chosen(split).items()}
    splits = dict(report.splits())
    shown = {tag: splits[tag.split("_")[0]].positions[row].item() for tag, row in chosen.items()}
    every = sorted(torch.cat([split.positions for split in splits.values()]).tolist())
    film = evenly(every, GIF_FRAMES)
    wanted = sorted({*shown.values(), *film})
    decoded = decode(model, store, report, wanted)
    for tag, position in shown.items():
        name = tag.split("_")[0]
        caption = _frame_caption(report, name, chosen[tag])
        row = wanted.index(position)
        logger.image(f"Eval/Images/{tag}", png(comparison(decoded.truth[row], decoded.rgb[row], caption)), epoch)
    name = "val" if "val" in splits else "train"
    row = wanted.index(shown[f"{name}_frame"])
    seam_picture = seams(decoded.truth[row], decoded.rgb[row], model.scene.grid, _frame_name(report, name, wanted[row]))
    logger.image("Eval/Images/seams", png(seam_picture), epoch)
    pictures = [_scaled(decoded.rgb[wanted.index(position)]) for position in film]
    # The selection plays in the time of the whole: each frame stands longer, as GIFs go down to 50 a second.
    fps = min(max(model.scene.fps * len(film) / len(every), 2.0), 25.0)
    logger.image("Eval/Images/reconstruction", gif(pictures, fps), epoch)
    for tag, picture in patch_maps(report, model.scene.rows, model.scene.cols).items():
        logger.image(f"Eval/Images/{tag}", png(picture), epoch)


def evenly(positions: list[int], most: int) -> list[int]:
    """At most so many of them, evenly spaced, the first and the last among them."""
    if len(positions) <= most:
        return positions
    return [positions[i] for i in np.linspace(0, len(positions) - 1, most).round().astype(int)]


def _chosen(split: SplitReport) -> dict[str, int]:
    """{frame, worst, best: row of the split}."""
    quality = split.psnr.mean(1)
    return {"frame": len(quality) // 2, "worst": quality.argmin().item(), "best": quality.argmax().item()}


def _frame_name(report: Report, name: str, position: int) -> str:
    return f"frame {position} ({split_name(name, report.unseen)})"


def _frame_caption(report: Report, name: str, row: int) -> str:
    split = dict(report.splits())[name]
    text = f"{_frame_name(report, name, split.positions[row].item())}: {split.psnr[row].mean():.2f} dB"
    return text + (f", similarity {split.clip.sim[row].mean():.3f}" if split.clip else "")


def _scaled(frame: np.ndarray) -> np.ndarray:
    return resized(frame, display_scale(*frame.shape[:2]))


def comparison(truth: np.ndarray, rgb: np.ndarray, caption: str) -> np.ndarray:
    """Source, reconstruction and error map (H, W, 3), each under its name."""
    error = np.abs(truth.astype(np.float32) - rgb).mean(2) / 255
    error_map = colours(error / ERROR_TOP)
    cells = zip(("source", "reconstruction", "absolute error"), (truth, rgb, error_map), strict=True)
    row = side_by_side([captioned(_scaled(picture), [name]) for name, picture in cells])
    bar = scale_bar(0, 100 * ERROR_TOP, ".0f", "% of the full range")
    return captioned(stacked([row, bar]), [caption])


def patch_maps(report: Report, rows: int, cols: int) -> dict[str, np.ndarray]:
    """{end of the tag: picture} of the patches of a frame and of the patches over time, for pixels and semantics."""
    found = {}
    quantities = {"psnr": ("PSNR", "dB", ".1f"), "clip_sim": ("similarity to the targets", "", ".2f")}
    for key, (title, unit, form) in quantities.items():
        values = {name: _quantity(split, key) for name, split in report.splits()}
        if values["train"] is not None:
            found[f"{key}_patches"] = _grid_map(report, values, (rows, cols), title, unit, form)
            found[f"{key}_timeline"] = _timeline(report, values, title, unit, form)
    return found


def _quantity(split: SplitReport, key: str) -> np.ndarray | None:
    """(F, P)."""
    if key == "psnr":
        return split.psnr.numpy()
    return None if split.clip is None else split.clip.sim.numpy()


def _grid_map(
    report: Report, values: dict[str, np.ndarray], shape: tuple[int, int], title: str, unit: str, form: str
) -> np.ndarray:
    means = {name: v.mean(0).reshape(shape) for name, v in values.items()}
    low, high = min(m.min() for m in means.values()), max(m.max() for m in means.values())
    cell = max(28, SMALLEST // 2 // shape[0]), max(44, SMALLEST // shape[1])
    maps = [
        captioned(cell_map(m, low, high, form, cell), [split_name(name, report.unseen)]) for name, m in means.items()
    ]
    picture = stacked([side_by_side(maps), scale_bar(low, high, form, unit)])
    return captioned(picture, [f"{title} per patch, mean over frames"])


def _timeline(report: Report, values: dict[str, np.ndarray], title: str, unit: str, form: str) -> np.ndarray:
    splits = dict(report.splits())
    frames = 1 + max(split.positions.max().item() for split in splits.values())
    patches = values["train"].shape[1]
    whole = np.full((patches, frames), np.nan, np.float32)
    unseen = np.zeros(frames, bool)
    for name, split in splits.items():
        whole[:, split.positions.numpy()] = values[name].T
        unseen[split.positions.numpy()] = name == "val"
    low, high = np.nanmin(whole), np.nanmax(whole)
    chunk = -(-frames // 960)
    starts = np.arange(0, frames, chunk)
    whole, unseen = np.fmin.reduceat(whole, starts, axis=1), np.maximum.reduceat(unseen, starts)
    width = max(1, 480 // len(starts))
    bars = np.repeat(np.where(unseen[None, :, None], np.uint8(MARK), np.uint8(255)), 6, axis=0)
    shares = (whole - low) / max(high - low, 1e-9)
    sheet = np.concatenate([np.repeat(colours(shares), max(6, 96 // patches), axis=0), bars])
    sheet = np.repeat(sheet, width, axis=1)
    lines = [f"{title}: patches from top to bottom, frames 0 to {frames - 1} from left to right"]
    lines += [f"each column shows the worst of {chunk} frames"] * (chunk > 1)
    lines += ["unseen frames are marked below"] * bool(unseen.any())
    return captioned(stacked([sheet, scale_bar(low, high, form, unit)]), lines)


def seam_jumps(truth: np.ndarray, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Jumps of the error between vertical neighbours (H - 1, W) and horizontal ones (H, W - 1), mean of the colours."""
    error = rgb.astype(np.float32) - truth
    return np.abs(np.diff(error, axis=0)).mean(2), np.abs(np.diff(error, axis=1)).mean(2)


def seams(truth: np.ndarray, rgb: np.ndarray, grid: PatchGrid, name: str) -> np.ndarray:
    """The reconstruction, dimmed, with a band along each border of patches coloured by how the error jumps there."""
    down, across = seam_jumps(truth, rgb)
    typical = max((down.mean() + across.mean()) / 2, 1e-6)
    height, width = grid.patch_size
    scale = display_scale(*truth.shape[:2])
    sheet = (0.4 * _scaled(rgb)).astype(np.uint8)
    ratios = []
    for row in range(height, truth.shape[0], height):
        ratios.append(down[row - 1] / typical)
        _band(sheet, ratios[-1], round(row * scale), vertical=False)
    for column in range(width, truth.shape[1], width):
        ratios.append(across[:, column - 1] / typical)
        _band(sheet, ratios[-1], round(column * scale), vertical=True)
    mean = np.concatenate(ratios).mean() if ratios else float("nan")
    lines = [
        f"{name}: error jumps at patch borders,",
        f"{mean:.2f} times the mean jump between neighbouring pixels (1: no seam)",
    ]
    return captioned(stacked([sheet, scale_bar(0, SEAM_TOP, ".0f", "times the mean jump")]), lines)


def _band(sheet: np.ndarray, ratios: np.ndarray, place: int, vertical: bool, half: int = 3) -> None:
    """Draws the jumps along a border, averaged over 8 pixels so that the eye finds a line, 2 half pixels wide."""
    smooth = np.convolve(ratios, np.ones(8) / 8, mode="same")
    length = sheet.shape[0] if vertical else sheet.shape[1]
    along = colours(smooth[np.linspace(0, len(smooth) - 1, length).round().astype(int)] / SEAM_TOP)
    if vertical:
        sheet[:, place - half : place + half] = along[:, None]
    else:
        sheet[place - half : place + half] = along[None]


def log_projector(logger: NullLogger, model: DualHeadHNeRV, store: FrameStore, report: Report) -> None:
    """Predicted and true embeddings of evenly spaced frames, POINTS at most, where the logger shows anything."""
    if not logger.shows or report.train.clip is None:
        return
    splits = {p: split_label(name, report.unseen) for name, split in report.splits() for p in split.positions.tolist()}
    grid = model.scene.grid
    positions = evenly(sorted(splits), max(2, POINTS // (2 * grid.patches)))
    decoded = decode(model, store, report, positions)
    vectors = torch.cat([decoded.clip, store.clip(torch.tensor(positions)).cpu()]).flatten(0, 1).numpy()
    cut = [grid.split(torch.from_numpy(x).permute(0, 3, 1, 2)) for x in (decoded.rgb, decoded.truth)]
    thumbnails = torch.cat(cut).flatten(0, 1).permute(0, 2, 3, 1).contiguous().numpy()
    where = [(frame, patch) for frame in positions for patch in range(grid.patches)]
    columns = {
        "kind": ["predicted"] * len(where) + ["true"] * len(where),
        "frame": [frame for frame, _ in where] * 2,
        "patch": [patch for _, patch in where] * 2,
        "split": [splits[frame] for frame, _ in where] * 2,
    }
    logger.projector(Points(vectors, columns, thumbnails))
