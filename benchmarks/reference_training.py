"""Trainings of published implementations, imported from a checkout, on our frames and with our number of parameters.

Model, loss, schedule and optimiser are theirs, in the published configuration of the nearest size. What depends on
the frame is scaled to it; the docstrings of the classes state how. Both train in full precision up to the end of
their main stage: no pruning and no quantisation-aware training. All frames are in memory, so that their loaders, which
read files in other processes, cost nothing. Their step is eager; with CUDA, theirs of HiNeRV is compiled.

B frames or patches, N frames of the video, H W pixels of a frame, h w of a patch, h0 w0 cells of an embedding.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from reference import as_they_run, haochen_step, import_theirs, recognise
from torch import Tensor, nn

from hnerv.data.store import FrameStore, Material
from hnerv.errors import UserError
from hnerv.metrics import frame_mse, psnr
from hnerv.model.predict import FRAMES_AT_ONCE, round8

SILENT = logging.Logger("reference", logging.CRITICAL)


class PublicTraining(ABC):
    """Contract: one model with its training steps on the training frames of a scene, and its decoder.

    `parameters` counts the numbers that a receiver needs, `layout` describes the network in a line.
    """

    files: tuple[str, ...]
    """Files of the checkout."""
    parameters: int
    layout: str
    steps_per_epoch: int

    @abstractmethod
    def __init__(self, folder: Path, material: Material, store: FrameStore, parameters: int) -> None:
        """A model with the width that brings its parameters closest to `parameters`. Raises UserError."""

    @abstractmethod
    def batches(self) -> Iterator[Tensor]:
        """What the steps of an epoch take, in random order. As in their loaders, the last batch is full or dropped."""

    @abstractmethod
    def step(self, batch: Tensor, progress: float) -> Tensor:
        """One optimiser step at a part in [0, 1) of the training -> its loss."""

    @abstractmethod
    def refresh(self) -> None:
        """Prepare for decoding with the present weights."""

    @abstractmethod
    def decode(self, positions: Tensor) -> Tensor:
        """Positions (B,) in [0, N - 1] -> frames (B, 3, H, W) in [0, 1] on the device."""


class HiNeRVTraining(PublicTraining):
    """hmkx/HiNeRV with the flags of their `cfgs`: Bunny XXS, XS or S (0.75M, 1.5M, 3M), the nearest in size.

    Scaled to the frame:
    - The first of the strides 5 2 2 2 is the divisor that brings the base grid closest to their 18x32 cells: 2 at
      160x320 (10x20 cells), 5 at 640x1280 (16x32). All later maps are then as large, relative to the frame, as
      theirs, and the base grids keep about their share of the parameters: 16 % at 160x320 and 0.2M, theirs 12 %.
    - The base grid keeps its channels and its knots per frame (40 for 132 frames), the temporal-local grids their
      channels and a knot for every frame.
    - Patches stay at 80x80 pixels, or are the next larger ones of full base cells that divide the frame: MS-SSIM with
      a window of 5 needs more than 64. A step takes as many as a frame has (theirs: 144, one frame of 720x1280),
      of all frames and places. Their automatic scaling of the rate by the pixels of a step is then 1.

    Recipe, from the flags: their loss, Adam, gradients clipped, a ramp over a tenth of the training, cosine. On CUDA
    the network runs in fp16, as in their README, on the CPU in fp32. Unseen frames are decoded at their own time.
    """

    files = ("hinerv_main.py", "hinerv_tasks.py", "models/hinerv.py", "cfgs/train/hinerv_1280x720.txt")
    SIZES = {"xxs": 0.75e6, "xs": 1.5e6, "s": 3e6}
    FRAMES = 132
    """Of their Bunny, which the knots of the base grid are given for."""

    def __init__(self, folder: Path, material: Material, store: FrameStore, parameters: int) -> None:
        self._hinerv, *others = import_theirs(folder, "models.hinerv", "utils", "datasets", "hinerv_tasks")
        self.device, scene = store.device, material.scene
        self.size = (scene.frames, scene.height, scene.width)
        size = min(self.SIZES, key=lambda name: abs(math.log(self.SIZES[name] / parameters)))
        self.args = args = self._flags(folder, size, others)
        strides = [first_stride(*self.size[1:], math.prod(args.scales_hw[1:])), *args.scales_hw[1:]]
        base = [max(2, round(args.base_grid_size[0] * scene.frames / self.FRAMES)), *args.base_grid_size[1:]]

        def build(width: int) -> nn.Module:
            scaled = {"scales_hw": strides, "base_grid_size": [*base], "channels": width}  # they change the list
            flags = argparse.Namespace(**{**vars(args), **scaled})
            return self._hinerv.build_model(flags, SILENT, {"video_size": self.size})

        width = closest_width(lambda width: _numbers(build(width)), parameters)
        self.model = build(width).to(self.device)
        self.parameters, self.steps_per_epoch = _numbers(self.model), len(scene.train)
        cells = math.prod(strides)
        self.patch = tuple(_patch_side(side, cells, args.patch_size[1]) for side in self.size[1:])
        counts = (scene.frames, scene.height // self.patch[0], scene.width // self.patch[1])
        self.per_step = counts[1] * counts[2]
        # Patches of the training frames as uint8, and their places (t, y, x), in the same order.
        self._patches = _in_patches(material.video.frames[list(scene.train)], *self.patch).to(self.device)
        places = itertools.product(scene.train, range(counts[1]), range(counts[2]))
        self._places = torch.tensor(list(places), device=self.device)
        geometry = {"num_patches": counts, "video_size": self.size, "patch_size": (1, *self.patch)}
        self._loader = SimpleNamespace(dataset=SimpleNamespace(**geometry))
        self._task = others[-1].VideoRegressionTask(args, SILENT, None, "")
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=args.lr)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.device.type == "cuda")
        grid = [base[0], scene.height // cells, scene.width // cells, base[3]]
        self.layout = (
            f"HiNeRV {size.upper()}, width {width} divided by {args.channels_reduce:g} per stage, strides {strides}, "
            f"depths {args.depths}, expansions {args.exps}, base grid {grid} (t, y, x, channels) in "
            f"{args.base_grid_level} levels, local grids {args.enc_grid_size} (t, channels) in {args.enc_grid_level}, "
            f"{self.per_step} patches of {self.patch} per step"
        )

    def _flags(self, folder: Path, size: str, others: list[ModuleType]) -> argparse.Namespace:
        """Those of their parsers for the published configuration of a size; those of its later stages are left out."""
        parser = argparse.ArgumentParser(allow_abbrev=False)
        parser.add_argument("--epochs", type=int)
        utils, datasets, tasks = others
        for add in (self._hinerv.set_args, utils.set_optimizer_args, datasets.set_dataset_args, tasks.set_task_args):
            add(parser)
        paths = (f"cfgs/models/bunny-hinerv-{size}_1280x720.txt", "cfgs/train/hinerv_1280x720.txt")
        return parser.parse_known_args([word for path in paths for word in (folder / path).read_text().split()])[0]

    def batches(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self._places)).to(self.device)
        return iter(order[: self.steps_per_epoch * self.per_step].split(self.per_step))

    def step(self, batch: Tensor, progress: float) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = hinerv_rate(progress, self.args)
        self.model.train()
        truth = self._patches[batch].unsqueeze(2).float() / 255  # (B, 3, 1, h, w)
        with as_they_run():
            _, _, _, losses, _ = self._task.step(self._forward, self._loader, (self._places[batch], truth))
            loss = losses.mean()
            self._optimizer.zero_grad()
            self._scaler.scale(loss).backward()
            if self.args.max_norm:
                self._scaler.unscale_(self._optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_norm, self.args.norm_type)
            self._scaler.step(self._optimizer)
            self._scaler.update()
        return loss.detach()

    def _forward(self, given: dict[str, object]) -> Tensor:
        with torch.autocast(self.device.type, torch.float16, enabled=self._scaler.is_enabled()):
            return self.model(given).float()

    def refresh(self) -> None:
        self.model.eval()

    def decode(self, positions: Tensor) -> Tensor:
        where = torch.nn.functional.pad(positions[:, None], (0, 2)).to(self.device)
        given = {"idx": where, "idx_max": (self.size[0], 1, 1), "video_size": self.size}
        return self.model(given | {"patch_size": (1, *self.size[1:])}).squeeze(2)


class HNeRVTraining(PublicTraining):
    """haochen-rye/HNeRV with the flags of its README for Bunny: kernels 0_1_5, reduce 1.2, L2, Adam at 0.001.

    Scaled to the frame: of the strides 5 4 4 2 2, those are kept that leave the embedding closest to their 2x4 cells
    of 16 channels (5 4 2 2 at 160x320, all at 640x1280). A step takes one frame, the default of their flags.

    The encoder does not count as parameters, the codes of the training frames do. Unseen frames are decoded from codes
    interpolated between those of the nearest training frames, as in our embedding `encoder`; their own evaluation shows
    them to the encoder.
    """

    files = ("train_nerv_all.py", "model_all.py", "hnerv_utils.py")
    NETWORK = {
        "embed": "",
        "vid": "bunny",
        "enc_dim": "64_16",
        "ks": "0_1_5",
        "num_blks": "1_1",
        "conv_type": ["convnext", "pshuffel"],
        "norm": "none",
        "act": "gelu",
        "reduce": 1.2,
        "lower_width": 12,
        "out_bias": "tanh",
    }
    RECIPE = {"lr": 0.001, "lr_type": "cosine_0.1_1_0.1", "loss": "L2"}

    def __init__(self, folder: Path, material: Material, store: FrameStore, parameters: int) -> None:
        model_all, utils = import_theirs(folder, "model_all", "hnerv_utils")
        self.scene, self.store = material.scene, store
        strides = hnerv_strides(self.scene.height, self.scene.width)
        args = SimpleNamespace(**self.NETWORK, **self.RECIPE, enc_strds=strides, dec_strds=strides)
        cells = self.scene.height * self.scene.width // math.prod(strides) ** 2
        codes = len(self.scene.train) * int(args.enc_dim.split("_")[1]) * cells

        def build(width: int) -> nn.Module:
            args.fc_dim = width
            return model_all.HNeRV(args)

        def count(model: nn.Module) -> int:
            return _numbers(model) - _numbers(model.encoder) + codes

        width = closest_width(lambda width: count(build(width)), parameters)
        self.model = build(width).to(store.device)
        self.parameters = count(self.model)
        self.steps_per_epoch = len(self.scene.train)
        self._step = haochen_step(self.model, args, model_all, utils)
        self._decoder = model_all.HNeRVDecoder(self.model)
        self._train = torch.tensor(self.scene.train)
        self._codes: Tensor | None = None
        encoder = f"encoder of {_numbers(self.model.encoder):,} not counted"
        self.layout = f"HNeRV, width {width}, strides {strides}, {codes:,} numbers of codes, {encoder}"

    def batches(self) -> Iterator[Tensor]:
        return iter(self._train[torch.randperm(len(self._train))].split(1))

    def step(self, batch: Tensor, progress: float) -> Tensor:
        return self._step(self.store.frames(batch).contiguous(), progress)

    @torch.no_grad()
    def refresh(self) -> None:
        with as_they_run():
            frames = (self.store.frames(where).contiguous() for where in self._train.split(FRAMES_AT_ONCE))
            self._codes = torch.cat([self.model.encoder(chunk) for chunk in frames])

    def decode(self, positions: Tensor) -> Tensor:
        last = len(self._train) - 1
        after = torch.searchsorted(self._train, positions).clamp(max=last)
        before = torch.where(self._train[after] > positions, after - 1, after).clamp(min=0)
        gap = (self._train[after] - self._train[before]).clamp(min=1)
        share = ((positions - self._train[before]) / gap).clamp(0, 1).to(self._codes)
        return self._decoder(torch.lerp(self._codes[before], self._codes[after], share.view(-1, 1, 1, 1)))


TRAININGS: dict[str, type[PublicTraining]] = {"hmkx/HiNeRV": HiNeRVTraining, "haochen-rye/HNeRV": HNeRVTraining}


def first_stride(height: int, width: int, later: int) -> int:
    """HiNeRV's stride before others with the product `later`. Raises UserError.

    It is above 1, and the ratio of the cells of the base grid to those at 720x1280, 18x32, is the smallest.
    """
    sides = math.gcd(height, width) // later if height % later == width % later == 0 else 1
    choices = [stride for stride in range(2, sides + 1) if sides % stride == 0]
    if not choices:
        raise UserError(f"HiNeRV cannot divide frames of {height}x{width} by {2 * later}: choose another --scale")
    return min(choices, key=lambda stride: abs(math.log(height * width / (later * stride) ** 2 / (18 * 32))))


def hnerv_strides(height: int, width: int) -> list[int]:
    """Most of HNeRV's strides such that the ratio of the embedding's cells to those at 640x1280, 2x4, is the smallest.

    Raises UserError.
    """
    published = (5, 4, 4, 2, 2)
    some = [c for count in range(len(published), 0, -1) for c in itertools.combinations(published, count)]
    some = [c for c in some if height % math.prod(c) == width % math.prod(c) == 0]
    if not some:
        raise UserError(f"HNeRV cannot divide frames of {height}x{width} by 2, 4 or 5: choose another --scale")
    return list(min(some, key=lambda c: abs(math.log(height * width / math.prod(c) ** 2 / (2 * 4)))))


def hinerv_rate(progress: float, args: argparse.Namespace) -> float:
    """The learning rate of timm's cosine schedule, with the ramp of their flags, at a part in [0, 1] of the training.

    The cosine is that of the full training: at the end of the ramp the rate drops from its peak onto it.
    """
    ramp = args.warmup_epochs / args.epochs
    if progress < ramp:
        return args.warmup_lr + (args.lr - args.warmup_lr) * progress / ramp
    return args.min_lr + (args.lr - args.min_lr) * (1 + math.cos(math.pi * progress)) / 2


def closest_width(numbers: Callable[[int], int], parameters: int) -> int:
    """The width with `numbers` closest to `parameters`; they grow with the width. Raises UserError."""
    if numbers(1) > parameters:
        raise UserError(
            f"--reference needs more than the {parameters:,} parameters of our variant: take a larger --scale"
        )
    low, high = 1, 2
    while numbers(high) <= parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if numbers(middle) <= parameters else (low, middle)
    return min(low, high, key=lambda width: abs(numbers(width) - parameters))


def _numbers(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


def _patch_side(side: int, cells: int, least: int) -> int:
    """The smallest divisor of `side` of at least `least` pixels that is a multiple of `cells`; otherwise `side`."""
    return min((n for n in range(cells, side + 1, cells) if side % n == 0 and n >= least), default=side)


def _in_patches(frames: Tensor, height: int, width: int) -> Tensor:
    """Frames (B, 3, H, W) -> their patches (B x rows x cols, 3, height, width), row by row."""
    patches = frames.unfold(2, height, height).unfold(3, width, width)  # (B, 3, rows, cols, height, width)
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).contiguous()


@torch.no_grad()
def psnr_frames(training: PublicTraining, store: FrameStore, positions: tuple[int, ...]) -> float:
    """Mean psnr_frame of at least one position, measured as for our models."""
    training.refresh()
    values = []
    for where in torch.tensor(positions).split(FRAMES_AT_ONCE):
        values.append(psnr(frame_mse(round8(training.decode(where)), store.frames(where))))
    return torch.cat(values).mean().item()


def public_training(folder: Path, material: Material, store: FrameStore, parameters: int, seed: int) -> PublicTraining:
    """The training of a checkout, with seeded weights. Raises UserError for another checkout."""
    _, kind = recognise(folder, TRAININGS)
    torch.manual_seed(seed)
    return kind(folder, material, store, parameters)


def commit_of(folder: Path) -> str:
    """Commit of a checkout; '' if it is none of git."""
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
