"""Encoding of queries (text, image, stored embedding) as vectors that compare with an index.

Q queries, D embedding dimensions, h w image pixels.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hnerv.data.clip.teacher import Teacher, build_teacher
from hnerv.data.clip.weights import Weights, identify, locate_weights, random_weights
from hnerv.errors import UserError
from hnerv.runs.record import TargetsRecord
from hnerv.search.index import Index

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

PROMPTS: dict[str, tuple[str, ...]] = {
    "plain": ("{}",),
    "ensemble": (
        "{}",
        "a photo of {}",
        "a frame of a film that shows {}",
        "a close view of {}",
        "{}, seen from afar",
        "part of a picture with {}",
        "a dark picture of {}",
        "a bright picture of {}",
    ),
}
"""Value of --prompts -> templates for the text. The embeddings of all templates are averaged."""

_EMBEDDING_HINT = "search with --embedding FILE.safetensors:FRAME,PATCH"


class Query(NamedTuple):
    """A label to display and a vector (D,) of unit norm on the CPU."""

    label: str
    vector: Tensor


QueryLike: TypeAlias = "str | os.PathLike[str] | PilImage | np.ndarray[Any, Any] | Tensor | Query"
"""A text, an image as a path, as a PIL image or as uint8 (h, w, 3), a vector (D,), or a finished Query."""


class Encoder:
    """The CLIP model behind the targets of an index, loaded at first use.

    `clip_weights` is the current location of its weights: a tag, a file, a folder, or '' for the location in the run.
    """

    def __init__(self, index: Index, clip_weights: str, device: torch.device) -> None:
        self.index, self.clip_weights, self.device = index, clip_weights, device
        assert index.record.targets is not None  # `open_index` refuses a model without a CLIP head
        self.targets: TargetsRecord = index.record.targets
        self._teacher: Teacher | None = None

    @property
    def dim(self) -> int:
        """D of the embeddings."""
        return self.index.embeddings.shape[-1]

    def texts(self, texts: Sequence[str], prompts: str = "plain") -> list[Query]:
        """One query per text. Raises UserError if the targets are not from a CLIP model or its weights are missing."""
        if not texts:
            return []
        self.check_text()
        if prompts not in PROMPTS:
            raise UserError(f"prompts {prompts!r} do not exist: choose from {', '.join(PROMPTS)}")
        if any(not text.strip() for text in texts):
            raise UserError("a query is empty: pass the text to search for")
        templates = PROMPTS[prompts]
        vectors = [self.teacher().encode_text([t.format(text) for t in templates]).mean(0) for text in texts]
        return [Query(text, F.normalize(v, dim=0).cpu()) for text, v in zip(texts, vectors, strict=True)]

    def images(self, images: Sequence[tuple[str, Tensor]]) -> list[Query]:
        """Queries from (label, (3, h, w) uint8); an image is resized like a patch. Raises UserError without encoder."""
        return [Query(label, self.teacher().encode_patches(image[None])[0].cpu()) for label, image in images]

    def check_text(self) -> None:
        """Raises UserError if the embeddings cannot be compared with text."""
        self._check_encoder_known()
        if self.targets.kind == "random":
            raise UserError(
                f"the targets of {self.index.path} are from a RANDOM encoder, for which text has no meaning: search "
                "with --image FILE or train on CLIP targets"
            )

    def teacher(self) -> Teacher:
        """The loaded encoder. Raises UserError if its weights are missing."""
        if self._teacher is None:
            self._teacher = build_teacher(self._locate(self._resolve_weights()), self.device)
        return self._teacher

    def _check_encoder_known(self) -> None:
        if self.targets.kind == "file":
            raise UserError(
                f"the targets of {self.index.path} are from {self.targets.source}, and their encoder is unknown: "
                f"{_EMBEDDING_HINT}"
            )

    def _resolve_weights(self) -> Weights:
        self._check_encoder_known()
        weights = self.targets.weights
        if self.clip_weights:
            return self._matching_weights(self.clip_weights)
        if self.targets.kind == "random":
            return random_weights(int(weights.removeprefix("random:")))
        if " sha256:" not in weights:
            return self._matching_weights(weights)
        configured = self.index.config.clip.clip_weights
        for location in (configured, str(self.index.path.parent / Path(configured).name)):
            if Path(location.removeprefix("local-dir:")).exists():
                return self._matching_weights(location)
        raise UserError(
            f"the targets of {self.index.path} are from {self.targets.source}, but its weights are not at "
            f"{configured}: pass --clip-weights FILE or {_EMBEDDING_HINT}"
        )

    def _matching_weights(self, weights: str) -> Weights:
        """Weights named `weights`, checked against the targets. Files compare by sha256, not by name."""
        seed = self.index.config.train.seed
        spec = identify(weights, self.index.config.clip.clip_model, seed)
        ours, theirs = (label.rsplit(" ", 1)[-1] for label in (spec.weights, self.targets.weights))
        if ours == theirs and _architecture(spec.model) != _architecture(self.targets.model):
            spec = identify(weights, self.targets.model, seed)  # a renamed file no longer implies the activation
        if ours != theirs or _architecture(spec.model) != _architecture(self.targets.model):
            raise UserError(
                f"the targets of {self.index.path} are from {self.targets.source} ({self.targets.weights}), but "
                f"--clip-weights {weights} is {spec.weights} of {spec.model}: pass the weights of the targets"
            )
        return spec

    def _locate(self, spec: Weights) -> Weights:
        try:
            return locate_weights(spec, 0, fall_back=False) if spec.repo else spec
        except UserError as error:
            raise UserError(
                f"the targets of {self.index.path} are from {spec.source}, but its weights are not in the Hugging Face "
                f"cache, and {error.__cause__}: make the hub reachable or {_EMBEDDING_HINT}"
            ) from error


def query_vectors(
    encoder: Encoder, wanted: Sequence[QueryLike], unwanted: Sequence[QueryLike], prompts: str
) -> tuple[Tensor, Tensor | None]:
    """Unit vectors (Q, D) of the queries, and (Q', D) of those to avoid, None without any. Raises UserError."""
    if not wanted:
        raise UserError("a search needs a query: pass a text, an image or a vector")
    if not isinstance(unwanted, list | tuple):
        raise UserError("the queries to avoid are not a list: pass one, as in avoid=['a cat']")
    pairs = [[_query(encoder, query, prompts).vector for query in queries] for queries in (wanted, unwanted)]
    return torch.stack(pairs[0]), torch.stack(pairs[1]) if pairs[1] else None


def _query(encoder: Encoder, query: QueryLike, prompts: str) -> Query:
    """Raises UserError for a query that cannot be compared with the embeddings."""
    if isinstance(query, Query):
        return query
    if isinstance(query, str):
        return encoder.texts([query], prompts)[0]
    if isinstance(query, os.PathLike):
        return encoder.images([(Path(query).name, read_image(Path(query)))])[0]
    if not isinstance(query, Tensor):
        values = np.asarray(query.convert("RGB") if hasattr(query, "convert") else query)
        if values.dtype.kind not in "fiub" or not values.size:
            raise UserError(f"{type(query).__name__} is not a query: pass a text, an image or a vector")
        query = torch.from_numpy(values.copy())
    if query.dim() == 3 and query.dtype == torch.uint8 and query.shape[-1] == 3:
        return encoder.images([("image", query.permute(2, 0, 1))])[0]
    return vector_query("vector", query.flatten() if query.numel() == encoder.dim else query, encoder.dim)


def read_image(path: Path) -> Tensor:
    """An image file -> (3, h, w) uint8. Raises UserError."""
    from hnerv.data.video.images import read_images

    if not path.is_file():
        raise UserError(f"--image {path}: no such file: pass an image file, such as a PNG")
    (pixels,) = read_images([path])
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def embedding_query(text: str, dim: int) -> Query:
    """'FILE.safetensors:FRAME,PATCH' into `embeddings` (N, P, D), or a file with one vector. Raises UserError."""
    from safetensors import SafetensorError, safe_open

    match = re.fullmatch(r"(.+?)(?::(\d+),(\d+))?", text, flags=re.ASCII)
    flag = f"--embedding {text}"
    if not match:
        raise UserError(f"{flag} must be FILE.safetensors or FILE.safetensors:FRAME,PATCH")
    try:
        with safe_open(match[1], "pt") as file:
            embeddings = file.get_tensor("embeddings").float()
    except (SafetensorError, OSError) as error:
        cause = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(f"{flag} cannot be read ({cause}): pass a safetensors file with 'embeddings'") from error
    if match[2] is not None:
        vector = _select_vector(flag, embeddings, int(match[2]), int(match[3]))
    elif embeddings.dim() and embeddings.numel() == embeddings.shape[-1]:
        vector = embeddings.flatten()
    else:
        raise UserError(f"{flag} has shape {tuple(embeddings.shape)}, more than one vector: add :FRAME,PATCH")
    return vector_query(flag, vector, dim)._replace(label=text.replace(match[1], Path(match[1]).name, 1))


def vector_query(label: str, vector: Tensor, dim: int) -> Query:
    """A vector (D,), scaled to unit norm. Raises UserError for one of another size, or without a direction."""
    norm = vector.float().norm()
    if vector.shape != (dim,) or not norm.isfinite() or norm == 0:
        raise UserError(
            f"{label} cannot be compared with embeddings of {dim} dimensions (it has {vector.numel()} and norm "
            f"{norm.item():.3g}): pass a vector from the same encoder"
        )
    return Query(label, vector.float().cpu() / norm.cpu())


def _select_vector(flag: str, embeddings: Tensor, frame: int, patch: int) -> Tensor:
    if embeddings.dim() != 3 or frame >= embeddings.shape[0] or patch >= embeddings.shape[1]:
        raise UserError(f"{flag}: 'embeddings' has shape {tuple(embeddings.shape)}: pass a frame and a patch within it")
    return embeddings[frame, patch]


def _architecture(model: str) -> str:
    """Architecture in a model's name: for a folder its configuration (after '@'), independent of its location."""
    return model.rsplit("@", 1)[-1]
