"""benchmarks/reference_training.py, and quality.py with --reference, on stand-ins for the checkouts.

The stand-ins are other networks: what is checked is that their parts fit ours. HNERV_HINERV names a checkout of
hmkx/HiNeRV to check as well.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hnerv.config import Config
from hnerv.data.store import FrameStore, load_material
from hnerv.errors import UserError

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
CPU = torch.device("cpu")
HINERV = {
    "hinerv_main.py": "",
    "cfgs/models/bunny-hinerv-xxs_1280x720.txt": "--channels 136 --scales-hw 5 2 2 2 --base-grid-size 40 -1 -1 2",
    "cfgs/train/hinerv_1280x720.txt": "--epochs 300 --patch-size 1 16 16 --lr 2e-2 --loss 1.0 l1 --prune-epochs 60",
    "models/__init__.py": "",
    "models/hinerv.py": """
import torch
def set_args(parser):
    parser.add_argument("--channels", type=int)
    for name in ("--scales-hw", "--base-grid-size"):
        parser.add_argument(name, nargs="+", type=int)
    parser.set_defaults(channels_reduce=2.0, depths=[1], exps=[1.0], base_grid_level=1, enc_grid_size=[-1, 4])
    parser.set_defaults(enc_grid_level=1)
def build_model(args, logger, input):
    logger.info("a line")
    assert args.base_grid_size[1:3] == [-1, -1]
    args.base_grid_size[1:3] = [0, 0]
    return Model(args.channels, *input["video_size"])
