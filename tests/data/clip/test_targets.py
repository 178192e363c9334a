"""Targets of a video: from exactly the patch's pixels, cached on disk, or read from a file."""

from __future__ import annotations

import os
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from hnerv.data.clip import clip_targets, load_teacher
from hnerv.data.clip.targets import cache_path, read_targets_file
from hnerv.data.clip.weights import identify
from hnerv.errors import UserError
from hnerv.files import cache_folder
from hnerv.geometry import PatchGrid

GRID = PatchGrid(64, 96, 2, 3)
FRAMES = torch.randint(0, 256, (5, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def compute(put):
    """clip_targets of FRAMES with the tiny model from a file of OpenAI weights, unless told otherwise."""
    path = str(put("openai.safetensors"))

    def run(**changes):
        settings = {"weights": path, "model": "hnerv-tiny", "digest": "video"} | changes
        return clip_targets(settings.pop("frames", FRAMES), settings.pop("grid", GRID), **settings)

    return run


def cache_files():
    return sorted((cache_folder() / "targets").iterdir())


def test_each_target_is_the_embedding_of_its_own_pixels(compute, put):
    targets = compute()
    teacher = load_teacher(str(put("openai.safetensors")), "hnerv-tiny")
    assert targets.embeddings.shape == (5, 6, 16) and targets.embeddings.dtype == torch.float32
    assert torch.allclose(targets.embeddings.norm(dim=-1), torch.ones(5, 6), atol=1e-6)
    for n in range(5):
        for p in range(6):
            top, left = 32 * (p // 3), 32 * (p % 3)
            patch = FRAMES[n, :, top : top + 32, left : left + 32]
            assert torch.allclose(targets.embeddings[n, p], teacher.encode_patches(patch[None])[0], atol=1e-5)
    assert (targets.kind, targets.model) == ("clip", "hnerv-tiny-quickgelu")
    assert targets.source.startswith("OpenCLIP hnerv-tiny-quickgelu, file openai.safetensors")
    assert targets.weights.startswith("openai.safetensors sha256:")


@pytest.mark.parametrize("batch_size", [1, 4, 7, 1000])
def test_the_batch_size_does_not_matter(compute, batch_size, tmp_path):
    one = compute(batch_size=batch_size, cache_dir=tmp_path / "other")
    assert torch.allclose(one.embeddings, compute().embeddings, atol=1e-5)


def test_a_cache_hit_equals_the_computation_and_needs_no_model(compute, monkeypatch):
    first = compute()
    monkeypatch.setattr("hnerv.data.clip.targets.build_teacher", None)
    second = compute(progress=True)
    assert torch.equal(first.embeddings, second.embeddings) and first[1:] == second[1:]
    assert [path.suffix for path in cache_files()] == [".safetensors"]


def test_a_cached_tag_needs_neither_weights_nor_hub(compute, in_hf_cache, warned):
    path = in_hf_cache()
    first = compute(weights="openai")
    path.unlink()
    for weights in ("openai", "auto"):
        second = compute(weights=weights)
        assert torch.equal(first.embeddings, second.embeddings) and first[1:] == second[1:]
    assert warned() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "another"},
        {"grid": PatchGrid(64, 96, 2, 2)},
        {"weights": "random"},
        {"weights": "random", "seed": 1},
        {"model": "hnerv-tiny-quickgelu", "weights": "openai"},
    ],
)
def test_what_the_targets_depend_on_is_in_the_key(compute, changes, in_hf_cache):
    in_hf_cache()
    compute()
    compute(weights="random", seed=2)
    compute(**changes)
    assert len(cache_files()) == 3


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_cache_is_computed_anew_with_a_warning(compute, damage, warned):
    first = compute()
    (path,) = cache_files()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes({"cut": data[:-8], "flip": data, "empty": b""}[damage])
    again = compute()
    assert torch.equal(first.embeddings, again.embeddings)
    assert len(warned()) == 1 and "are damaged; recomputing them" in warned()[0]
    assert torch.equal(load_file(path)["embeddings"], first.embeddings)


def test_a_cache_of_another_number_of_frames_is_not_taken(compute):
    compute()
    assert compute(frames=FRAMES[:2]).embeddings.shape == (2, 6, 16)


def test_a_cache_that_cannot_be_written_only_warns(compute, tmp_path, warned):
    (tmp_path / "file").write_text("")
    assert compute(cache_dir=tmp_path / "file").kind == "clip"
    assert any("the targets are not cached" in text and "HNERV_CACHE" in text for text in warned())


