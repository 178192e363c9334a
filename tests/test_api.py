"""The Python API: its docstrings run, it agrees with the commands, and importing it costs nothing."""

from __future__ import annotations

import doctest
import inspect
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hnerv
from hnerv import api
from hnerv.codec import play
from hnerv.config import Config
from hnerv.runs.models import open_checkpoint

ROOT = Path(__file__).parents[1]
TINY = {
    "crop": "",
    "resize": "80x160",
    "modelsize": 0.05,
    "epochs": 2,
    "data_split": "3_3_4",
    "eval_freq": 0,
    "pixel_loss_warmup_epochs": 0,
    "clip_targets": "kitchen.safetensors",
}


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory, make_film) -> Path:
    """A folder with a clip of 8 frames, kitchen.mp4, its targets, the run output/kitchen and its file kitchen.hnerv."""
    folder, here = tmp_path_factory.mktemp("kitchen"), os.getcwd()
    write_clip(folder / "kitchen.mp4", make_film(folder / "frames", count=8, size=(80, 160)))
    write_targets(folder / "kitchen.safetensors", (8, 8, 16))
    os.chdir(folder)
    try:
        run = hnerv.train("kitchen.mp4", exp_id="kitchen", preset="demo", **TINY)
        run.encode("kitchen.hnerv")
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def inside(kitchen, monkeypatch) -> Path:
    monkeypatch.chdir(kitchen)
    return kitchen


def write_clip(path: Path, frames: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "1"})
        for number, name in enumerate(sorted(frames.iterdir())):
            frame = av.VideoFrame.from_image(Image.open(name))
            if not number:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_targets(path: Path, shape: tuple[int, ...]) -> None:
    from safetensors.torch import save_file

    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    save_file({"embeddings": torch.nn.functional.normalize(vectors, dim=-1)}, path)


EXAMPLES = [test for test in doctest.DocTestFinder().find(api, "api") if test.examples]


def test_the_public_parts_have_docstrings_and_most_have_examples():
    for name in hnerv.__all__:
        assert inspect.getdoc(getattr(hnerv, name)), name
    methods = [m for name, m in vars(api.NeuralVideo).items() if not name.startswith("_")]
    assert all(inspect.getdoc(method) for method in methods if not isinstance(method, property))
    assert len(EXAMPLES) >= 15


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda test: test.name.removeprefix("api."))
def test_examples(example, inside, tmp_path, monkeypatch):
    names = {"hnerv": hnerv, "np": np, "os": os, "torch": torch}
    names |= {"run": hnerv.open(inside / "output" / "kitchen"), "video": hnerv.open(inside / "kitchen.hnerv")}
    made = ["output", "kitchen.hnerv"] if example.name == "api" else []  # this one makes them
    for path in inside.iterdir():
        if path.name not in made:
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    example.globs = names
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    runner.run(example, out=report.append, clear_globs=False)
    assert not runner.failures, "".join(report)


def test_a_file_a_run_and_a_checkpoint_are_the_same_object(inside):
    run, checkpoint, file = map(hnerv.open, ("output/kitchen", "output/kitchen/checkpoints/latest.pt", "kitchen.hnerv"))
    model = open_checkpoint(Path("output/kitchen")).model.eval()
    expected = np.stack([*play(model.to(memory_format=torch.channels_last), range(8))])
    for video in (run, checkpoint, file):
        assert type(video) is hnerv.NeuralVideo and video.shape == (8, 80, 160, 3) and len(video) == 8
        assert video.fps == 24 and video.grid == (2, 4) and video.times[3] == pytest.approx(3 / 24)
        assert video.targets.startswith("file kitchen.safetensors")
    assert np.array_equal(run.frames[:], expected) and np.array_equal(checkpoint.frames[:], expected)
    error = np.abs(file.frames[:].astype(int) - expected)
    assert 0 < error.mean() < 3  # from coding
    assert run.size == run.bpp == 0 and file.size == Path("kitchen.hnerv").stat().st_size and file.values == {}
    assert file.bpp == pytest.approx(8 * file.size / (8 * 80 * 160))


