"""The embeddings of the CLIP head compared with those of its baselines: quality, bytes, arithmetic.

N frames of a video, F of them in a split, P patches, D embedding dimensions, Q text queries.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hnerv.data.clip import Teacher, load_teacher
from hnerv.errors import UserError
from hnerv.evaluation.cost import gmac_of
from hnerv.evaluation.head_baselines import interpolated, mean_embedding, pca_table
from hnerv.evaluation.measure import clip_measures_by_split, frames_bar, in_batches
from hnerv.metrics import query_retrieval
from hnerv.model import DualHeadHNeRV
from hnerv.model.predict import predict, predict_clip, to_uint8
from hnerv.runs.models import OpenedRun

ESTIMATED_BITS = 6
"""Per parameter of a head that is not coded yet."""

NAMES = {
    "sim": "cosine",
    "centred": "centred",
    "found": "recall@1",
    "exact": "exact@1",
    "found5": "recall@5",
    "found10": "recall@10",
    "overlap": "overlap@10",
    "spearman": "Spearman",
}
"""Field of ClipMeasures -> name in tables and JSON."""
RETRIEVAL = ("recall@1", "exact@1", "recall@5", "recall@10", "overlap@10", "Spearman")
"""Names of the measures that need a ranking."""

HEAD, MEAN, NEIGHBOURS, PCA, ENCODER = "CLIP head", "mean", "neighbours", "PCA table", "encoder on decoded"
TEXTS = "text queries"


class HeadRow(NamedTuple):
    """Cost and quality of the CLIP head or of a baseline; the fields are the keys in JSON.

    `bytes` is None where nothing coded can be counted. `gmac_per_patch` is in 1e9 multiply-accumulates. `splits`
    {'train' or 'val': {name: mean}} lacks RETRIEVAL where all embeddings are equal. `texts` {name: mean over the
    queries}, empty where none were measured.
    """

    name: str
    bytes: int | None
    gmac_per_patch: float
    splits: dict[str, dict[str, float]]
    texts: dict[str, float]


class HeadComparison(NamedTuple):
    """The label of the targets; the number of text queries, 0: none; notes for readers; rows, the head first."""

    targets: str
    head_bytes_are: Literal["measured", "estimated"]
    queries: int
    notes: list[str]
    rows: list[HeadRow]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; rows without text queries have no 'texts'."""
        rows = [{key: value for key, value in row._asdict().items() if key != "texts" or value} for row in self.rows]
        return {**self._asdict(), "rows": rows}


def compare_head(run: OpenedRun, queries: Sequence[str] = (), progress: bool = False) -> HeadComparison:
    """The head has its size in the .hnerv file, or an estimated one. `queries` are texts, by default queries.txt.

    Measurements for which the encoder of the targets is missing are left out; the notes name the reason. Raises
    UserError where there is no CLIP head.
    """
    if run.model.clip_head is None:
        raise UserError(f"{run.checkpoint} has no CLIP head: train with CLIP targets, not --clip-weights none")
    teacher, texts, notes = _encoders(run, list(queries) or default_queries())
    comparison = compare_embeddings(run, teacher, texts, progress)
    comparison.notes.extend(notes)
    return comparison


def default_queries() -> list[str]:
    """Short captions of objects and scenes that may be in any video."""
    return _read_lines(resources.files("hnerv.evaluation").joinpath("queries.txt").read_text(encoding="utf-8"))


