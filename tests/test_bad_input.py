"""Bad input: one line with cause and fix on stderr, exit status 2, nothing written, nothing lost."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hnerv.config import Config

ALLOWED = "NOT CLIP:", "it is unknown whether"
"""Warnings that may precede the line start with these."""


@pytest.fixture
def place(tmp_path, make_film, targets_file) -> SimpleNamespace:
    """Folder for the input of a case, and a missing `output`."""
    return SimpleNamespace(path=tmp_path / "input", output=tmp_path / "output", make_film=make_film)


@pytest.fixture
def refused(capsys, caplog) -> Callable[[int], str]:
    """refused(status) -> the only line on stderr; only ALLOWED warnings were logged."""

    def check(status: int) -> str:
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert status == 2 and "Traceback" not in out + err and 30 < len(line) < 1200
        warnings = [record.getMessage() for record in caplog.records if record.name == "hnerv"]
        assert all(text.startswith(ALLOWED) for text in warnings), warnings
        return line

    return check


def images(folder: Path, *sizes: tuple[int, int]) -> Path:
    folder.mkdir(parents=True)
    for number, size in enumerate(sizes):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def file_of(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def video(path: Path, keep: float = 1.0) -> Path:
    """60 frames of noise, h264 in mp4 with the index first; only this part of the bytes."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for _ in range(60):
            frame = av.VideoFrame.from_ndarray(draw.integers(0, 256, (32, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    return path


def embeddings(path: Path, *shape: int, **named: str) -> Path:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({named.get("name", "embeddings"): torch.ones(shape)}, path)
    return path


def sound(path: Path) -> Path:
    import wave

    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    return path


NO_CLIP = {"clip_targets": None, "clip_weights": "none"}
TRAINING: dict[str, tuple[Callable[[SimpleNamespace], dict], tuple[str, ...]]] = {
    "no such file": (lambda p: {"data": p.path / "none.mp4"}, ("none.mp4", "is not a file, a folder or one of")),
    "no name at all": (lambda p: {"data": ""}, ("--data ''",)),
    "not a video": (lambda p: {"data": file_of(p.path / "a.mp4", b"text " * 500)}, ("a.mp4",)),
    "random bytes": (lambda p: {"data": file_of(p.path / "a.mp4", random.Random(0).randbytes(5000))}, ("a.mp4",)),
    "an empty file": (lambda p: {"data": file_of(p.path / "a.mp4", b"")}, ("a.mp4",)),
    "a sound": (lambda p: {"data": sound(p.path / "a.wav")}, ("a.wav",)),
    "a truncated video": (lambda p: {"data": video(p.path / "cut.mp4", 0.6), **NO_CLIP}, ("is truncated", "--frames")),
    "a folder without images": (lambda p: {"data": images(p.path / "empty")}, ("empty",)),
    "images of different sizes": (lambda p: {"data": images(p.path, (32, 64), (32, 64), (32, 72))}, ("size",)),
    "an image that is none": (lambda p: {"data": file_of(p.path / "a.png", b"no image").parent}, ("a.png",)),
    "a frame smaller than the grid": (lambda p: {"data": images(p.path, (6, 9))}, ("6x9", "--grid")),
    "frames too small for MS-SSIM": (
        lambda p: {"data": images(p.path, (8, 16), (8, 16)), "grid": "1x1", "data_split": "1_1_1", **NO_CLIP},
        ("8x16", "MS-SSIM", "--resize"),
    ),
    "no frame selected": (lambda p: {"frames": "20:30"}, ("--frames",)),
    "malformed frames": (lambda p: {"frames": "a:b"}, ("--frames",)),
    "a crop that nothing divides": (lambda p: {"crop": "30x60"}, ("--crop 30x60", "--dec-strides", "--grid")),
    "a resize that nothing divides": (lambda p: {"resize": "30x60"}, ("--resize 30x60", "--grid")),
    "a crop larger than the frame": (lambda p: {"crop": "64x64"}, ("--crop 64x64", "32x64")),
    "a malformed crop": (lambda p: {"crop": "32"}, ("--crop", "HEIGHTxWIDTH")),
    "a grid that does not divide": (lambda p: {"grid": "3x5", "crop": "32x64"}, ("--grid",)),
    "a malformed grid": (lambda p: {"grid": "2by4"}, ("--grid", "ROWSxCOLUMNS, as in 2x4")),
    "a split without training frames": (lambda p: {"data_split": "0_4_5"}, ("--data-split '0_4_5'",)),
    "a malformed split": (lambda p: {"data_split": "9-9-10"}, ("--data-split '9-9-10'",)),
    "a split out of order": (lambda p: {"data_split": "6_5_4"}, ("--data-split '6_5_4'",)),
    "no number": (lambda p: {"epochs": "many"}, ("--epochs", "many")),
    "an unknown preset": (lambda p: {"preset": "demos"}, ("demos", "bunny-1.5m")),
    "an unknown schedule": (lambda p: {"lr_type": "linear"}, ("--lr-type 'linear'", "cosine_")),
    "no learning rate": (lambda p: {"lr": 0}, ("--lr 0",)),
    "a seed beyond 32 bits": (lambda p: {"seed": 1 << 70}, ("--seed",)),
    "too few parameters": (lambda p: {"dec_width": 0, "modelsize": 0.0001}, ("--modelsize 0.0001", "raise it")),
    "an encoder of other strides": (
        lambda p: {"embedding": "encoder", "enc_strides": "2 2"},
        ("--enc-strides", "--dec-strides"),
    ),
    "encode without an encoder": (lambda p: {"unseen": "encode"}, ("--unseen encode", "--embedding encoder")),
    "a weights file that is not there": (
        lambda p: {"clip_targets": None, "clip_weights": p.path / "w.safetensors"},
        ("--clip-weights", "w.safetensors"),
    ),
    "a weights file that does not fit": (
        lambda p: {"clip_targets": None, "clip_weights": embeddings(p.path / "w.safetensors", 3, name="proj")},
        ("w.safetensors",),
    ),
    "a weights file that is none": (
        lambda p: {"clip_targets": None, "clip_weights": file_of(p.path / "w.safetensors", b"x" * 100)},
        ("w.safetensors",),
    ),
    "a tag that cannot be had": (lambda p: {"clip_targets": None, "clip_weights": "openai"}, ("openai",)),
    "an unknown tag": (lambda p: {"clip_targets": None, "clip_weights": "opena"}, ("opena",)),
    "an unknown model": (
        lambda p: {"clip_targets": None, "clip_weights": "openai", "clip_model": "ViT-B-33"},
        ("ViT-B-33",),
    ),
    "targets of another length": (
        lambda p: {"clip_targets": embeddings(p.path / "t.safetensors", 11, 8, 4)},
        ("t.safetensors", "11 frames", "12 frames"),
    ),
    "targets of another grid": (
        lambda p: {"clip_targets": embeddings(p.path / "t.safetensors", 12, 6, 4)},
        ("6 patches", "--grid"),
    ),
    "targets of another shape": (lambda p: {"clip_targets": embeddings(p.path / "t.safetensors", 12, 8)}, ("t.safe",)),
    "targets under another name": (
        lambda p: {"clip_targets": embeddings(p.path / "t.safetensors", 12, 8, 4, name="x")},
        ("'embeddings'",),
    ),
    "targets that are none": (lambda p: {"clip_targets": file_of(p.path / "t.safetensors", b"x")}, ("t.safetensors",)),
    "targets that are not there": (lambda p: {"clip_targets": p.path / "t.safetensors"}, ("no such file",)),
    "targets and none": (lambda p: {"clip_weights": "none"}, ("conflict",)),
    "CUDA where there is none": (lambda p: {"device": "cuda"}, ("--device cuda", "--device cpu")),
    "an unknown device": (lambda p: {"device": "gpu"}, ("--device 'gpu'",)),
    "threads below 0": (lambda p: {"threads": -1}, ("--threads -1",)),
}


@pytest.mark.parametrize("case", TRAINING)
def test_training_refuses(case, place, train, flags, refused, monkeypatch):
    if "CUDA" in case:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    make, expected = TRAINING[case]
    line = refused(train(place.output, flags(**make(place))))
    assert line.startswith("train_patch_dual.py: ")
    assert all(text in line for text in expected), line
    assert not place.output.exists()


@pytest.mark.parametrize("exp_id", ["..", "../x", "/abs", "", "a/../../b"])
def test_a_name_that_leaves_the_folder(exp_id, place, train, flags, refused):
    assert "--exp-id" in refused(train(place.output, flags(), exp_id=exp_id))
    assert not place.output.exists() and not list(place.output.parent.iterdir())


@pytest.mark.parametrize("block", ["output", "output/run", "output/run/sub"])
def test_a_file_where_the_folder_should_be(block, tmp_path, train, flags, refused, snapshot):
    file_of(tmp_path / block, b"precious")
    before = snapshot(tmp_path)
    line = refused(train(tmp_path / "output", flags(), exp_id="run/sub/deep" if "sub" in block else "run"))
    assert "cannot write the run folder" in line and "--output" in line
    assert snapshot(tmp_path) == before


def test_a_disk_that_refuses_the_first_write(tmp_path, train, flags, refused, monkeypatch):
    """As root or with a full disk, where permissions look fine."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("hnerv.files.os.replace", refuse)
    assert "cannot write the run folder" in refused(train(tmp_path, flags(clip_weights="none", clip_targets="")))


def test_a_folder_without_permission_is_found_before_the_video(tmp_path, train, flags, refused, monkeypatch):
    monkeypatch.setattr("hnerv.runs.folder.os.access", lambda *_: False)
    line = refused(train(tmp_path, flags(data=tmp_path / "missing.mp4")))
    assert f"{tmp_path} is not a writable folder" in line


def test_a_folder_of_another_configuration(finished, tmp_path, train, flags, refused, snapshot):
    shutil.copytree(finished, tmp_path / "run")
    before = snapshot(tmp_path)
    line = refused(train(tmp_path, flags(lr=0.5, batch_size=1)))
    assert "batch_size is 3, this command has 1;" in line
    assert f"lr is {Config().train.lr}, this command has 0.5" in line
    assert snapshot(tmp_path) == before


def rewrite(edit: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        state = torch.load(path)
        edit(state)
        torch.save(state, path)

    return damage


DAMAGE: dict[str, Callable[[Path], object]] = {
    "is corrupt": lambda path: path.write_bytes(path.read_bytes()[:3000]),
    "is not an hnerv checkpoint": lambda path: torch.save({"state_dict": {}}, path),
    "has format 99": rewrite(lambda state: state.update(format=99)),
    "new_flag": rewrite(lambda state: state["run"]["config"]["model"].update(new_flag=1)),
    "has weights that do not match its configuration": rewrite(lambda state: state["model"].popitem()),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_checkpoint_that_cannot_be_used(message, finished, tmp_path, train, flags, evaluate, refused, snapshot):
    shutil.copytree(finished, tmp_path / "run")
    DAMAGE[message](tmp_path / "run" / "checkpoints" / "latest.pt")
    before = snapshot(tmp_path)
    for run in (lambda: train(tmp_path, flags()), lambda: evaluate(tmp_path / "run")):
        line = refused(run())
        assert message in line and ": " in line
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none"], "no such file: pass a run folder, a checkpoint"),
        (["none.pt"], "no such file: pass a run folder, a checkpoint"),
        (["."], "no such file: pass a run folder, a checkpoint"),
        ([], "PATH"),
        (["x", "--image"], "--images"),
        (["x", "--device", "gpu"], "--device 'gpu'"),
        (["x", "--unseen", "look"], "look"),
    ],
)
def test_evaluation_refuses(words, message, tmp_path, monkeypatch, evaluate, refused):
    monkeypatch.chdir(tmp_path)
    line = refused(evaluate(*words))
    assert line.startswith("eval.py: ") and message in line
    assert not list(tmp_path.iterdir())


def test_evaluation_of_a_run_whose_targets_are_gone(tmp_path, train, flags, evaluate, refused, snapshot, capsys):
    targets = embeddings(tmp_path / "t.safetensors", 12, 8, 4)
    assert train(tmp_path / "output", flags(clip_targets=targets, epochs=1)) == 0
    targets.unlink()
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert "no such file" in refused(evaluate(tmp_path / "output" / "run"))
    assert snapshot(tmp_path) == before


def test_the_readable_part_of_a_truncated_video(place, train, flags):
    """The fix that the error of a truncated video proposes."""
    path = video(place.path / "cut.mp4", 0.6)
    assert train(place.output, flags(data=path, frames="0:10", epochs=1, **NO_CLIP)) == 0
