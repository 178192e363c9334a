"""A trainer of the run in miniature, without the command around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hnerv.config import Config
from hnerv.dataset import FrameStore, Material, load_material
from hnerv.flags import parse_train
from hnerv.model import build_model
from hnerv.tracking import NullLogger
from hnerv.training import RunFolder, Trainer, run_record


class Memory(NullLogger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.values: dict[str, dict[int, float]] = {}

    def scalars(self, values, step):
        for tag, value in values.items():
            self.values.setdefault(tag, {})[step] = value

    def curve(self, tag, steps, values, times):
        self.values.setdefault(tag, {}).update(zip(steps, values, strict=True))


@pytest.fixture
def config(flags) -> Callable[..., Config]:
    """config(epochs=3) -> the configuration of the run in miniature, changed."""
    return lambda **changes: parse_train(["--exp-id", "x", *flags(**changes)]).resolve(cuda=False).config


@pytest.fixture
def make(config, tmp_path: Path) -> Callable[..., Trainer]:
    """make(epochs=3) -> a fresh trainer of it, and a logger that keeps everything; `edit` may change what it sees."""

    def build(
        device: str = "cpu", edit: Callable[[Material], None] = lambda material: None, **changes: object
    ) -> Trainer:
        settings = config(**changes)
        material = load_material(settings, torch.device(device))
        edit(material)
        torch.manual_seed(settings.train.seed)
        model = build_model(settings.model, material.scene)
        record = run_record("", settings, material, model)
        store = FrameStore(material, torch.device(device))
        trainer = Trainer(model, store, settings, RunFolder(tmp_path / "run", False), record)
        trainer.logger = Memory()
        return trainer

    return build


@pytest.fixture
def console() -> SimpleNamespace:
    """Says nothing."""
    return SimpleNamespace(step=lambda: None, epoch=lambda *_: None, evaluation=lambda *_: None, say=lambda _: None)