def read_queries(path: Path) -> list[str]:
    """One query per line, blank lines left out. Raises UserError where there is none, or the file is not UTF-8 text."""
    try:
        queries = _read_lines(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        cause = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(
            f"--queries {path} cannot be read ({cause}): pass a text file with one query per line"
        ) from error
    if not queries:
        raise UserError(f"--queries {path} contains no queries: write one per line")
    return queries


def _read_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _encoders(run: OpenedRun, queries: list[str]) -> tuple[Teacher | None, Tensor | None, list[str]]:
    """The image encoder of the targets, texts (Q, D) of unit norm on the CPU, and reasons why either is None."""
    clip = run.config.clip
    if run.record.targets.kind == "file":
        reason = "left out because the targets come from a file and their encoder is not available"
        return None, None, [f"{ENCODER}: {reason}", f"{TEXTS}: {reason}"]
    try:
        teacher = load_teacher(clip.clip_weights, clip.clip_model, _device(run.model), run.config.train.seed)
    except UserError as error:
        return None, None, [f"{ENCODER}: left out, {error}", f"{TEXTS}: left out because there is no encoder"]
    if teacher.kind != "clip":
        return teacher, None, [f"{TEXTS}: left out because text has no meaning for the RANDOM encoder"]
    return teacher, torch.cat([teacher.encode_text([text]).cpu() for text in queries]), []


@torch.no_grad()
def compare_embeddings(
    run: OpenedRun,
    teacher: Teacher | None = None,
    texts: Tensor | None = None,
    progress: bool = False,
) -> HeadComparison:
    """As `compare_head`, with the encoder of the targets and texts (Q, D) on the CPU where they are available.

    The hits of a query among the true embeddings of training and unseen frames are what it should find among the
    embeddings of a row. Predictions come from the model alone: unseen frames are never shown to an encoder embedding.
    """
    model = run.model.eval()
    train, frames = torch.tensor(model.scene.train), model.scene.frames
    truth = run.store.clip(torch.arange(frames)).cpu()
    size = run.head_bytes or estimated_bytes(model)
    predicted, reencoded = _embeddings(run, teacher, progress)
    row = functools.partial(_measured_row, model, truth, texts)
    mean = mean_embedding(truth, train)
    rows = [
        row(HEAD, predicted, size, gmac_of_head(model)),
        row(MEAN, mean.embeddings, mean.size, mean.macs / 1e9, ranks=False),
        row(NEIGHBOURS, interpolated(truth[train], train, frames), None, 0.0, splits=("val",)),
    ]
    size_note = (
        "the size of its section in the file" if run.head_bytes else f"estimated at {ESTIMATED_BITS} bits per parameter"
    )
    notes = [
        f"{HEAD}: bytes are {size_note}; the decoder stages below it serve the pixels and are not counted",
        f"{MEAN}: the same embedding for every patch, so it cannot rank patches",
        f"{NEIGHBOURS}: true embeddings of the two nearest training frames, interpolated and uncompressed: a reference "
        "point, not a competitor",
    ]
    if pca := pca_table(truth, train, size):
        rows.append(row(PCA, pca.table.embeddings, pca.table.size, pca.table.macs / 1e9))
        notes.append(
            f"{PCA}: {pca.components} components of the true training embeddings, {pca.bits} bits per coefficient "
            f"and {pca.basis_bits} per basis entry (the best pair); for unseen frames the table is interpolated"
        )
    else:
        notes.append(f"{PCA}: left out because no component fits into {size:,} bytes")
    if reencoded is not None:
        rows.append(row(ENCODER, reencoded, None, gmac_of_encoder(model, teacher)))
        notes.append(f"{ENCODER}: bytes do not include the encoder, which must be available at decoding")
    if texts is not None:
        meaning = (
            "a hit is the patch with the true embedding nearest to the text, or the same patch in an adjacent frame"
        )
        notes.append(f"{TEXTS}: {meaning}")
    source, queries = "measured" if run.head_bytes else "estimated", 0 if texts is None else len(texts)
    return HeadComparison(run.record.targets_label, source, queries, notes, rows)


def estimated_bytes(model: DualHeadHNeRV) -> int:
    """Bytes of the CLIP head at ESTIMATED_BITS per parameter: an estimate for a model that is not coded."""
    return -(-ESTIMATED_BITS * sum(p.numel() for p in model.clip_head.parameters()) // 8)


def gmac_of_head(model: DualHeadHNeRV) -> float:
    """1e9 multiply-accumulates per patch: stem, stages up to the head's site and head of a full frame, divided by P."""
    times = torch.zeros(1, device=_device(model))
    return gmac_of(lambda: model.eval().embed(times)) / model.scene.grid.patches


def gmac_of_encoder(model: DualHeadHNeRV, teacher: Teacher) -> float:
    """1e9 multiply-accumulates per patch: a decoded full frame divided by P, and the encoder on one patch."""
    grid = model.scene.grid
    decoding = gmac_of(lambda: model(torch.zeros(1, device=_device(model)), clip=False)) / grid.patches
    patch = torch.zeros(1, 3, *grid.patch_size, dtype=torch.uint8)
    return decoding + gmac_of(lambda: teacher.encode_patches(patch))


def _embeddings(run: OpenedRun, teacher: Teacher | None, progress: bool) -> tuple[Tensor, Tensor | None]:
    """(N, P, D) on the CPU: predicted by the head; and by the teacher from decoded patches, None without a teacher.

    Frames are decoded as in `evaluate`. Without a teacher no pixels are decoded.
    """
    grid, device, frames = run.model.scene.grid, _device(run.model), run.model.scene.frames
    predicted, reencoded = [], []
    with frames_bar("decode" if teacher else "embed", frames, progress) as bar:
        for where in in_batches(torch.arange(frames), bar):
            times = where.float().to(device)
            if teacher is None:
                predicted.append(predict_clip(run.model, times).cpu())
                continue
            prediction = predict(run.model, times)
            predicted.append(prediction.clip.cpu())
            patches = grid.split(to_uint8(prediction.rgb))
            reencoded.append(teacher.encode_patches(patches.flatten(0, 1)).cpu().unflatten(0, patches.shape[:2]))
    return torch.cat(predicted), torch.cat(reencoded) if reencoded else None


def _measured_row(
    model: DualHeadHNeRV,
    truth: Tensor,
    texts: Tensor | None,
    label: str,
    embeddings: Tensor,
    size: int | None,
    gmac: float,
    splits: tuple[str, ...] = ("train", "val"),
    ranks: bool = True,
) -> HeadRow:
    """Measured as by `evaluate`, on the model's device: queries search the frames of both splits.

    truth, embeddings (N, P, D), texts (Q, D). `splits` are those in which the row is measured.
    """
    device = _device(model)
    positions = {"train": torch.tensor(model.scene.train), "val": torch.tensor(model.scene.val, dtype=torch.long)}
    where = torch.cat([*positions.values()])
    pair = embeddings[where].to(device), truth[where].to(device)
    measures = clip_measures_by_split(*pair, positions, truth[positions["train"]].mean((0, 1)).to(device))
    means = {
        split: {
            name: getattr(measures[split], field).double().mean().item()
            for field, name in NAMES.items()
            if ranks or name not in RETRIEVAL
        }
        for split in splits
        if len(positions[split])
    }
    with_texts = texts is not None and ranks and "train" in splits
    return HeadRow(label, size, gmac, means, _text_measures(texts.to(device), *pair, where) if with_texts else {})


def _text_measures(texts: Tensor, predicted: Tensor, truth: Tensor, where: Tensor) -> dict[str, float]:
    """texts (Q, D); predicted, truth (F, P, D) of frames at the positions where (F,) -> {name of RETRIEVAL: mean}."""
    patches = torch.arange(truth.shape[1], device=truth.device).expand(truth.shape[:2])
    frames = where.to(truth.device)[:, None].expand_as(patches)
    embeddings = predicted.flatten(0, 1), truth.flatten(0, 1)
    rank, exact, overlap, spearman = query_retrieval(texts, *embeddings, frames.flatten(), patches.flatten())
    columns = rank < 1, exact < 1, rank < 5, rank < 10, overlap, spearman
    return {name: column.double().mean().item() for name, column in zip(RETRIEVAL, columns, strict=True)}


def _device(model: DualHeadHNeRV) -> torch.device:
    return next(model.parameters()).device
