"""Embeddings and images as queries, and the errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hnerv.data.clip import hub
from hnerv.errors import UserError
from hnerv.runs.record import TargetsRecord
from hnerv.search import Encoder, embedding_query, open_index, read_image
from hnerv.search.queries import PROMPTS

CPU = torch.device("cpu")


@pytest.fixture
def stored(tmp_path):
    draw = torch.Generator().manual_seed(0)
    embeddings = torch.randn(3, 2, 5, generator=draw)
    save_file({"embeddings": embeddings}, tmp_path / "e.safetensors")
    return tmp_path / "e.safetensors", embeddings


def test_an_entry_of_a_file(stored):
    path, embeddings = stored
    query = embedding_query(f"{path}:2,1", 5)
    assert query.label == "e.safetensors:2,1"
    assert torch.allclose(query.vector, embeddings[2, 1] / embeddings[2, 1].norm())


@pytest.mark.parametrize("shape", [(5,), (1, 5), (1, 1, 5)])
def test_a_file_of_one_vector(tmp_path, shape):
    save_file({"embeddings": torch.full(shape, 2.0).half()}, tmp_path / "e.safetensors")
    query = embedding_query(str(tmp_path / "e.safetensors"), 5)
    assert torch.allclose(query.vector, torch.full((5,), 5**-0.5))


@pytest.mark.parametrize(
    ("words", "dim", "match"),
    [
        ("e.safetensors", 5, "more than one vector: add :FRAME,PATCH"),
        ("e.safetensors:3,0", 5, r"has shape \(3, 2, 5\): pass a frame and a patch within it"),
        ("e.safetensors:0,2", 5, r"has shape \(3, 2, 5\): pass a frame and a patch within it"),
        ("e.safetensors:0,1", 6, "of 6 dimensions"),
        ("none.safetensors:0,1", 5, "no such file"),
        ("zero.safetensors:0,0", 5, "and norm 0"),
        ("nan.safetensors:0,0", 5, "and norm nan"),
        ("flat.safetensors:0,0", 5, "pass a frame and a patch within it"),
        ("noise.safetensors", 5, "cannot be read"),
        ("named.safetensors:0,0", 5, "with 'embeddings'"),
    ],
)
def test_refused_embeddings(stored, tmp_path, words, dim, match):
    save_file({"embeddings": torch.zeros(1, 1, 5)}, tmp_path / "zero.safetensors")
    save_file({"embeddings": torch.full((1, 1, 5), torch.nan)}, tmp_path / "nan.safetensors")
    save_file({"embeddings": torch.ones(2, 5)}, tmp_path / "flat.safetensors")
    save_file({"other": torch.ones(1, 1, 5)}, tmp_path / "named.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    with pytest.raises(UserError, match=match):
        embedding_query(str(tmp_path / words), dim)


def test_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == torch.uint8 and np.array_equal(image.permute(1, 2, 0).numpy(), pixels)
    (tmp_path / "b.png").write_bytes(b"noise")
    for name, match in (("b.png", "cannot be read"), ("c.png", "no such file")):
        with pytest.raises(UserError, match=match):
            read_image(tmp_path / name)


def test_every_sentence_of_an_ensemble_holds_the_text_once():
    assert PROMPTS["plain"] == ("{}",)
    for templates in PROMPTS.values():
        assert len(set(templates)) == len(templates)
        assert all(template.format("x").count("x") - template.count("x") == 1 for template in templates)


def test_no_teacher_is_loaded_without_queries(alone, monkeypatch):
    from hnerv.search import queries

    monkeypatch.setattr(queries, "build_teacher", lambda *_: pytest.fail("loaded"))
    encoder = Encoder(open_index(alone("clip"), CPU), "", CPU)
    assert encoder.texts([]) == [] and encoder.images([]) == []


def test_a_tag_is_loaded_from_the_cache_or_refused(alone, monkeypatch):
    """For a run where `auto` chose a tag."""
    index = open_index(alone("clip"), CPU)
    targets = TargetsRecord("OpenCLIP ViT-B-32-quickgelu, openai", "clip", "openai", "ViT-B-32-quickgelu")
    config = index.config.replaced({"clip_model": "ViT-B-32", "clip_weights": "auto"})
    index = index._replace(record=dataclasses.replace(index.record, targets=targets, config=config))
    monkeypatch.setattr(hub, "cached", lambda repo, files: "")
    with pytest.raises(UserError, match="not in the Hugging Face cache, and HF_HUB_OFFLINE is set.*--embedding"):
        Encoder(index, "", CPU).texts(["a dog"])
    requests = []
    monkeypatch.setattr(hub, "cached", lambda repo, files: requests.append(repo) or "/nowhere/w.safetensors")
    with pytest.raises(UserError, match="/nowhere/w.safetensors cannot be read"):
        Encoder(index, "", CPU).texts(["a dog"])
    assert len(requests) == 1
    with pytest.raises(UserError, match="is laion2b_s34b_b79k of ViT-B-32: pass the weights of the targets"):
        Encoder(index, "laion2b_s34b_b79k", CPU).texts(["a dog"])
