"""Targets of a video: from exactly the pixels of each patch, cached on disk, or read from a file."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from hnerv.data.clip import Targets, clip_targets, load_teacher, targets
from hnerv.data.clip.targets import cache_path, read_targets_file
from hnerv.data.clip.weights import identify
from hnerv.errors import UserError
from hnerv.files import cache_folder
from hnerv.geometry import PatchGrid

GRID = PatchGrid(64, 96, 2, 3)
FRAMES = torch.randint(0, 256, (5, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def compute(put):
    """clip_targets of FRAMES with the tiny model from a file of OpenAI weights, unless changed."""
    path = str(put("openai.safetensors"))

    def run(**changes):
        settings = {"weights": path, "model": "hnerv-tiny", "digest": "video"} | changes
        return clip_targets(settings.pop("frames", FRAMES), settings.pop("grid", GRID), **settings)

    return run


def cache_files():
    return sorted((cache_folder() / "targets").iterdir())


@pytest.mark.parametrize("batch_size", [1, 4, 7, 1000])
def test_each_target_is_the_embedding_of_its_own_pixels(compute, put, batch_size):
    found = compute(batch_size=batch_size)
    teacher = load_teacher(str(put("openai.safetensors")), "hnerv-tiny")
    assert found.embeddings.shape == (5, 6, 16) and found.embeddings.dtype == torch.float32
    for p in range(6):
        top, left = 32 * (p // 3), 32 * (p % 3)
        expected = teacher.encode_patches(FRAMES[:, :, top : top + 32, left : left + 32])
        assert torch.allclose(found.embeddings[:, p], expected, atol=1e-5)
    assert (found.kind, found.model) == ("clip", "hnerv-tiny-quickgelu")
    assert found.source.startswith("OpenCLIP hnerv-tiny-quickgelu, file openai.safetensors")
    assert found.weights.startswith("openai.safetensors sha256:")


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


def test_the_key_depends_on_all_that_the_targets_depend_on(put):
    spec = identify(str(put("openai.safetensors")), "hnerv-tiny", 0)
    changed = [
        ("another", GRID, spec),
        ("video", PatchGrid(64, 96, 2, 2), spec),
        ("video", GRID, identify("random", "hnerv-tiny", 0)),
        ("video", GRID, identify("random", "hnerv-tiny", 1)),
        ("video", GRID, identify("openai", "hnerv-tiny-quickgelu", 0)),
        ("video", GRID, spec._replace(preprocess=spec.preprocess._replace(interpolation="bilinear"))),
        ("video", GRID, spec),
    ]
    assert len({cache_path(*key) for key in changed}) == len(changed)
    elsewhere = identify(str(put("moved/openai.safetensors")), "hnerv-tiny", 0)
    assert cache_path("video", GRID, elsewhere) == cache_path("video", GRID, spec)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "fewer frames"])
def test_a_damaged_cache_is_recomputed_with_a_warning(compute, damage, warned):
    first = compute()
    (path,) = cache_files()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes({"cut": data[:-8], "flip": data, "empty": b""}.get(damage, path.read_bytes()))
    frames = FRAMES[:2] if damage == "fewer frames" else FRAMES
    again = compute(frames=frames)
    assert torch.allclose(first.embeddings[: len(frames)], again.embeddings, atol=1e-6)
    assert len(warned()) == 1 and "are damaged; recomputing them" in warned()[0]
    assert torch.equal(load_file(path)["embeddings"], again.embeddings)


def test_a_cache_that_cannot_be_written_only_warns(compute, tmp_path, monkeypatch, warned):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HNERV_CACHE", str(tmp_path / "file"))
    assert compute().kind == "clip"
    assert len(warned()) == 1 and "the targets are not cached" in warned()[0] and "HNERV_CACHE" in warned()[0]


@contextlib.contextmanager
def writer_killed_at_the_end(path, made):
    """Another process writes the targets to `path`, again and again."""
    child = os.fork()
    if not child:
        try:
            while True:
                targets._write_cache(path, made)
        finally:
            os._exit(1)
    try:
        while not path.exists():
            time.sleep(0.001)
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no os.fork on this system")
def test_a_cache_that_others_write_and_are_killed_at(compute, warned):
    """Killed at random moments, 8 times; every reading is complete, and each process replaces the file of the other."""
    draw, first = random.Random(0), compute(weights="random")
    spec, (path,) = identify("random", "", 0), cache_files()
    made = Targets(first.embeddings.repeat(50, 1, 1), *first[1:])
    for _ in range(8):
        path.unlink()
        with writer_killed_at_the_end(path, made):
            for _ in range(2):
                found = targets._read_cache("video", GRID, 250, spec)
                assert torch.equal(found.embeddings, made.embeddings)
                targets._write_cache(path, found)
            time.sleep(draw.random() / 100)
        assert torch.equal(targets._read_cache("video", GRID, 250, spec).embeddings, made.embeddings)
    assert list(path.parent.glob(".*.tmp")), "none was killed in the middle"
    assert not [text for text in warned() if "damaged" in text or "not cached" in text]


def test_doubtful_and_random_weights_are_warned_of_on_every_run_also_from_the_cache(compute, put, warned):
    path = str(put("unknown.safetensors"))
    for runs in (1, 2):
        compute(weights=path)
        assert len(warned()) == runs and "pass --clip-model hnerv-tiny-quickgelu" in warned()[-1]
    first, second = compute(weights="auto"), compute(weights="auto")
    assert first.kind == second.kind == "random" and first.source == "RANDOM encoder, seed 0: not CLIP"
    assert torch.equal(first.embeddings, second.embeddings)
    assert [text.split(":")[0] for text in warned()[2:]] == ["NOT CLIP", "NOT CLIP"]


@pytest.mark.parametrize(("terminal", "progress"), [(True, True), (True, False), (False, True)])
def test_a_bar_is_for_a_terminal_alone(compute, monkeypatch, capsys, terminal, progress):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    compute(progress=progress)
    assert ("CLIP targets" in capsys.readouterr().err) == (terminal and progress)


def test_random_targets_tell_patches_apart(compute):
    frames = torch.rand(8, 3, 2, 4, generator=torch.Generator().manual_seed(1)).mul(255).byte()
    frames = frames.repeat_interleave(64, -2).repeat_interleave(64, -1)
    found = compute(weights="random", frames=frames, grid=PatchGrid(128, 256, 2, 4))
    assert found.embeddings.flatten(0, 1).std(0).mean() > 0.01


def test_none_gives_no_targets(compute):
    assert compute(weights="none") is None
    with pytest.raises(UserError, match="--clip-weights none and --clip-targets t.safetensors conflict"):
        compute(weights="none", targets_file="t.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_file_of_targets_is_normalised(compute, tmp_path, dtype):
    raw = torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(0)).to(dtype) * 3
    save_file({"embeddings": raw}, tmp_path / "t.safetensors", {"encoder": "Some net,\npooled"})
    found = compute(weights="auto", targets_file=str(tmp_path / "t.safetensors"))
    expected = raw.double() / raw.double().pow(2).sum(-1, keepdim=True).sqrt()
    assert torch.equal(found.embeddings, expected.float())
    assert (found.kind, found.model, found.source) == ("file", "", "file t.safetensors (Some net, pooled)")
    assert found.weights.startswith("t.safetensors sha256:")
    part = read_targets_file(f"{tmp_path / 't.safetensors'}@1:4", 3, GRID)
    assert torch.equal(part.embeddings, found.embeddings[1:4])


def with_row(value: float) -> dict[str, torch.Tensor]:
    embeddings = torch.ones(5, 6, 7)
    embeddings[3, 2] = value
    return {"embeddings": embeddings}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"embeddings": torch.ones(4, 6, 7)}, r"for 4 frames of 6 patches, but the video has 5 frames of 6 .* \(2x3\)"),
        ({"embeddings": torch.ones(5, 8, 7)}, "for 5 frames of 8 patches, but the video has 5 frames of 6 patches"),
        ({"embeddings": torch.ones(5, 42)}, r"has 'embeddings' of shape \(5, 42\) and type F32: store floats \(F64"),
        ({"embeddings": torch.ones(5, 6, 7, dtype=torch.int32)}, "type I32: store floats"),
        (with_row(0), "1 of 30 embeddings are zero or not finite, the first at frame 3, patch 2"),
        (with_row(float("nan")), "zero or not finite, the first at frame 3, patch 2"),
        (with_row(float("inf")), "zero or not finite, the first at frame 3, patch 2"),
        ({"other": torch.ones(1)}, r"has no tensor 'embeddings' \(found: other\)"),
        (b"no safetensors at all", "is not a safetensors file"),
        ("folder", "is not a safetensors file"),
        ("missing", "no such file"),
    ],
)
def test_a_file_of_targets_that_does_not_serve_is_refused(tmp_path, content, sentence):
    path = tmp_path / "t.safetensors"
    if isinstance(content, dict):
        save_file(content, path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "folder":
        path.mkdir()
    with pytest.raises(UserError, match=sentence) as caught:
        read_targets_file(path, 5, GRID)
    assert "\n" not in str(caught.value) and "--clip-targets" in str(caught.value)