def test_indices_of_frames_are_those_of_arrays(inside):
    video, every = hnerv.open("kitchen.hnerv"), np.stack([*hnerv.open("kitchen.hnerv").frames])
    for index in (0, -1, slice(None), slice(6, 1, -2), slice(2, 2), [5, 0, 5], np.array([1, 7])):
        assert np.array_equal(video.frames[index], every[index])
    assert video.frames.shape == video.shape and len(video.frames) == 8
    mask = np.arange(8) % 3 == 0
    for index in (range(2, 5), mask, mask.tolist(), np.int64(3), np.array(3), torch.tensor([1, 7]), []):
        assert np.array_equal(video.frames[index], every[index])
    for wrong in (8, -9, [0, 8], 2.5, [1.5], True, None, "a", [[1, 2]], (1, 2)):
        with pytest.raises(IndexError):
            video.frames[wrong]
    for patch in range(8):
        row, col = divmod(patch, 4)
        part = every[:, 40 * row : 40 * (row + 1), 40 * col : 40 * (col + 1)]
        assert np.abs(video.patch(patch).astype(int) - part).max() <= 1
    assert video.patch(0, 3).shape == (40, 40, 3)
    for wrong in (8, -1, 1.5):
        with pytest.raises(hnerv.UserError, match=f"patch {wrong} does not exist"):
            video.patch(wrong)


