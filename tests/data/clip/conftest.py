"""A small seeded OpenCLIP model, and a Hugging Face cache and hub of each test's own."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
from huggingface_hub import constants
from open_clip import pretrained
from safetensors.torch import save

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The tiny model's config, and the mean and deviation of its tag openai."""
    return SimpleNamespace(config=TINY, mean=MEAN, std=STD)


@pytest.fixture(scope="session", autouse=True)
def reference(tmp_path_factory):
    """The tiny model with QuickGELU, initialised by OpenCLIP, which lists it as it lists ViT-B-32 and its twin."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "hnerv-tiny.json").write_text(json.dumps(TINY))
    (folder / "hnerv-tiny-quickgelu.json").write_text(json.dumps(TINY | {"quick_gelu": True}))
    open_clip.add_model_config(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return open_clip.create_model("hnerv-tiny-quickgelu").eval()


@pytest.fixture(scope="session")
def weights_bytes(reference) -> bytes:
    return save(reference.state_dict())


@pytest.fixture
def use_hub(monkeypatch):
    def use(endpoint: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return use


@pytest.fixture(autouse=True)
def hf_cache(tmp_path, monkeypatch, use_hub) -> Path:
    """Caches are empty, the hub is a port at which nobody listens, and the tiny model has two published tags."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        use_hub(f"http://127.0.0.1:{probe.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HNERV_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    tags = {"openai": {"hf_hub": "someone/tiny/", "mean": MEAN, "std": STD, "quick_gelu": True}}
    monkeypatch.setitem(pretrained._PRETRAINED, "hnerv-tiny-quickgelu", dict(tags))
    tags["laion2b_s1b"] = {"hf_hub": "someone/plain/", "url": "https://nowhere.invalid/tiny-laion.pt"}
    monkeypatch.setitem(pretrained._PRETRAINED, "hnerv-tiny", tags)
    return tmp_path / "hf"


@pytest.fixture
def put(tmp_path, weights_bytes):
    """put(name): the tiny model's weights in tmp_path / name."""

    def write(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(weights_bytes)
        return path

    return write


@pytest.fixture
def in_hf_cache(hf_cache, weights_bytes):
    """in_hf_cache(): the weights of someone/tiny in the Hugging Face cache, as its client leaves them."""

    def lay(data: bytes = weights_bytes) -> Path:
        folder = hf_cache / "models--someone--tiny"
        path = folder / "snapshots" / COMMIT / "open_clip_model.safetensors"
        for parent in (folder / "refs", path.parent):
            parent.mkdir(parents=True)
        (folder / "refs" / "main").write_text(COMMIT)
        path.write_bytes(data)
        return path

    return lay


@pytest.fixture
def warned(caplog):
    """The user's warnings so far, as text."""
    return lambda: [record.getMessage() for record in caplog.records if record.name == "hnerv"]
