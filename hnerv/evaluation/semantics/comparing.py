"""An opened run -> the embeddings of its CLIP head and of its rivals, measured alike.

N frames of a video, P patches, D embedding dimensions, Q text queries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hnerv.data.clip import Teacher
from hnerv.errors import UserError
from hnerv.evaluation import OpenedRun
from hnerv.evaluation.measure import ClipMeasures, clip_measures, frames_bar, in_batches
from hnerv.evaluation.semantics.baselines import interpolated, mean_embedding, pca_table
from hnerv.metrics import query_retrieval
from hnerv.model import DualHeadHNeRV
from hnerv.model.predict import FRAMES_AT_ONCE, predict, predict_clip, to_uint8

ESTIMATED_BITS = 6
"""Per parameter of a head that no file holds yet."""

RETRIEVAL = ("found", "found5", "found10", "overlap", "spearman")
"""Fields of ClipMeasures that ask for a ranking."""

HEAD, MEAN, NEIGHBOURS, PCA, ENCODER = "CLIP head", "mean", "neighbours", "PCA table", "encoder on decoded"


class Row(NamedTuple):
    """What an embedding of a patch costs, and how good it is.

    `size` in bytes, None where nothing that was coded can be counted. `gmac` is 1e9 multiply-accumulates per patch. Of
    `ranks` False, all embeddings are equal, and no retrieval can be measured. `splits` are 'train' and 'val', or one.
    `texts` {name: mean over the queries} of RETRIEVAL's names, empty where there are none, or where nothing is ranked.
    """

    name: str
    size: int | None
    gmac: float
    splits: dict[str, dict[str, float]]
    ranks: bool
    texts: dict[str, float]


class Comparison(NamedTuple):
    """Rows, the head first; what the targets are; whether the head's bytes are those of a file; notes for people.

    `queries` is how many texts were looked for, 0: none.
    """

    rows: list[Row]
    targets: str
    measured_bytes: bool
    notes: list[str]
    queries: int


class _Rival(NamedTuple):
    name: str
    embeddings: Tensor
    size: int | None
    gmac: float
    splits: tuple[str, ...] = ("train", "val")
    ranks: bool = True


@torch.no_grad()
def compare(
    run: OpenedRun,
    head_bytes: int = 0,
    teacher: Teacher | None = None,
    texts: Tensor | None = None,
    progress: bool = False,
) -> Comparison:
    """`head_bytes` are those of the coded CLIP head, 0: estimated; `teacher` is the encoder of the targets, if at hand.

    `texts` (Q, D) are embeddings of queries on the CPU: what each finds among the true embeddings of the whole video
    (training and unseen frames) is what it should find among those of a row.

    Every prediction comes from the model alone. Raises UserError where there is no CLIP head.
    """
    model = run.model.eval()
    if model.clip_head is None:
        raise UserError(f"{run.checkpoint} has no CLIP head: train with CLIP targets, not --clip-weights none")
    train, frames = torch.tensor(model.scene.train), model.scene.frames
    truth = run.store.clip(torch.arange(frames)).cpu()
    size = head_bytes or estimated_bytes(model)
    made = _embeddings(run, teacher, progress)
    rivals = [_Rival(HEAD, made.head, size, gmac_of_head(model))]
    mean = mean_embedding(truth, train)
    rivals.append(_Rival(MEAN, mean.embeddings, mean.size, mean.macs / 1e9, ranks=False))
    rivals.append(_Rival(NEIGHBOURS, interpolated(truth[train], train, frames), None, 0.0, ("val",)))
    notes = [_bytes_note(bool(head_bytes)), *_FIXED_NOTES]
    if pca := pca_table(truth, train, size):
        rivals.append(_Rival(PCA, pca.table.embeddings, pca.table.size, pca.table.macs / 1e9))
        notes.append(
            f"{PCA}: {pca.components} components of the true training embeddings, {pca.bits} bits per coefficient "
            f"and {pca.basis_bits} per basis entry (the best pair); for unseen frames the table is interpolated"
        )
    else:
        notes.append(f"{PCA}: left out because no component fits into {size:,} bytes")
    if made.encoder is not None:
        rivals.append(_Rival(ENCODER, made.encoder, None, _gmac_of_encoder(model, teacher)))
        notes.append(f"{ENCODER}: bytes do not include the encoder, which must be available at decoding")
    rows = [_row(rival, truth, model, texts) for rival in rivals]
    count = 0 if texts is None else len(texts)
    notes.extend(_TEXT_NOTES if count else ())
    return Comparison(rows, run.record.targets_label, bool(head_bytes), notes, count)


_FIXED_NOTES = (
    f"{MEAN}: the same embedding for every patch, so it cannot rank patches",
    f"{NEIGHBOURS}: true embeddings of the two nearest training frames, interpolated and uncompressed: a reference "
    "point, not a competitor",
)
_TEXT_NOTES = (
    "text queries: a hit is the patch with the true embedding nearest to the text, or the same patch in an adjacent "
    "frame",
)


def _bytes_note(measured: bool) -> str:
    what = "the size of its section in the file" if measured else f"estimated at {ESTIMATED_BITS} bits per parameter"
    return f"{HEAD}: bytes are {what}; the decoder stages below it serve the pixels and are not counted"


def estimated_bytes(model: DualHeadHNeRV) -> int:
    """Bytes of the CLIP head at ESTIMATED_BITS a parameter: an estimate, for a model that no file holds."""
    return -(-ESTIMATED_BITS * sum(p.numel() for p in model.clip_head.parameters()) // 8)


def gmac_of_head(model: DualHeadHNeRV) -> float:
    """1e9 multiply-accumulates of a patch's embedding: stem, stages up to its site, head; a whole frame / P."""
    from torch.utils.flop_counter import FlopCounterMode

    model, decoder = model.eval(), model.decoder
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        x = decoder.stem(model.embedding(torch.zeros(1, device=_device(model))).flatten(0, 1))
        for stage in decoder.stages[: decoder.site]:
            x = stage(x)
        model.clip_head(model.clip_head.means(x, model.canvas))
    return counter.get_total_flops() / 2e9 / model.scene.grid.patches


