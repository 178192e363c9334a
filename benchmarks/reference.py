"""Published implementations, imported from a checkout; for speed.py those of HNeRV, with the same network as ours.

Their code is neither copied nor changed. Third-party modules that they import but a training step does not need are
replaced by mocks if they are not installed.

B frames per step, P patches per frame, H W frame size, h w patch size (pixels), h0 w0 embedding cells of one canvas.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple, Protocol, TypeVar
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hnerv.config import Config, parse_pe
from hnerv.data.store import Batch
from hnerv.errors import UserError
from hnerv.model import DualHeadHNeRV, Scene
from hnerv.model.decoder import stage_widths

OPTIONAL = ["matplotlib.path", "pytorchvideo.data.encoded_video", "clip", "accelerate", "yaml"]
OPTIONAL += ["timm.optim", "timm.scheduler"]
"""Plots, readers of videos, CLIP, launchers, optimisers. Also mocked, except for one initialisation: timm."""
TIMM = "timm.models.layers"


class HasFiles(Protocol):
    """An implementation that is recognised by these files of its checkout."""

    files: tuple[str, ...]


Known = TypeVar("Known", bound=HasFiles)


class Reference(NamedTuple):
    """A model to be timed: `step` is one optimiser step on our batch, `decode` returns 8-bit frames.

    `gmac` is 1e9 multiply-accumulates of one decoded frame, `parameters` counts all trained ones.
    """

    parameters: int
    gmac: float
    step: Callable[[], object]
    decode: Callable[[], Tensor]


class Kind(NamedTuple):
    """A known implementation: its files, our settings for its network, settings that depend on the scene, its builder.

    `build(folder, config, our model, batch, frames at once)`.
    """

    files: tuple[str, ...]
    settings: dict[str, object]
    fit: Callable[[Config, Scene, int], dict[str, object]]
    build: Callable[[Path, Config, DualHeadHNeRV, Batch, int], Reference]


def recognise(folder: Path, kinds: Mapping[str, Known]) -> tuple[str, Known]:
    """Name and kind of the implementation in a checkout. Raises UserError."""
    for name, kind in kinds.items():
        if all((folder / file).is_file() for file in kind.files):
            return name, kind
    raise UserError(f"--reference {folder} is not a checkout of {' or '.join(kinds)}: pass the folder with its README")


def same_network(kind: Kind, config: Config) -> Config:
    """Our configuration with their stages, activation, losses and optimiser. An upsampling RGB head becomes a stage."""
    model = config.model
    strides = (*model.dec_strides, *([model.rgb_stride] if model.rgb_stride > 1 else []))
    network = {"decoder": "hnerv", "dec_strides": strides, "dec_depths": (1,), "rgb_stride": 1}
    network |= {"act": "gelu", "clip_site": len(strides), "clip_pool": 1}
    steps = {"clip_loss": "cosine", "pixel_loss": "L2", "optimizer": "adam", "blend_freq": 0}
    return config.replaced(network | steps | kind.settings)


def build_haochen(folder: Path, config: Config, ours: DualHeadHNeRV, batch: Batch, at_once: int) -> Reference:
    """HNeRV of full frames: their ConvNeXt encoder and their decoder."""
    model_all, utils = import_theirs(folder, "model_all", "hnerv_utils")
    args = _arguments(config, ours.width)
    args.embed, args.enc_strds, args.vid = "", list(config.model.enc_strides), "video"
    args.enc_dim = f"{config.model.enc_width}_{config.model.embed_dim}"
    frames = batch.frames.contiguous()  # (B, 3, H, W), as their loader returns them
    model = model_all.HNeRV(args).to(frames.device)
    step = haochen_step(model, args, model_all, utils)
    with torch.no_grad():
        codes = model.encoder(frames[:1])
    decoder = model_all.HNeRVDecoder(model)
    return _reference(model, lambda: step(frames, 0.5), lambda n: decoder(codes.expand(n, -1, -1, -1)), at_once)


def haochen_step(
    model: nn.Module, args: SimpleNamespace, model_all: ModuleType, utils: ModuleType
) -> Callable[[Tensor, float], Tensor]:
    """A step of their loop: frames (B, 3, H, W) in [0, 1], part of the training done in [0, 1) -> the loss."""
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.0)
    transform = model_all.TransformInput(args)
    kept: list[Tensor] = []

    def step(frames: Tensor, progress: float) -> Tensor:
        with as_they_run():
            given, truth, mask = transform(frames)
            utils.adjust_lr(optimizer, progress, args)
            out, _, _ = model(given)
            loss = utils.loss_fn(out * mask, truth * mask, args.loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            kept.append(utils.psnr_fn_single(out.detach(), truth))
        return loss.detach()

    return step


def build_alanjy(folder: Path, config: Config, ours: DualHeadHNeRV, batch: Batch, at_once: int) -> Reference:
    """The dual-head network of patches with positional encodings. A step takes all B P patches of our batch."""
    model_file, utils = import_theirs(folder / "core", "model_patch_dual", "hnerv_utils")
    scene, grid = ours.scene, ours.scene.grid
    args = _arguments(config, ours.width)
    args.embed, args.clip_dim = f"pe_{config.model.pe}", scene.clip_dim
    args.fc_hw = "_".join(str(side) for side in _cells(config, scene))
    frames, times = batch.frames, batch.times / scene.frames
    # Their input is (t, y, x), each in [0, 1): (B, P, 3) -> (B P, 3).
    cells = torch.tensor([grid.coords_of(p) for p in range(grid.patches)], dtype=torch.float32, device=frames.device)
    yx = (cells / cells.new_tensor([grid.rows, grid.cols])).expand(len(times), -1, -1)
    coords = torch.cat([times[:, None, None].expand(-1, grid.patches, 1), yx], -1).flatten(0, 1)
    patches, targets = grid.split(frames).flatten(0, 1).contiguous(), batch.clip.flatten(0, 1)
    model = model_file.DualHeadHNeRV(args).to(frames.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, weight_decay=0.0)
    kept: list[object] = []

    def step() -> None:
        with as_they_run():
            utils.adjust_lr(optimizer, 0.5, args)
            rgb, clip, _, _ = model(coords)
            pixel = utils.loss_fn(rgb, patches, args.loss)
            similarity = (1 - F.cosine_similarity(clip, targets, dim=-1)).mean()
            total = pixel + config.loss.clip_loss_weight * similarity
            optimizer.zero_grad()
            total.backward()
            # Their loop reads the norm of every gradient and every loss from the device, in every step.
            norms = {name: p.grad.data.norm(2).item() for name, p in model.named_parameters() if p.grad is not None}
            optimizer.step()
            kept.extend((norms, pixel.item(), similarity.item(), total.item()))
            kept.append(utils.psnr_fn_single(rgb.detach(), patches))

    frame = coords[: grid.patches]
    return _reference(model, step, lambda n: model(frame.repeat(n, 1))[0], at_once)


def fit_alanjy(config: Config, scene: Scene, width: int) -> dict[str, object]:
    """Settings that give both networks the same parameters.

    Their stem is one linear layer from the positional encoding (E = 6 x frequencies numbers) to width x h0 w0; ours is
    two with a hidden layer of s units, to codes x h0 w0, and a 1x1 convolution to the width:
    (E + 1) width h0 w0 = (E + 1) s + (s + 1) codes h0 w0 + (codes + 1) width, solved for s.
    """
    codes, encoding = config.model.embed_dim, 6 * parse_pe(config.model.pe)[1]
    cells = math.prod(_cells(config, scene))
    hidden = ((encoding + 1) * width * cells - (codes + 1) * width - codes * cells) / (encoding + 1 + codes * cells)
    return {"pe_stem": max(1, round(hidden)), "clip_hidden": 2 * stage_widths(width, config.model)[-1]}


def _cells(config: Config, scene: Scene) -> tuple[int, int]:
    """(h0, w0) of a patch."""
    scale = math.prod(config.model.strides)
    return scene.grid.patch_size[0] // scale, scene.grid.patch_size[1] // scale


def _arguments(config: Config, width: int) -> SimpleNamespace:
    """The flags that both constructors and learning rates read."""
    model = config.model
    network = {"ks": model.ks, "num_blks": "1_1", "conv_type": ["convnext", "pshuffel"], "norm": "none", "act": "gelu"}
    widths = {"reduce": model.reduce, "lower_width": model.lower_width, "fc_dim": width, "out_bias": "tanh"}
    steps = {"lr": 0.001, "lr_type": "cosine_0.1_1_0.1", "loss": "L2", "dec_strds": list(model.dec_strides)}
    return SimpleNamespace(**network, **widths, **steps)


def _reference(model: nn.Module, step: Callable, forward: Callable[[int], Tensor], at_once: int) -> Reference:
    """`forward(n)` decodes n frames to [0, 1]; `decode` rounds to 8 bits as `hnerv.evaluation.cost.decode_fps` does."""

    @torch.no_grad()
    def decode() -> Tensor:
        with as_they_run():
            return forward(at_once).mul(255).round().to(torch.uint8)

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward(1)
    return Reference(sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2 / 1e9, step, decode)


def as_they_run() -> contextlib.AbstractContextManager:
    """Their scripts leave cuDNN at torch's TF32 and let it search for algorithms; ours do neither."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True)