def test_a_write_that_fails_leaves_nothing_behind(compute, monkeypatch, warned):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    compute()
    assert cache_files() == []
    assert len(warned()) == 1 and "disk full" in warned()[0]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HNERV_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("HNERV_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "hnerv"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "hnerv"
    name = cache_path(tmp_path, "video", GRID, identify("random", "ViT-B-32", 0)).name
    assert len(name) == 64 + len(".safetensors")


def test_doubtful_weights_are_warned_of_on_every_run_also_from_the_cache(compute, put, warned):
    path = str(put("unknown.safetensors"))
    for runs in (1, 2):
        compute(weights=path)
        assert len(warned()) == runs and "pass --clip-model hnerv-tiny-quickgelu" in warned()[-1]


@pytest.mark.parametrize(("terminal", "progress"), [(True, True), (True, False), (False, True)])
def test_a_bar_is_for_a_terminal_alone(compute, monkeypatch, capsys, terminal, progress):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    compute(progress=progress)
    assert ("CLIP targets" in capsys.readouterr().err) == (terminal and progress)


def test_the_temporary_file_of_the_cache_is_known_by_its_process(compute, monkeypatch):
    seen = []
    monkeypatch.setattr("os.replace", lambda old, new: seen.append((old.name, new.name)))
    compute()
    ((old, new),) = seen
    assert old == f".{new}.{os.getpid()}.tmp"


def test_random_targets_warn_on_every_run_also_from_the_cache(compute, warned):
    first = compute(weights="auto")
    second = compute(weights="auto")
    assert first.kind == second.kind == "random" and first.source == "RANDOM encoder, seed 0: not CLIP"
    assert torch.equal(first.embeddings, second.embeddings)
    assert [text.split(":")[0] for text in warned()] == ["NOT CLIP", "NOT CLIP"]


def test_random_targets_cost_little_and_tell_patches_apart(compute):
    compute(weights="random", frames=FRAMES[:1])
    frames = torch.rand(33, 3, 2, 4, generator=torch.Generator().manual_seed(1)).mul(255).byte()
    frames = frames.repeat_interleave(64, -2).repeat_interleave(64, -1)
    start = time.perf_counter()
    targets = compute(weights="random", frames=frames, grid=PatchGrid(128, 256, 2, 4), digest="b")
    assert time.perf_counter() - start < 10
    assert targets.embeddings.flatten(0, 1).std(0).mean() > 0.01


def test_none_gives_no_targets(compute):
    assert compute(weights="none") is None
    with pytest.raises(UserError, match="--clip-weights none and --clip-targets t.safetensors conflict"):
        compute(weights="none", targets_file="t.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_file_of_targets_is_normalised(compute, tmp_path, dtype):
    raw = torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(0)).to(dtype) * 3
    save_file({"embeddings": raw}, tmp_path / "t.safetensors", {"encoder": "Some net,\npooled"})
    targets = compute(weights="auto", targets_file=str(tmp_path / "t.safetensors"))
    expected = raw.double() / raw.double().pow(2).sum(-1, keepdim=True).sqrt()
    assert torch.equal(targets.embeddings, expected.float())
    assert (targets.kind, targets.model) == ("file", "")
    assert targets.source == "file t.safetensors (Some net, pooled)"
    assert targets.weights.startswith("t.safetensors sha256:")


def with_row(value: float) -> torch.Tensor:
    embeddings = torch.ones(5, 6, 7)
    embeddings[3, 2] = value
    return embeddings


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (
            {"embeddings": torch.ones(4, 6, 7)},
            r"for 4 frames of 6 patches, but the video has 5 frames of 6 patches \(2x3\)",
        ),
        ({"embeddings": torch.ones(5, 8, 7)}, "for 5 frames of 8 patches, but the video has 5 frames of 6 patches"),
        ({"embeddings": torch.ones(5, 42)}, r"has 'embeddings' of shape \(5, 42\) and type F32: store floats \(F64"),
        ({"embeddings": torch.ones(5, 6, 7, dtype=torch.int32)}, "type I32: store floats"),
        ({"embeddings": with_row(0)}, "1 of 30 embeddings are zero or not finite, the first at frame 3, patch 2"),
        ({"embeddings": with_row(float("nan"))}, "zero or not finite, the first at frame 3, patch 2"),
        ({"embeddings": with_row(float("inf"))}, "zero or not finite, the first at frame 3, patch 2"),
        ({"other": torch.ones(1)}, r"has no tensor 'embeddings' \(found: other\)"),
    ],
)
def test_a_file_of_targets_that_does_not_serve_is_refused(tmp_path, tensors, sentence):
    path = tmp_path / "t.safetensors"
    save_file(tensors, path)
    with pytest.raises(UserError, match=sentence) as caught:
        read_targets_file(path, 5, GRID)
    assert "\n" not in str(caught.value) and "--clip-targets" in str(caught.value)


def test_a_file_of_targets_that_is_missing_or_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_targets_file(tmp_path / "t.safetensors", 5, GRID)
    (tmp_path / "t.safetensors").write_bytes(b"no safetensors at all")
    with pytest.raises(UserError, match="is not a safetensors file"):
        read_targets_file(tmp_path / "t.safetensors", 5, GRID)
    with pytest.raises(UserError, match="is not a safetensors file"):
        read_targets_file(tmp_path, 5, GRID)
