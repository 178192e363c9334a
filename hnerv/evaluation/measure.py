"""Model and frames -> per-frame and per-patch measurements.

F frames of a split, P patches, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from hnerv.data.store import FrameStore
from hnerv.evaluation.health import EmbeddingHealth, StageFeatures, Watch, embedding_health
from hnerv.metrics import centred_cosine, cosine, frame_mse, ms_ssim, patch_mse, psnr, retrieval
from hnerv.model import DualHeadHNeRV
from hnerv.model.predict import FRAMES_AT_ONCE, predict, round8


class ClipMeasures(NamedTuple):
    """Each (F, P). Cosine and centred cosine; of the true embedding as a query to all predictions of the video:
    whether its patch is the first, among the first 5, among the first 10; overlap and Spearman of `retrieval`.
    """

    sim: Tensor
    centred: Tensor
    found: Tensor
    found5: Tensor
    found10: Tensor
    overlap: Tensor
    spearman: Tensor


class SplitReport(NamedTuple):
    """One split: positions (F,), psnr (F, P) of patches, psnr_frame (F,), ms_ssim (F,), all on the CPU.

    Pixels are measured as a viewer gets them: clamped and rounded to 8 bits.
    """

    positions: Tensor
    psnr: Tensor
    psnr_frame: Tensor
    ms_ssim: Tensor
    clip: ClipMeasures | None
    health: EmbeddingHealth | None


class Report(NamedTuple):
    """An evaluation. `val` is None where the split leaves no unseen frames. `unseen` says how these were embedded.

    `features` are those of the training frames.
    """

    train: SplitReport
    val: SplitReport | None
    unseen: str
    features: StageFeatures

    def splits(self) -> Iterator[tuple[str, SplitReport]]:
        """('train', ...) and, where there is one, ('val', ...)."""
        yield "train", self.train
        if self.val is not None:
            yield "val", self.val


class _Measured(NamedTuple):
    """Pixels on the CPU, embeddings `clip` (F, P, D) on the device of the model."""

    psnr: Tensor
    psnr_frame: Tensor
    ms_ssim: Tensor
    clip: Tensor | None


class _Clip(NamedTuple):
    measures: ClipMeasures
    health: EmbeddingHealth


@torch.no_grad()
def evaluate(model: DualHeadHNeRV, store: FrameStore, unseen: str = "", progress: bool = False) -> Report:
    """Decodes every frame of both splits in fp32 and measures it against the source.

    Training frames come from the model alone. `unseen='encode'` lets the embedding see an unseen frame itself;
    otherwise it is decoded from the model alone too. Stored codes are taken as they are: see `Embedding.refresh`.
    `progress` draws a bar over the frames, on a terminal only.
    """
    was_training, scene = model.training, model.scene
    model.eval()
    positions = {"train": torch.tensor(scene.train), "val": torch.tensor(scene.val, dtype=torch.long)}
    positions = {name: where for name, where in positions.items() if len(where)}
    measured, watches = {}, {name: Watch(model) for name in positions}
    with frames_bar("evaluate", sum(map(len, positions.values())), progress) as bar:
        for name, where in positions.items():
            with watches[name].watching():
                sees = name == "val" and unseen == "encode"
                measured[name] = _measure(model, store, in_batches(where, bar), sees, watches[name])
    model.train(was_training)
    clip = _clip_measures(store, positions, measured, watches)
    reports = {
        name: SplitReport(positions[name], m.psnr, m.psnr_frame, m.ms_ssim, *(clip[name] if clip else (None, None)))
        for name, m in measured.items()
    }
    return Report(reports["train"], reports.get("val"), unseen, watches["train"].features())


def frames_bar(label: str, frames: int, progress: bool) -> tqdm:
    """A bar on stderr where that is a terminal and `progress` is wanted; otherwise nothing is drawn."""
    return tqdm(total=frames, desc=label, unit="frame", disable=None if progress else True)


def in_batches(positions: Tensor, bar: tqdm) -> Iterator[Tensor]:
    """Positions (F,) in batches that fit, in order; the bar follows."""
    for where in positions.split(FRAMES_AT_ONCE):
        yield where
        bar.update(len(where))


def _measure(
    model: DualHeadHNeRV, store: FrameStore, batches: Iterator[Tensor], sees_frames: bool, watch: Watch
) -> _Measured:
    rows = []
    for where in batches:
        watch.share = len(where) / FRAMES_AT_ONCE
        batch = store.batch(where)
        prediction = predict(model, batch.times, batch.frames if sees_frames else None)
        rgb = round8(prediction.rgb)
        rows.append(
            _Measured(
                psnr(patch_mse(rgb, batch.frames, model.scene.grid)),
                psnr(frame_mse(rgb, batch.frames)),
                ms_ssim(rgb, batch.frames),
                prediction.clip,
            )
        )
    *pixels, clip = zip(*rows, strict=True)
    return _Measured(*(torch.cat(column).cpu() for column in pixels), None if clip[0] is None else torch.cat(clip))


def _clip_measures(
    store: FrameStore, positions: dict[str, Tensor], measured: dict[str, _Measured], watches: dict[str, Watch]
) -> dict[str, _Clip] | None:
    """Retrieval searches the predictions of the whole video; centring removes the mean of the training targets."""
    if measured["train"].clip is None:
        return None
    where = torch.cat([positions[name] for name in measured])
    predicted = torch.cat([m.clip for m in measured.values()])
    targets = store.clip(where)
    mean = store.clip(positions["train"]).mean(dim=(0, 1))
    columns = clip_measures(predicted, targets, where, mean)
    predicted, targets, mean = predicted.cpu(), targets.cpu(), mean.cpu()
    sizes = [len(positions[name]) for name in measured]
    parts = zip(*(column.split(sizes) for column in columns), strict=True)
    healths = (
        embedding_health(ours, theirs, mean, watch.norm())
        for ours, theirs, watch in zip(predicted.split(sizes), targets.split(sizes), watches.values(), strict=True)
    )
    return {
        name: _Clip(ClipMeasures(*part), health) for name, part, health in zip(measured, parts, healths, strict=True)
    }


def clip_measures(predicted: Tensor, targets: Tensor, where: Tensor, mean: Tensor) -> ClipMeasures:
    """predicted, targets (F, P, D) of frames at the positions where (F,), mean (D,) of the training targets.

    Computed on the device of the embeddings; the result is on the CPU.
    """
    patches = torch.arange(targets.shape[1], device=targets.device).expand(targets.shape[:2])
    frames = where.to(targets.device)[:, None].expand_as(patches)
    found = retrieval(predicted.flatten(0, 1), targets.flatten(0, 1), frames.flatten(), patches.flatten())
    rank, overlap, spearman = (column.view_as(patches) for column in found)
    hits = (rank < top for top in (1, 5, 10))
    columns = cosine(predicted, targets), centred_cosine(predicted, targets, mean), *hits, overlap, spearman
    return ClipMeasures(*(column.cpu() for column in columns))