def test_a_damaged_clip_head_leaves_the_frames(inside, tmp_path):
    data = bytearray(Path("kitchen.hnerv").read_bytes())
    parts = {part["name"]: part["size"] for part in hnerv.open("kitchen.hnerv").info()["parts"]}
    assert [*parts][-1] == "clip_head"
    data[-1 - parts["clip_head"] // 2] ^= 1
    (tmp_path / "damaged.hnerv").write_bytes(data)
    whole, damaged = hnerv.open("kitchen.hnerv"), hnerv.open(tmp_path / "damaged.hnerv")
    assert np.array_equal(damaged.frames[:], whole.frames[:]) and np.array_equal(damaged.at(1.5), whole.at(1.5))
    for use in (lambda: damaged.model, lambda: damaged.embeddings, damaged.info):
        with pytest.raises(hnerv.UserError, match="clip_head"):
            use()


def test_opening_keeps_the_determinism_of_the_process(inside):
    torch.use_deterministic_algorithms(True)
    try:
        hnerv.open("kitchen.hnerv")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_time_between_frames(inside):
    video = hnerv.open("output/kitchen")
    with torch.no_grad():
        rgb = video.model(torch.tensor([2.5]), clip=False).rgb[0]
    expected = (rgb.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(video.at(2.5).astype(int) - expected).max() <= 1
    assert not np.array_equal(video.at(2.5), video.at(2.0))
    for time in (-0.1, 7.1, float("nan")):
        with pytest.raises(hnerv.UserError, match="outside the video"):
            video.at(time)


def test_embeddings_are_an_array_that_knows_its_frames(inside, tmp_path):
    video = hnerv.open("kitchen.hnerv")
    found = video.embeddings
    with torch.no_grad():
        expected = video.model(torch.arange(8).float()).clip.numpy()
    assert np.allclose(np.asarray(found), expected, atol=1e-5) and found[3].shape == (8, 16) and len(found) == 8
    assert found.frame.tolist() == [*range(8)] and found.patch.tolist() == [*range(8)]
    found.save(tmp_path / "again.safetensors")
    from safetensors.numpy import load_file

    assert np.array_equal(load_file(tmp_path / "again.safetensors")["embeddings"], np.asarray(found))


def test_queries_of_every_kind(clip_run, monkeypatch, tmp_path):
    """Texts, images and vectors; a text needs the encoder of the targets."""
    video = hnerv.open(clip_run)
    picture = Image.fromarray(video.frames[4])
    picture.save(tmp_path / "four.png")
    by_path, by_image, by_array = (video.scores(q) for q in (tmp_path / "four.png", picture, np.asarray(picture)))
    assert np.array_equal(by_path, by_image) and np.array_equal(by_path, by_array)
    vector = video.embeddings[7, 3]
    assert np.allclose(video.scores(torch.from_numpy(3 * vector)), video.scores(vector), atol=1e-6)
    both = video.scores("a dog", vector, avoid=["a cat"])
    parts = [video.scores(query) for query in ("a dog", vector, "a cat")]
    assert np.allclose(both, (parts[0] + parts[1]) / 2 - parts[2], atol=1e-6)
    hits = video.search("a dog", top=3)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    with pytest.raises(hnerv.UserError, match="needs a query"):
        video.search()
    for wrong in (vector[:3], 3.0, np.zeros((4, 4), np.uint8)):
        with pytest.raises(hnerv.UserError, match="cannot be compared with embeddings"):
            video.search(wrong)
    for query, options, message in [
        (None, {}, "NoneType is not a query"),
        (np.zeros((0, 4, 3), np.uint8), {}, "ndarray is not a query"),
        (" ", {}, "query is empty"),
        ("a dog", {"prompts": "long"}, "'long' do not exist"),
        ("a dog", {"avoid": "a cat"}, "pass one, as in avoid="),
        (vector, {"avoid": vector}, "pass one, as in avoid="),
        (vector, {"top": 0}, "must be at least 1"),
    ]:
        with pytest.raises(hnerv.UserError, match=message):
            video.search(query, **options)
    folder = hnerv.open_folder(clip_run.parent)
    with pytest.raises(hnerv.UserError, match="must be at least 1"):
        folder.search(vector, top=0)
    assert len(folder) == 1 and folder.search("a dog", top=1)[0].frame == hits[0].frame


def test_the_model_of_a_divided_video_is_not_one(inside, tmp_path):
    run = hnerv.train(
        "kitchen.mp4",
        exp_id="parts",
        preset="demo",
        output=tmp_path,
        segment_frames=4,
        **{**TINY, "clip_targets": "", "clip_weights": "none", "epochs": 1},
    )
    assert (
        len(run) == 8 and run.frames[[1, 6]].shape == (2, 80, 160, 3) and run.values["Eval/Info/num_train_frames"] == 6
    )
    file = run.encode(tmp_path / "parts.hnerv").video
    assert np.array_equal(file.at(3.5), file.at(3.0)), "the last frame of a segment is shown until the next one"
    assert str(file.evaluate("kitchen.mp4")).startswith(" " * 20) and len(file.info()["segments"]) == 2
    for use in (lambda: file.model, lambda: file.compare_head("kitchen.mp4")):
        with pytest.raises(hnerv.UserError, match="networks, one for each segment"):
            use()


def test_an_evaluation_saves_on_request_alone(inside, tmp_path, snapshot):
    before = snapshot(inside)
    report = hnerv.open("kitchen.hnerv").evaluate("kitchen.mp4", images=True)
    assert snapshot(inside) == before and report.folder == Path("kitchen_eval/eval")
    assert "full-frame PSNR" in str(report) and report["Eval/Frame/train_psnr_yuv"] > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hnerv.open("gone"), "gone"),
        (lambda: hnerv.open("kitchen.hnerv", device="abacus"), "'abacus' is not a device"),
        (lambda: hnerv.open("kitchen.hnerv").encode("b.hnerv"), "is a .hnerv file"),
        (lambda: hnerv.open("output/kitchen").encode("b.mp4"), "does not end in .hnerv"),
        (lambda: hnerv.open("output/kitchen").encode("kitchen.hnerv"), "exists"),
        (lambda: hnerv.open("output/kitchen").encode("b.hnerv", weight_bits=1), "--weight-bits"),
        (lambda: hnerv.open("output/kitchen").info(), "is not a .hnerv file"),
        (lambda: hnerv.train("kitchen.mp4", exp_id="x", epoch=3), "no setting is called 'epoch': did you mean epochs"),
        (lambda: hnerv.train("gone.mp4", exp_id="x", preset="demo"), "gone.mp4"),
        (
            lambda: hnerv.train("kitchen.mp4", exp_id="x", **TINY | {"epochs": "3"}),
            "setting epochs must be of type int",
        ),
        (lambda: hnerv.train("kitchen.mp4", exp_id="x", **TINY, on_divergence="rolback"), "use stop or rollback"),
        (lambda: hnerv.train("kitchen.mp4", exp_id="x", **TINY, max_minutes=-1), "--max-minutes -1 must be"),
        (lambda: hnerv.open("kitchen.hnerv").save("b.mkv", frames=range(0)), "does not select frames"),
        (lambda: hnerv.open("kitchen.hnerv").save("b.mkv", frames=range(5, 9)), "does not select frames"),
        (lambda: hnerv.open("kitchen.hnerv").save("b.mkv", patch=8), "patch 8 does not exist"),
        (lambda: hnerv.open("output/kitchen").encode("b.hnerv", steps="equal"), "--steps 'equal' does not exist"),
        (lambda: hnerv.open("output/kitchen").encode("b.hnerv", clip_targets="none"), "would leave out the CLIP head"),
        (lambda: hnerv.open("output/kitchen").compare_head(clip_targets="none"), "leaves out the CLIP head"),
        (lambda: hnerv.compare([]), "needs a file"),
        (lambda: hnerv.open("kitchen.mp4"), "train a network on a video first"),
        (lambda: hnerv.open("s3://bucket/a.hnerv"), "s3://bucket/a.hnerv is an address"),
        (lambda: hnerv.open("output/kitchen").compare_head(queries="abc"), "as in queries="),
        (lambda: hnerv.compare("gone.hnerv"), "gone.hnerv is not a file"),
    ],
)
def test_errors_are_sentences(inside, call, message, snapshot):
    before = snapshot(inside)
    with pytest.raises(hnerv.UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value) and snapshot(inside) == before


