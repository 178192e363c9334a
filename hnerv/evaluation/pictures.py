"""The pictures of an evaluation: for TensorBoard and its projector, and as PNG files of every frame.

F frames, P patches, D embedding dimensions, H W pixels. Pictures are uint8 (H, W, 3) on the host.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hnerv.data.store import FrameStore
from hnerv.errors import UserError
from hnerv.evaluation.measure import Report, SplitReport, frames_bar
from hnerv.geometry import PatchGrid
from hnerv.model import DualHeadHNeRV
from hnerv.model.predict import FRAMES_AT_ONCE, predict, to_uint8
from hnerv.tracking import NullLogger, Points, split_label, split_name
from hnerv.viz import image
from hnerv.viz.colour import MARK, map_colours

GIF_FRAMES = 24
POINTS = 512
SEAM_TOP = 4.0
TIMELINE_COLUMNS = 960


class DecodedFrame(NamedTuple):
    """truth, rgb (H, W, 3) uint8; clip (P, D), None without a CLIP head; all on the CPU."""

    position: int
    truth: np.ndarray
    rgb: np.ndarray
    clip: Tensor | None


@torch.no_grad()
def decoded_frames(
    model: DualHeadHNeRV, store: FrameStore, splits: dict[int, str], clip: bool = False
) -> Iterator[DecodedFrame]:
    """Source and reconstruction of frames as `evaluate` measures them, FRAMES_AT_ONCE in memory.

    `splits` maps their positions to the label of their split. Frames of 'val-encoded' are shown to the encoder, and
    come last; otherwise the order is kept.
    """
    was_training = model.training
    model.eval()
    for sees_frames in (False, True):
        group = [position for position, split in splits.items() if (split == "val-encoded") == sees_frames]
        for where in torch.tensor(group, dtype=torch.long).split(FRAMES_AT_ONCE) if group else ():
            batch = store.batch(where)
            prediction = predict(model, batch.times, batch.frames if sees_frames else None, clip)
            vectors = [None] * len(where) if prediction.clip is None else prediction.clip.cpu()
            pictures = _to_bytes(batch.frames), _to_bytes(prediction.rgb)
            yield from map(DecodedFrame, where.tolist(), *pictures, vectors)
    model.train(was_training)


def _to_bytes(frames: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] -> (B, H, W, 3) uint8."""
    return to_uint8(frames).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def split_labels(report: Report) -> dict[int, str]:
    """{position: label of its split} of every frame that was measured."""
    return {p: split_label(name, report.unseen) for name, split in report.splits() for p in split.positions.tolist()}


def write_images(folder: Path, model: DualHeadHNeRV, store: FrameStore, report: Report, progress: bool = False) -> int:
    """One PNG per frame, source left and reconstruction right, named by frame and split. Returns their number.

    They replace those of an earlier evaluation. `progress` as in `evaluate`. Raises UserError when they cannot be
    written.
    """
    labels = split_labels(report)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.png"):
            if re.fullmatch(r"\d{5,}_(train|val|val-encoded)\.png", path.name):
                path.unlink()
        with frames_bar("images", len(labels), progress) as bar:
            for frame in decoded_frames(model, store, labels):
                pair = np.concatenate([frame.truth, frame.rgb], axis=1)
                path = folder / f"{frame.position:05d}_{labels[frame.position]}.png"
                path.write_bytes(image.png(pair, compress_level=6).data)
                bar.update(1)
    except OSError as error:
        raise UserError(f"cannot write images to {folder} ({error}): check disk space and permissions") from error
    return len(labels)


def log_pictures(logger: NullLogger, model: DualHeadHNeRV, store: FrameStore, report: Report, epoch: int) -> None:
    """Logs every Eval/Images tag, if the logger shows pictures."""
    if not logger.shows:
        return
    splits = dict(report.splits())
    rows = {(name, kind): row for name, split in splits.items() for kind, row in _chosen_rows(split).items()}
    shown = {key: splits[key[0]].positions[row].item() for key, row in rows.items()}
    labels = split_labels(report)
    animated = evenly(sorted(labels), GIF_FRAMES)
    wanted = {position: labels[position] for position in sorted({*shown.values(), *animated})}
    decoded = {frame.position: frame for frame in decoded_frames(model, store, wanted)}
    for (name, kind), position in shown.items():
        frame, caption = decoded[position], _frame_caption(report, name, rows[name, kind])
        logger.image(f"Eval/Images/{name}_{kind}", image.png(comparison(frame.truth, frame.rgb, caption)), epoch)
    name = "val" if "val" in splits else "train"
    frame = decoded[shown[name, "frame"]]
    seam_picture = seams(frame.truth, frame.rgb, model.scene.grid, _frame_name(report, name, frame.position))
    logger.image("Eval/Images/seams", image.png(seam_picture), epoch)
    pictures = [image.shown_frame(decoded[position].rgb) for position in animated]
    # The selection plays in the time of the full video, so each frame stands longer; GIF viewers stop at 50 a second.
    fps = min(max(model.scene.fps * len(animated) / len(labels), 2.0), 25.0)
    logger.image("Eval/Images/reconstruction", image.gif(pictures, fps), epoch)
    for tag, picture in patch_maps(report, model.scene.rows, model.scene.cols).items():
        logger.image(f"Eval/Images/{tag}", image.png(picture), epoch)


