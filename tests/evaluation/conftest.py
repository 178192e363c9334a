"""Models and frames without a run around them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from hnerv.config import ModelConfig
from hnerv.data.clip import Targets
from hnerv.data.store import FrameStore, Material
from hnerv.data.video import Video
from hnerv.model import Scene, build_model


@pytest.fixture
def world(setting_of) -> Callable[..., SimpleNamespace]:
    """world(kind='grid', targets=True) -> model, frames, store, embeddings: 8 frames of 32x64, 2 of them unseen.

    The embeddings of the targets are noise; the model is as it was initialised.
    """

    def build(kind: str = "grid", targets: bool = True, val: tuple[int, ...] = (3, 7)) -> SimpleNamespace:
        config = ModelConfig(
            **setting_of(kind),
            dec_strides=(2, 2, 2),
            enc_strides=(2, 2, 2),
            dec_width=8,
            embed_dim=4,
            enc_width=4,
            clip_site=1,
            clip_hidden=8,
            lower_width=4,
            pe="1.25_4",
            pe_stem=8,
        )
        scene = Scene(8, 32, 64, 2, 4, 24.0, (0, 1, 2, 4, 5, 6), val, 6 if targets else 0)
        torch.manual_seed(0)
        model = build_model(config, scene)
        frames = torch.randint(0, 256, (8, 3, 32, 64), dtype=torch.uint8)
        embeddings = torch.nn.functional.normalize(torch.randn(8, 8, 6), dim=-1)
        store = make_store(frames, scene, embeddings if targets else None)
        model.embedding.refresh(store.frames)
        return SimpleNamespace(model=model, frames=frames, store=store, embeddings=embeddings, scene=scene)

    return build


def make_store(frames: torch.Tensor, scene: Scene, embeddings: torch.Tensor | None) -> FrameStore:
    found = None if embeddings is None else Targets(embeddings, "noise", "file", "", "noise")
    video = Video(frames, 24.0, "noise", "noise", "images", (0, 0, 32, 64, 32, 64), "")
    return FrameStore(Material(video, scene, found), torch.device("cpu"))


@pytest.fixture
def store_of() -> Callable[..., FrameStore]:
    """store_of(frames, scene, embeddings) -> a FrameStore of other frames."""
    return make_store
