"""A run whose targets are those of a real OpenCLIP model, small and seeded, that lies on disk; and its file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from hnerv.cli import main

NAME = "hnerv-small"
SMALL = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def clip_config() -> dict[str, object]:
    """The architecture of `clip_model`, but for its activation."""
    return SMALL


@pytest.fixture(scope="session")
def clip_model(tmp_path_factory) -> open_clip.CLIP:
    """The small model with QuickGELU, as OpenCLIP itself builds it."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / f"{NAME}.json").write_text(json.dumps(SMALL))
    (folder / f"{NAME}-quickgelu.json").write_text(json.dumps(SMALL | {"quick_gelu": True}))
    open_clip.add_model_config(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return open_clip.create_model(f"{NAME}-quickgelu").eval()


@pytest.fixture(scope="session")
def clip_weights(clip_model, tmp_path_factory) -> Path:
    """Its weights in a file whose name says that they are OpenAI's."""
    path = tmp_path_factory.mktemp("weights") / "small.openai.safetensors"
    save_file(clip_model.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def clip_run(clip_weights, tmp_path_factory, train, flags) -> Path:
    """The folder of a run with its targets. Not to be changed."""
    output = tmp_path_factory.mktemp("clip_run")
    words = flags(clip_targets=None, clip_weights=clip_weights, clip_model=NAME, epochs=4)
    assert train(output, words) == 0
    return output / "run"


@pytest.fixture(scope="session")
def random_run(tmp_path_factory, train, flags) -> Path:
    """The folder of a run with the targets of the random encoder. Not to be changed."""
    output = tmp_path_factory.mktemp("random_run")
    assert train(output, flags(clip_targets=None, clip_weights="random", epochs=2)) == 0
    return output / "run"


@pytest.fixture(scope="session")
def coded(clip_run, finished, random_run, tmp_path_factory) -> dict[str, Path]:
    """{kind of targets: .hnerv file}, each alone in a folder. Not to be changed."""
    found = {}
    for kind, run in (("clip", clip_run), ("file", finished), ("random", random_run)):
        found[kind] = tmp_path_factory.mktemp(kind) / f"{kind}.hnerv"
        main(["encode", str(run), "-o", str(found[kind]), "--no-measure"])
    return found


@pytest.fixture
def alone(coded, tmp_path):
    """alone(kind) -> a copy of that file, alone in a folder of this test's own."""

    def copy(kind: str = "clip") -> Path:
        folder = tmp_path / f"alone_{kind}"
        folder.mkdir(exist_ok=True)
        return Path(shutil.copy(coded[kind], folder / "clip.hnerv"))

    return copy