def evenly(positions: list[int], most: int) -> list[int]:
    """At most `most` of them, evenly spaced, the first and the last included."""
    if len(positions) <= most:
        return positions
    return [positions[i] for i in np.linspace(0, len(positions) - 1, most).round().astype(int)]


def _chosen_rows(split: SplitReport) -> dict[str, int]:
    """{frame (the middle one), worst, best: row of the split}."""
    quality = split.psnr.mean(1)
    return {"frame": len(quality) // 2, "worst": quality.argmin().item(), "best": quality.argmax().item()}


def _frame_name(report: Report, name: str, position: int) -> str:
    return f"frame {position} ({split_name(name, report.unseen)})"


def _frame_caption(report: Report, name: str, row: int) -> str:
    split = dict(report.splits())[name]
    text = f"{_frame_name(report, name, split.positions[row].item())}: {split.psnr[row].mean():.2f} dB"
    return text + (f", similarity {split.clip.sim[row].mean():.3f}" if split.clip else "")


def comparison(truth: np.ndarray, rgb: np.ndarray, caption: str) -> np.ndarray:
    """Source, reconstruction and error map, each under its name."""
    pictures = {"source": truth, "reconstruction": rgb, "absolute error": image.error_map(truth, rgb)}
    row = image.side_by_side([image.captioned(image.shown_frame(p), [name]) for name, p in pictures.items()])
    bar = image.scale_bar(0, 100 * image.ERROR_TOP, ".0f", "% of the full range")
    return image.captioned(image.stacked([row, bar]), [caption])


def patch_maps(report: Report, rows: int, cols: int) -> dict[str, np.ndarray]:
    """{end of the tag: picture}: the patches of a frame, and all patches over time, for PSNR and similarity."""
    maps = {}
    psnr = {name: split.psnr.numpy() for name, split in report.splits()}
    maps["psnr_patches"] = _grid_map(report, psnr, (rows, cols), "PSNR", "dB", ".1f")
    maps["psnr_timeline"] = _timeline(report, psnr, "PSNR", "dB", ".1f")
    if report.train.clip is not None:
        sims, title = {name: split.clip.sim.numpy() for name, split in report.splits()}, "similarity to the targets"
        maps["clip_sim_patches"] = _grid_map(report, sims, (rows, cols), title, "", ".2f")
        maps["clip_sim_timeline"] = _timeline(report, sims, title, "", ".2f")
    return maps


def _grid_map(
    report: Report, values: dict[str, np.ndarray], shape: tuple[int, int], title: str, unit: str, form: str
) -> np.ndarray:
    """values {split: (F, P)}: their means over the frames, one map per split on a common scale."""
    means = {name: v.mean(0).reshape(shape) for name, v in values.items()}
    low, high = min(m.min() for m in means.values()), max(m.max() for m in means.values())
    cell = max(28, image.SMALLEST // 2 // shape[0]), max(44, image.SMALLEST // shape[1])
    maps = {name: image.cell_map(m, low, high, form, cell) for name, m in means.items()}
    row = image.side_by_side([image.captioned(m, [split_name(name, report.unseen)]) for name, m in maps.items()])
    picture = image.stacked([row, image.scale_bar(low, high, form, unit)])
    return image.captioned(picture, [f"{title} per patch, mean over frames"])


def _timeline(report: Report, values: dict[str, np.ndarray], title: str, unit: str, form: str) -> np.ndarray:
    """values {split: (F, P)} of both splits in frame order, a row per patch; frames of no split are grey."""
    splits = dict(report.splits())
    frames = 1 + max(split.positions.max().item() for split in splits.values())
    patches = values["train"].shape[1]
    table = np.full((patches, frames), np.nan, np.float32)
    unseen = np.zeros(frames, bool)
    for name, split in splits.items():
        table[:, split.positions.numpy()] = values[name].T
        unseen[split.positions.numpy()] = name == "val"
    low, high = np.nanmin(table), np.nanmax(table)
    # A long video has several frames per column; the worst stands for them, because it is what one looks for.
    chunk = -(-frames // TIMELINE_COLUMNS)
    starts = np.arange(0, frames, chunk)
    table, unseen = np.fmin.reduceat(table, starts, axis=1), np.maximum.reduceat(unseen, starts)
    marks = np.repeat(np.where(unseen[None, :, None], np.uint8(MARK), np.uint8(255)), 6, axis=0)
    bands = np.repeat(map_colours((table - low) / max(high - low, 1e-9)), max(6, 96 // patches), axis=0)
    sheet = np.repeat(np.concatenate([bands, marks]), max(1, 480 // len(starts)), axis=1)
    lines = [f"{title}: patches from top to bottom, frames 0 to {frames - 1} from left to right"]
    lines += [f"each column shows the worst of {chunk} frames"] * (chunk > 1)
    lines += ["unseen frames are marked below"] * bool(unseen.any())
    return image.captioned(image.stacked([sheet, image.scale_bar(low, high, form, unit)]), lines)


def seam_jumps(truth: np.ndarray, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Jumps of the error between vertical neighbours (H - 1, W) and horizontal ones (H, W - 1), mean of the channels.

    The error, not the picture: an edge of the scene jumps in both and cancels, a seam is in the reconstruction alone.
    """
    error = rgb.astype(np.float32) - truth
    return np.abs(np.diff(error, axis=0)).mean(2), np.abs(np.diff(error, axis=1)).mean(2)


def seams(truth: np.ndarray, rgb: np.ndarray, grid: PatchGrid, name: str) -> np.ndarray:
    """The reconstruction, dimmed, with a band along each border of patches, coloured by how the error jumps there."""
    down, across = seam_jumps(truth, rgb)
    typical = max((down.mean() + across.mean()) / 2, 1e-6)
    scale = image.shown_scale(*truth.shape[:2])
    sheet = (0.4 * image.shown_frame(rgb)).astype(np.uint8)
    ratios = []
    # Vertical borders are the horizontal ones of the transposed picture.
    for jumps, size, view in ((down, grid.patch_size[0], sheet), (across.T, grid.patch_size[1], sheet.swapaxes(0, 1))):
        for border in range(size, len(jumps) + 1, size):
            ratios.append(jumps[border - 1] / typical)
            _draw_band(view, ratios[-1], round(border * scale))
    mean = np.concatenate(ratios).mean() if ratios else float("nan")
    lines = [
        f"{name}: error jumps at patch borders,",
        f"{mean:.2f} times the mean jump between neighbouring pixels (1: no seam)",
    ]
    return image.captioned(image.stacked([sheet, image.scale_bar(0, SEAM_TOP, ".0f", "times the mean jump")]), lines)


def _draw_band(sheet: np.ndarray, ratios: np.ndarray, row: int, half: int = 3) -> None:
    """Colours `half` rows on each side of a border, in place; averaged over 8 pixels, so that the eye finds a line."""
    smooth = np.convolve(ratios, np.ones(8) / 8, mode="same")
    along = np.linspace(0, len(smooth) - 1, sheet.shape[1]).round().astype(int)
    sheet[row - half : row + half] = map_colours(smooth[along] / SEAM_TOP)


def log_projector(logger: NullLogger, model: DualHeadHNeRV, store: FrameStore, report: Report) -> None:
    """Logs predicted and true embeddings of evenly spaced frames, at most POINTS, if the logger shows pictures."""
    if not logger.shows or report.train.clip is None:
        return
    labels, grid = split_labels(report), model.scene.grid
    positions = evenly(sorted(labels), max(2, POINTS // (2 * grid.patches)))
    frames = sorted(decoded_frames(model, store, {position: labels[position] for position in positions}, clip=True))
    vectors = torch.cat([torch.stack([f.clip for f in frames]), store.clip(torch.tensor(positions)).cpu()])
    pictures = torch.from_numpy(np.stack([f.rgb for f in frames] + [f.truth for f in frames]))
    thumbnails = grid.split(pictures.permute(0, 3, 1, 2)).flatten(0, 1).permute(0, 2, 3, 1).contiguous().numpy()
    where = [(frame, patch) for frame in positions for patch in range(grid.patches)]
    columns = {
        "kind": ["predicted"] * len(where) + ["true"] * len(where),
        "frame": [frame for frame, _ in where] * 2,
        "patch": [patch for _, patch in where] * 2,
        "split": [labels[frame] for frame, _ in where] * 2,
    }
    logger.projector(Points(vectors.flatten(0, 1).numpy(), columns, thumbnails))