def test_settings_are_of_the_types_of_the_flags(inside, tmp_path):
    """A path, a list, an int for a float and a NumPy number give the configuration of the command line."""
    given = {"clip_targets": Path("kitchen.safetensors"), "dec_strides": [2, 5], "lr": 1, "epochs": np.int64(1)}
    run = hnerv.train(Path("kitchen.mp4"), exp_id="x", preset="demo", output=tmp_path, **{**TINY, **given})
    flat = run.config.flat()
    for name, value in {**given, "clip_targets": "kitchen.safetensors", "dec_strides": (2, 5), "lr": 1.0}.items():
        assert flat[name] == value and type(flat[name]) is type(Config().flat()[name])
    run.save(tmp_path / "some", frames=slice(6, None, -3))
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == ["00000.png", "00003.png", "00006.png"]
    moved = hnerv.open(run.path, clip_weights="moved")
    assert moved.encode(tmp_path / "x.hnerv").video.clip_weights == "moved"


def test_a_thread_may_train(inside, tmp_path):
    """Signals reach the main thread alone."""
    with ThreadPoolExecutor(1) as pool:
        settings = {**TINY, "epochs": 1, "clip_targets": "", "clip_weights": "none"}
        run = pool.submit(hnerv.train, "kitchen.mp4", exp_id="x", preset="demo", output=tmp_path, **settings).result()
    assert len(run) == 8


def test_importing_the_package_imports_no_torch():
    script = (
        "import sys, hnerv; assert 'torch' not in sys.modules and 'numpy' not in sys.modules; "
        "assert {'train', 'open'} <= set(dir(hnerv)); hnerv.UserError; assert 'torch' not in sys.modules; "
        "hnerv.open; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="no attribute 'openn'"):
        _ = hnerv.openn