def import_theirs(folder: Path, *names: str) -> list[ModuleType]:
    """Modules of `folder`. Neither these nor mocks stay in sys.modules, and no file is written. Raises UserError."""
    mocks: dict[str, object] = {}
    # decord is mocked even if it is installed: they set its bridge, and our reader would get other arrays.
    for name in ("decord", *(n for n in (*OPTIONAL, TIMM) if importlib.util.find_spec(n.split(".")[0]) is None)):
        parts = name.split(".")
        mocks |= {".".join(parts[: i + 1]): MagicMock() for i in range(len(parts))}
    if TIMM in mocks:
        mocks[TIMM] = SimpleNamespace(trunc_normal_=nn.init.trunc_normal_, DropPath=nn.Identity)
    # Names such as `utils` may be those of other modules as well.
    own = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}

    def replaced() -> list[str]:
        return [name for name in sys.modules if name in mocks or name.partition(".")[0] in own]

    held = {name: sys.modules.pop(name) for name in replaced()}
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.modules.update(mocks)
    sys.path.insert(0, str(folder))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise UserError(f"--reference {folder} cannot be imported ({error}): install its requirements") from error
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = writes
        for name in replaced():
            del sys.modules[name]
        sys.modules.update(held)


KINDS: dict[str, Kind] = {
    "haochen-rye/HNeRV": Kind(
        ("train_nerv_all.py", "model_all.py", "hnerv_utils.py"),
        {"embedding": "encoder", "clip_weights": "none", "clip_targets": "", "clip_site": 1, "rate_weight": 0.0},
        lambda config, scene, width: {},
        build_haochen,
    ),
    "AlanjyHuang/HNeRV": Kind(
        ("core/train_patch_dual.py", "core/model_patch_dual.py", "core/hnerv_utils.py"),
        {"embedding": "pe"},
        fit_alanjy,
        build_alanjy,
    ),
}