class Model(torch.nn.Module):
    def __init__(self, channels, T, H, W):
        super().__init__()
        self.grid = torch.nn.Parameter(torch.zeros(channels, T, H // 16, W // 16))
        self.head = torch.nn.Conv3d(channels, 3 * 16 * 16, 1)
    def forward(self, given):
        blocks = self.head(self.grid).view(3, 16, 16, *self.grid.shape[1:])
        video = blocks.permute(0, 3, 4, 1, 5, 2).flatten(4).flatten(2, 3).sigmoid()
        (_, h, w), places = given["patch_size"], given["idx"].tolist()
        assert self.training == (given["idx_max"][1] > 1)
        return torch.stack([video[:, t : t + 1, y * h : y * h + h, x * w : x * w + w] for t, y, x in places])
""",
    "utils.py": """
import accelerate
def set_optimizer_args(parser):
    for name in ("--lr", "--max-norm"):
        parser.add_argument(name, type=float)
    parser.set_defaults(norm_type=2.0, warmup_lr=1e-4, min_lr=1e-4, warmup_epochs=30)
""",
    "datasets.py": """
from utils import *
def set_dataset_args(parser): parser.add_argument("--patch-size", nargs="+", type=int)
""",
    "hinerv_tasks.py": """
from utils import *
def set_task_args(parser): parser.add_argument("--loss", nargs="+")
class VideoRegressionTask:
    def __init__(self, args, logger, accelerator, root): assert args.loss == ["1.0", "l1"]
    def step(self, model, loader, batch):
        idx, x = batch
        sizes = loader.dataset
        given = {"idx": idx, "idx_max": sizes.num_patches, "patch_size": sizes.patch_size}
        y = model(given)
        assert y.shape == x.shape and x.shape[2:] == sizes.patch_size and sizes.video_size == (12, 32, 64)
        return given, x, y, (y - x).abs().mean((1, 3, 4)), {}
""",
}
HNERV = {
    "train_nerv_all.py": "",
    "hnerv_utils.py": """
def adjust_lr(optimizer, progress, args):
    assert 0 <= progress < 1
    optimizer.param_groups[0]["lr"] = 10 * args.lr
def loss_fn(out, truth, name): assert name == "L2"; return (out - truth).square().mean()
def psnr_fn_single(out, truth): return -10 * (out - truth).square().mean().log10()
""",
    "model_all.py": """
import math, torch
class TransformInput:
    def __init__(self, args): pass
    def __call__(self, img): return img, img, torch.ones_like(img)
class HNeRV(torch.nn.Module):
    def __init__(self, args):
        super().__init__()
        s = math.prod(args.enc_strds)
        self.encoder = torch.nn.Conv2d(3, 16, s, s)
        layers = torch.nn.Conv2d(16, args.fc_dim, 1), torch.nn.Conv2d(args.fc_dim, 3 * s * s, 1)
        self.decoder = torch.nn.Sequential(*layers, torch.nn.PixelShuffle(s))
    def forward(self, x): return self.decoder(self.encoder(x)).sigmoid(), [], 0.0
class HNeRVDecoder(torch.nn.Module):
    def __init__(self, model): super().__init__(); self.model = model
    def forward(self, codes): return self.model.decoder(codes).sigmoid()
""",
}


def checkout(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def checkouts(tmp_path) -> list[Path]:
    return [checkout(tmp_path / "hinerv", HINERV), checkout(tmp_path / "hnerv", HNERV)]


@pytest.fixture
def training(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import reference_training

    yield reference_training
    for name in ("quality", "reference_training", "reference", "common"):
        sys.modules.pop(name, None)


@pytest.fixture
def small(film) -> dict[str, object]:
    model = {"dec_strides": (2, 2, 2), "dec_width": 24, "embed_dim": 4, "clip_weights": "none"}
    return model | {"data": str(film), "data_split": "4_5_6", "epochs": 3, "eval_freq": 2}


@pytest.fixture
def data(small):
    """(material, store): frames 0 to 3 and 6 to 9 of 12 are trained, 5 and 11 unseen."""
    material = load_material(Config().replaced(small), CPU)
    return material, FrameStore(material, CPU)


def test_rows_next_to_ours(training, checkouts, small, monkeypatch, tmp_path):
    """Equal epochs and equal seconds, ours and both checkouts, in one table; finished rows are skipped."""
    import quality

    monkeypatch.setitem(quality.SCALES, "proxy", small)
    flags = ["--only", "default", "--seeds", "0", "--epochs", "3", "--seconds", "0.1", "--device", "cpu"]
    flags += ["--out", str(tmp_path / "out"), "--reference", *map(str, checkouts)]
    jobs = quality.plan(quality.parse(flags))
    for job in jobs:
        quality.run(job)
    assert all(map(quality.done, jobs)) and len({job.path for job in jobs}) == 6
    rows = [json.loads(job.path.read_text()) for job in jobs]
    names = ["default", "hmkx/HiNeRV", "haochen-rye/HNeRV"]
    assert [(row["variant"], row["budget_seconds"]) for row in rows] == [(n, b) for b in (0, 0.1) for n in names]
    for row in rows:
        assert row["epochs"] == 3 if not row["budget_seconds"] else row["epochs"] >= 2
        assert row["parameters"] == pytest.approx(rows[0]["parameters"], rel=0.05)
        assert row["curve"][-1][1:] == [row["train_psnr_frame"], row["val_psnr_frame"]]
        assert 0 < row["curve"][0][0] < row["seconds"] == row["curve"][-1][0] and row["blend_of_decoded"] > 5
    text = quality.table(rows)
    assert "| hmkx/HiNeRV | 1 | 3 |" in text and "| hmkx/HiNeRV, 0.1 s | 1 |" in text
    quality.plot(rows, tmp_path / "psnr.png")


def test_steps_lower_the_error_of_decoded_frames(training, checkouts, data):
    for folder in checkouts:
        model = training.public_training(folder, *data, 6000, seed=0)
        before = training.psnr_frames(model, data[1], data[0].scene.train)
        for _ in range(10):
            for batch in model.batches():
                model.step(batch, 0.5)
        assert training.psnr_frames(model, data[1], data[0].scene.train) > before + 1


def test_an_epoch_of_patches_has_every_patch_once_with_its_pixels(training, checkouts, data):
    (material, store), folder = data, checkouts[0]
    model = training.public_training(folder, material, store, 6000, seed=0)
    assert model.patch == (16, 16) and model.per_step == 8 == model.steps_per_epoch
    batches = list(model.batches())
    assert len(batches) == 8 and sorted(torch.cat(batches).tolist()) == list(range(64))
    places = model._places.tolist()
    assert sorted(map(tuple, places)) == sorted(itertools.product(material.scene.train, range(2), range(4)))
    for (t, y, x), patch in zip(places, model._patches, strict=True):
        assert patch.equal(material.video.frames[t, :, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16])


def test_codes_of_unseen_frames_are_between_those_of_their_neighbours(training, checkouts, data):
    material, store = data
    model = training.public_training(checkouts[1], material, store, 6000, seed=0)
    model.refresh()
    with torch.no_grad():
        codes = {t: model.model.encoder(store.frames(torch.tensor([t])).contiguous()) for t in material.scene.train}
        decoded = model.decode(torch.tensor([3, 4, 5, 11]))
        between = [codes[3], torch.lerp(codes[3], codes[6], 1 / 3), torch.lerp(codes[3], codes[6], 2 / 3), codes[9]]
        torch.testing.assert_close(decoded, model.model.decoder(torch.cat(between)).sigmoid())


def test_strides_of_the_published_sizes_and_of_the_proxy(training):
    assert training.hnerv_strides(640, 1280) == [5, 4, 4, 2, 2] and training.hnerv_strides(160, 320) == [5, 4, 2, 2]
    assert [training.first_stride(*size, 8) for size in ((720, 1280), (640, 1280), (160, 320))] == [5, 5, 2]
    with pytest.raises(UserError, match="36x64 by 16"):
        training.first_stride(36, 64, 8)
    with pytest.raises(UserError, match="33x64"):
        training.hnerv_strides(33, 64)


def test_the_closest_width_is_that_of_all(training):
    def numbers(width: int) -> int:
        return 7 * width**2 + 5

    for wanted in (12, 40, 1000, 7777):
        best = min(range(1, 100), key=lambda width: abs(numbers(width) - wanted))
        assert training.closest_width(numbers, wanted) == best
    with pytest.raises(UserError, match="more than the 11 parameters"):
        training.closest_width(numbers, 11)


def test_the_rate_is_that_of_timm(training):
    scheduler = pytest.importorskip("timm.scheduler")
    args = SimpleNamespace(lr=2e-3, warmup_lr=2e-5, min_lr=2e-5, epochs=300, warmup_epochs=30)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.lr)
    timm = scheduler.CosineLRScheduler(
        optimizer, 300 * 5, lr_min=args.min_lr, warmup_t=30 * 5, warmup_lr_init=args.warmup_lr, t_in_epochs=False
    )
    for step in (0, 1, 80, 149, 150, 151, 700, 1499):
        timm.step_update(step)
        assert training.hinerv_rate(step / 1500, args) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_refused_checkouts(training, checkouts, tmp_path):
    import quality

    folder = str(checkouts[0])
    causes = {
        "is not a checkout of hmkx/HiNeRV or haochen-rye/HNeRV": [str(tmp_path)],
        "several checkouts of the same code": [folder, folder],
        "remove --clip-targets": [folder, "--clip-targets", "x"],
    }
    for cause, words in causes.items():
        with pytest.raises(UserError, match=cause):
            quality.plan(quality.parse(["--reference", *words]))


def test_modules_of_the_same_name_are_kept(training, checkouts):
    """Both checkouts have modules with names that anyone may have taken."""
    import reference

    sys.modules["utils"] = kept = SimpleNamespace()
    try:
        (module,) = reference.import_theirs(checkouts[0], "hinerv_tasks")
        assert module.accelerate is not None and sys.modules["utils"] is kept
        assert "hinerv_tasks" not in sys.modules and "accelerate" not in vars(kept)
    finally:
        del sys.modules["utils"]


@pytest.mark.skipif("HNERV_HINERV" not in os.environ, reason="needs a checkout of hmkx/HiNeRV in HNERV_HINERV")
def test_patches_of_hinerv_are_those_of_the_frame(training, small, make_film, tmp_path):
    film = make_film(tmp_path / "film", size=(160, 320))
    material = load_material(Config().replaced(small | {"data": str(film)}), CPU)
    model = training.public_training(Path(os.environ["HNERV_HINERV"]), material, FrameStore(material, CPU), 50_000, 0)
    model.refresh()
    places = torch.tensor([[7, y, x] for y in range(2) for x in range(4)])
    given = {"idx": places, "idx_max": (12, 2, 4), "video_size": model.size, "patch_size": (1, 80, 80)}
    with torch.no_grad():
        frame = model.decode(torch.tensor([7]))
        patches = model.model.train()(given).squeeze(2)
    torch.testing.assert_close(patches, training._in_patches(frame, 80, 80), rtol=0, atol=1e-5)