def _gmac_of_encoder(model: DualHeadHNeRV, teacher: Teacher) -> float:
    """Of a decoded patch, a whole frame / P, and of the encoder on it."""
    from torch.utils.flop_counter import FlopCounterMode

    grid = model.scene.grid
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, device=_device(model)), clip=False)
    decoding = counter.get_total_flops() / grid.patches
    with FlopCounterMode(display=False) as counter:
        teacher.encode_patches(torch.zeros(1, 3, *grid.patch_size, dtype=torch.uint8))
    return (decoding + counter.get_total_flops()) / 2e9


class _Made(NamedTuple):
    """Embeddings (N, P, D) on the CPU; `encoder` of the decoded patches, None without a teacher."""

    head: Tensor
    encoder: Tensor | None


def _embeddings(run: OpenedRun, teacher: Teacher | None, progress: bool) -> _Made:
    """Of every frame, from the model alone, as an evaluation decodes it; without a teacher no pixel is decoded."""
    grid, device, frames = run.model.scene.grid, _device(run.model), run.model.scene.frames
    heads, encoders = [], []
    with frames_bar("decode" if teacher else "embed", frames, progress) as bar:
        for where in in_batches(torch.arange(frames), bar):
            times = where.float().to(device)
            if teacher is None:
                heads.append(predict_clip(run.model, times).cpu())
                continue
            found = predict(run.model, times)
            heads.append(found.clip.cpu())
            patches = grid.split(to_uint8(found.rgb))
            encoders.append(teacher.encode_patches(patches.flatten(0, 1)).cpu().unflatten(0, patches.shape[:2]))
    assert len(heads) == -(-frames // FRAMES_AT_ONCE)
    return _Made(torch.cat(heads), torch.cat(encoders) if encoders else None)


def _row(rival: _Rival, truth: Tensor, model: DualHeadHNeRV, texts: Tensor | None) -> Row:
    """Measured as an evaluation does, on the model's device: queries search all frames that train or are unseen."""
    device = _device(model)
    positions = {"train": torch.tensor(model.scene.train), "val": torch.tensor(model.scene.val, dtype=torch.long)}
    where = torch.cat([*positions.values()])
    mean = truth[positions["train"]].mean((0, 1)).to(device)
    embeddings = rival.embeddings[where].to(device), truth[where].to(device)
    found = clip_measures(*embeddings, where, mean)
    parts = [
        ClipMeasures(*part) for part in zip(*(m.split([*map(len, positions.values())]) for m in found), strict=True)
    ]
    splits = {
        name: {key: value.double().mean().item() for key, value in part._asdict().items()}
        for name, part in zip(positions, parts, strict=True)
        if len(positions[name]) and name in rival.splits
    }
    of_texts = {}
    if texts is not None and rival.ranks and "train" in rival.splits:
        of_texts = text_measures(texts.to(device), *embeddings, where)
    return Row(rival.name, rival.size, rival.gmac, splits, rival.ranks, of_texts)


def text_measures(texts: Tensor, predicted: Tensor, truth: Tensor, where: Tensor) -> dict[str, float]:
    """texts (Q, D); predicted, truth (F, P, D) of frames at the positions where (F,) -> {name of RETRIEVAL: mean}."""
    patches = torch.arange(truth.shape[1], device=truth.device).expand(truth.shape[:2])
    frames = where.to(truth.device)[:, None].expand_as(patches)
    embeddings = predicted.flatten(0, 1), truth.flatten(0, 1)
    found = query_retrieval(texts, *embeddings, frames.flatten(), patches.flatten())
    hits = [(found.rank < top).double() for top in (1, 5, 10)]
    return {
        name: column.mean().item()
        for name, column in zip(RETRIEVAL, (*hits, found.overlap, found.spearman), strict=True)
    }


def _device(model: DualHeadHNeRV) -> torch.device:
    return next(model.parameters()).device
