"""Model and frames -> per-frame and per-patch measurements.

F frames of a split, P patches, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from hnerv.data.store import FrameStore
from hnerv.data.video.planes import NO_PLANES, SourcePlanes, plane_pairs
from hnerv.evaluation.health import ActivationMonitor, EmbeddingHealth, StageFeatures, embedding_health
from hnerv.metrics import centred_cosine, cosine, frame_mse, ms_ssim, patch_mse, plane_psnr, psnr, retrieval
from hnerv.model import DualHeadHNeRV
from hnerv.model.predict import FRAMES_AT_ONCE, predict, round8
from hnerv.runs.models import OpenedRun
from hnerv.vmaf import VmafMeter, vmaf_meter


class ClipMeasures(NamedTuple):
    """Each (F, P): cosine and centred cosine to the target, and retrieval with the true embedding as the query.

    The query searches all predictions of the video. `found`, `found5`, `found10`: whether its patch, in its own or a
    neighbouring frame, ranks first, among the first 5, among the first 10. `exact`: whether that of its own frame ranks
    first. `overlap` and `spearman` as in `retrieval`.
    """

    sim: Tensor
    centred: Tensor
    found: Tensor
    exact: Tensor
    found5: Tensor
    found10: Tensor
    overlap: Tensor
    spearman: Tensor


class SplitReport(NamedTuple):
    """One split: positions (F,), psnr (F, P) of patches, psnr_frame (F,), ms_ssim (F,), all on the CPU.

    Pixels are measured as displayed: clamped and rounded to 8 bits. Without targets, `clip` and `health` are None.
    `planes` (F, 3) is the PSNR of Y, U, V against the planes of the source, `vmaf` (F,); None if not measured.
    """

    positions: Tensor
    psnr: Tensor
    psnr_frame: Tensor
    ms_ssim: Tensor
    clip: ClipMeasures | None
    health: EmbeddingHealth | None
    planes: Tensor | None = None
    vmaf: Tensor | None = None


class Report(NamedTuple):
    """An evaluation. `val` is None where the split holds out no frames. `unseen`: how unseen frames were embedded.

    `features` are those of the training frames. `no_planes` is why PSNR in YUV was not measured.
    """

    train: SplitReport
    val: SplitReport | None
    unseen: str
    features: StageFeatures
    no_planes: str = ""

    def splits(self) -> Iterator[tuple[str, SplitReport]]:
        """('train', ...) and, where there is one, ('val', ...)."""
        yield "train", self.train
        if self.val is not None:
            yield "val", self.val


class _Measured(NamedTuple):
    """Columns of a SplitReport, on the CPU, and predicted embeddings `clip` (F, P, D) on the device of the model.

    `planes` is (F, 0) if not measured.
    """

    psnr: Tensor
    psnr_frame: Tensor
    ms_ssim: Tensor
    planes: Tensor
    clip: Tensor | None


class _PlaneMeter:
    """Measures the decoded frames of a split in YUV 4:2:0: PSNR of planes if the source has them, VMAF if wanted."""

    def __init__(self, positions: Tensor, planes: SourcePlanes, vmaf: VmafMeter | None, order: Tensor) -> None:
        """`order`: the measured positions of all splits, ascending, which are the frames that VMAF sees."""
        self._planes, self._vmaf, self._order = planes, vmaf, order
        self._source = None if planes.why else planes.read(positions.tolist())

    def measure(self, where: Tensor, decoded: Tensor, source: Tensor) -> Tensor:
        """The next frames (B, 3, H, W) in [0, 1] of the split -> PSNR (B, 3); (B, 0) without planes of the source."""
        result = torch.empty(len(where), 0 if self._source is None else 3)
        if self._source is not None or self._vmaf is not None:
            pairs = plane_pairs(decoded, source, self._source, self._planes.display)
            for row, number, pair in zip(result, torch.searchsorted(self._order, where).tolist(), pairs, strict=True):
                if self._source is not None:
                    row.copy_(plane_psnr(*pair))
                if self._vmaf is not None:
                    self._vmaf.add(number, *(planes.to_bytes() for planes in pair))
        return result


@torch.no_grad()
def evaluate(
    model: DualHeadHNeRV,
    store: FrameStore,
    unseen: str = "",
    progress: bool = False,
    planes: SourcePlanes = NO_PLANES,
    vmaf: VmafMeter | None = None,
) -> Report:
    """Decodes every frame of both splits in fp32 and measures it against the source.

    Training frames come from the model alone, with stored codes as they are, see `Embedding.refresh`. Unseen frames
    do as well, unless `unseen='encode'` shows them to the encoder. `progress` draws a bar over the frames on a
    terminal. With `planes`, PSNR is measured in YUV too; with `vmaf`, VMAF over the frames of both splits in the order
    of the video.
    """
    was_training, scene = model.training, model.scene
    model.eval()
    positions = {"train": torch.tensor(scene.train), "val": torch.tensor(scene.val, dtype=torch.long)}
    positions = {name: where for name, where in positions.items() if len(where)}
    measured, monitors = {}, {name: ActivationMonitor(model) for name in positions}
    order = torch.cat([*positions.values()]).sort().values
    with frames_bar("evaluate", sum(map(len, positions.values())), progress) as bar:
        for name, where in positions.items():
            with monitors[name].attached():
                sees_frames = name == "val" and unseen == "encode"
                meter = _PlaneMeter(where, planes, vmaf, order)
                measured[name] = _measure(model, store, in_batches(where, bar), sees_frames, monitors[name], meter)
    model.train(was_training)
    clip = dict.fromkeys(positions, (None, None))
    if measured["train"].clip is not None:
        clip = _clip_columns(store, positions, measured, monitors)
    scores = None if vmaf is None else torch.tensor(vmaf.scores())
    reports = {
        name: SplitReport(
            positions[name],
            *m[:3],
            *clip[name],
            planes=None if planes.why else m.planes,
            vmaf=None if scores is None else scores[torch.searchsorted(order, positions[name])],
        )
        for name, m in measured.items()
    }
    return Report(reports["train"], reports.get("val"), unseen, monitors["train"].features(), planes.why)


def evaluate_run(run: OpenedRun, vmaf: bool = False, progress: bool = True) -> Report:
    """`evaluate` with the planes of the source, if it has them, and with VMAF where `vmaf`. Raises UserError."""
    scene, unseen = run.model.scene, run.config.model.unseen
    with vmaf_meter((scene.height, scene.width)) if vmaf else nullcontext() as meter:
        return evaluate(run.model, run.store, unseen, progress, run.planes, meter)


def frames_bar(label: str, frames: int, progress: bool) -> tqdm:
    """A bar on stderr, drawn only with `progress` and on a terminal."""
    return tqdm(total=frames, desc=label, unit="frame", disable=None if progress else True)


def in_batches(positions: Tensor, bar: tqdm) -> Iterator[Tensor]:
    """Positions (F,) in batches of FRAMES_AT_ONCE, in order; updates the bar."""
    for where in positions.split(FRAMES_AT_ONCE):
        yield where
        bar.update(len(where))


def _measure(
    model: DualHeadHNeRV,
    store: FrameStore,
    batches: Iterator[Tensor],
    sees_frames: bool,
    monitor: ActivationMonitor,
    meter: _PlaneMeter,
) -> _Measured:
    rows = []
    for where in batches:
        monitor.share = len(where) / FRAMES_AT_ONCE
        batch = store.batch(where)
        prediction = predict(model, batch.times, batch.frames if sees_frames else None)
        rgb = round8(prediction.rgb)
        patches, frames = patch_mse(rgb, batch.frames, model.scene.grid), frame_mse(rgb, batch.frames)
        yuv = meter.measure(where, rgb, batch.frames)
        rows.append(_Measured(psnr(patches), psnr(frames), ms_ssim(rgb, batch.frames), yuv, prediction.clip))
    *pixels, clip = zip(*rows, strict=True)
    return _Measured(*(torch.cat(column).cpu() for column in pixels), None if clip[0] is None else torch.cat(clip))


def _clip_columns(
    store: FrameStore,
    positions: dict[str, Tensor],
    measured: dict[str, _Measured],
    monitors: dict[str, ActivationMonitor],
) -> dict[str, tuple[ClipMeasures, EmbeddingHealth]]:
    targets = store.clip(torch.cat([*positions.values()]))
    predicted = torch.cat([m.clip for m in measured.values()])
    mean = targets[: len(positions["train"])].mean(dim=(0, 1))
    measures = clip_measures_by_split(predicted, targets, positions, mean)
    sizes = [*map(len, positions.values())]
    pairs = zip(predicted.cpu().split(sizes), targets.cpu().split(sizes), strict=True)
    return {
        name: (measures[name], embedding_health(*pair, mean.cpu(), monitors[name].norm()))
        for name, pair in zip(positions, pairs, strict=True)
    }


def clip_measures_by_split(
    predicted: Tensor, targets: Tensor, positions: dict[str, Tensor], mean: Tensor
) -> dict[str, ClipMeasures]:
    """`clip_measures` of each split: retrieval searches the frames of all splits, in the order of `positions`."""
    columns = clip_measures(predicted, targets, torch.cat([*positions.values()]), mean)
    parts = zip(*(column.split([*map(len, positions.values())]) for column in columns), strict=True)
    return {name: ClipMeasures(*part) for name, part in zip(positions, parts, strict=True)}


def clip_measures(predicted: Tensor, targets: Tensor, where: Tensor, mean: Tensor) -> ClipMeasures:
    """predicted, targets (F, P, D) of frames at the positions where (F,), mean (D,) of the training targets.

    Computed on the device of the embeddings; the result is on the CPU.
    """
    patches = torch.arange(targets.shape[1], device=targets.device).expand(targets.shape[:2])
    frames = where.to(targets.device)[:, None].expand_as(patches)
    result = retrieval(predicted.flatten(0, 1), targets.flatten(0, 1), frames.flatten(), patches.flatten())
    rank, exact, overlap, spearman = (column.view_as(patches) for column in result)
    hits = rank < 1, exact < 1, rank < 5, rank < 10
    columns = cosine(predicted, targets), centred_cosine(predicted, targets, mean), *hits, overlap, spearman
    return ClipMeasures(*(column.cpu() for column in columns))
