"""Compare with the published implementations: import their modules from a checkout and build the same network.

Their code is neither copied nor changed. Third-party modules that they import but a training step does not need are
replaced by stand-ins if they are not installed.

B frames per step, P patches per frame, H W frame size, h w patch size (pixels), h0 w0 embedding cells of one canvas.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnerv.config import Config, parse_pe
from hnerv.data.store import Batch
from hnerv.errors import UserError
from hnerv.model import DualHeadHNeRV, Scene

# Readers of videos, tables, codecs, plots, teachers: the step needs none. From timm it needs one initialisation.
OPTIONAL = (
    "imageio", "dahuffman", "pandas", "matplotlib.path", "pytorchvideo.data.encoded_video", "clip", "timm.models.layers"
)  # fmt: skip


class Rival(NamedTuple):
    """Theirs, ready to be timed: `step` is one optimiser step on our batch, `decode` maps no input to 8-bit frames.

    `gmac` is 1e9 multiply-accumulates of one decoded frame, `parameters` counts all that is trained.
    """

    parameters: int
    gmac: float
    step: Callable[[], object]
    decode: Callable[[], Tensor]


class Kind(NamedTuple):
    """A known implementation: its files, our settings for its network, what is fitted to the scene, its builder."""

    files: tuple[str, ...]
    settings: dict[str, object]
    fit: Callable[[Config, Scene, int], dict[str, object]]
    build: Callable[[Path, Config, DualHeadHNeRV, Batch, int], Rival]


def recognise(folder: Path) -> tuple[str, Kind]:
    """Which implementation a checkout holds. Raises UserError."""
    for name, kind in KINDS.items():
        if all((folder / file).is_file() for file in kind.files):
            return name, kind
    raise UserError(f"--reference {folder} is not a checkout of {' or '.join(KINDS)}: pass the folder with its README")


def same_network(kind: Kind, config: Config) -> Config:
    """Ours with the stages, activation, losses and optimiser of theirs; an upsampling RGB head becomes a stage."""
    model = config.model
    strides = (*model.dec_strides, *([model.rgb_stride] if model.rgb_stride > 1 else []))
    common = {"dec_strides": strides, "rgb_stride": 1, "act": "gelu", "clip_loss": "cosine"}
    steps = {"pixel_loss": "L2", "optimizer": "adam", "blend_freq": 0}
    own = {"clip_site": len(strides), "clip_pool": 1} | kind.settings
    return config.replaced(common | steps | own)


def haochen(folder: Path, config: Config, ours: DualHeadHNeRV, batch: Batch, at_once: int) -> Rival:
    """HNeRV of whole frames: their ConvNeXt encoder and their decoder."""
    model_all, utils = import_theirs(folder, "model_all", "hnerv_utils")
    args = _arguments(config, ours.width)
    args.embed, args.enc_strds, args.vid = "", list(config.model.enc_strides), "video"
    args.enc_dim = f"{config.model.enc_width}_{config.model.embed_dim}"
    frames = batch.frames.contiguous()  # as their loader gives them
    model = model_all.HNeRV(args).to(frames.device)
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.0)
    transform = model_all.TransformInput(args)
    seen: list[Tensor] = []

    def step() -> None:
        with as_they_run():
            given, wanted, mask = transform(frames)
            utils.adjust_lr(optimizer, 0.5, args)
            out, _, _ = model(given)
            loss = utils.loss_fn(out * mask, wanted * mask, args.loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(utils.psnr_fn_single(out.detach(), wanted))

    with torch.no_grad():
        codes = model.encoder(frames[:1])
    decoder = model_all.HNeRVDecoder(model)
    decode = _decoding(lambda n: decoder(codes.expand(n, -1, -1, -1)), at_once)
    return Rival(_count(model), _gmac(lambda: decoder(codes)), step, decode)


def alanjy(folder: Path, config: Config, ours: DualHeadHNeRV, batch: Batch, at_once: int) -> Rival:
    """The dual-head network of patches, from positional encodings; a step takes every patch of our batch."""
    model_file, utils = import_theirs(folder / "core", "model_patch_dual", "hnerv_utils")
    scene, grid = ours.scene, ours.scene.grid
    args = _arguments(config, ours.width)
    args.embed, args.clip_dim = f"pe_{config.model.pe}", scene.clip_dim
    args.fc_hw = "_".join(str(side) for side in _cells(config, scene))
    frames, times = batch.frames, batch.times / scene.frames
    places = torch.tensor([grid.coords_of(p) for p in range(grid.patches)], dtype=torch.float32, device=frames.device)
    yx = places / places.new_tensor([grid.rows, grid.cols])
    coords = torch.cat([times[:, None, None].expand(-1, grid.patches, 1), yx.expand(len(times), -1, -1)], -1)
    coords, patches, targets = coords.flatten(0, 1), grid.split(frames).flatten(0, 1).contiguous(), batch.clip
    targets = targets.flatten(0, 1)
    model = model_file.DualHeadHNeRV(args).to(frames.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, weight_decay=0.0)
    seen: list[object] = []

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
            seen.extend((norms, pixel.item(), similarity.item(), total.item()))
            seen.append(utils.psnr_fn_single(rgb.detach(), patches))

    frame = coords[: grid.patches]
    decode = _decoding(lambda n: model(frame.repeat(n, 1))[0], at_once)
    return Rival(_count(model), _gmac(lambda: model(frame)), step, decode)


def alanjy_stem(config: Config, scene: Scene, width: int) -> dict[str, object]:
    """The hidden width at which our two linear layers have the parameters of their one."""
    codes, (_, count) = config.model.embed_dim, parse_pe(config.model.pe)
    cells = math.prod(_cells(config, scene))
    theirs = (6 * count + 1) * width * cells
    hidden = (theirs - (codes + 1) * width - codes * cells) / (6 * count + 1 + codes * cells)
    return {"pe_stem": max(1, round(hidden)), "clip_hidden": 2 * _last_width(config, width)}


def _last_width(config: Config, width: int) -> int:
    from hnerv.model.decoder import stage_widths

    return stage_widths(width, config.model)[-1]


def _cells(config: Config, scene: Scene) -> tuple[int, int]:
    """(h0, w0) of a patch."""
    scale = math.prod(config.model.strides)
    return scene.grid.patch_size[0] // scale, scene.grid.patch_size[1] // scale


def _arguments(config: Config, width: int) -> SimpleNamespace:
    """What both of their constructors and their learning rate read from their command line."""
    model = config.model
    return SimpleNamespace(
        ks=model.ks, num_blks="1_1", conv_type=["convnext", "pshuffel"], norm="none", act="gelu", out_bias="tanh",
        reduce=model.reduce, lower_width=model.lower_width, dec_strds=list(model.dec_strides), fc_dim=width,
        lr=0.001, lr_type="cosine_0.1_1_0.1", loss="L2",
    )  # fmt: skip


def _decoding(forward: Callable[[int], Tensor], frames: int) -> Callable[[], Tensor]:
    """A decode of that many frames to 8 bits, as `hnerv.evaluation.cost.decode_fps` does it with ours."""

    @torch.no_grad()
    def decode() -> Tensor:
        with as_they_run():
            return forward(frames).mul(255).round().to(torch.uint8)

    return decode


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def _gmac(call: Callable[[], object]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 2 / 1e9


def as_they_run() -> contextlib.AbstractContextManager:
    """Their scripts leave cuDNN at torch's TF32 and let it search for algorithms; ours do neither."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True)


def import_theirs(folder: Path, *names: str) -> list[ModuleType]:
    """The modules of these names from `folder`, which leave no trace in sys.modules. Raises UserError."""
    with stand_ins(), _front_of_path(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs to fix
        held = {name: sys.modules.pop(name) for name in names if name in sys.modules}
        try:
            return [importlib.import_module(name) for name in names]
        except ImportError as error:
            raise UserError(f"--reference {folder} cannot be imported ({error}): install its requirements") from error
        finally:
            for name in names:
                sys.modules.pop(name, None)
            sys.modules.update(held)


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Stand-ins for the missing of OPTIONAL while theirs are imported."""
    # Installed or not: theirs set decord's bridge when they are imported, and our reader would get other arrays.
    names = ["decord", *(name for name in OPTIONAL if importlib.util.find_spec(name.split(".")[0]) is None)]
    fakes: dict[str, object] = {}
    for name in names:
        parts = name.split(".")
        fakes |= {".".join(parts[: i + 1]): MagicMock() for i in range(len(parts))}
    if "timm.models.layers" in fakes:
        fakes["timm.models.layers"] = SimpleNamespace(trunc_normal_=nn.init.trunc_normal_, DropPath=nn.Identity)
    held = {name: sys.modules[name] for name in fakes if name in sys.modules}
    sys.modules.update(fakes)
    try:
        yield
    finally:
        for name in fakes:
            del sys.modules[name]
        sys.modules.update(held)


@contextlib.contextmanager
def _front_of_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    # Nothing is written into their checkout.
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = writes


KINDS: dict[str, Kind] = {
    "haochen-rye/HNeRV": Kind(
        ("train_nerv_all.py", "model_all.py", "hnerv_utils.py"),
        {"embedding": "encoder", "clip_weights": "none", "clip_targets": "", "clip_site": 1},
        lambda config, scene, width: {},
        haochen,
    ),
    "AlanjyHuang/HNeRV": Kind(
        ("core/train_patch_dual.py", "core/model_patch_dual.py", "core/hnerv_utils.py"),
        {"embedding": "pe"},
        alanjy_stem,
        alanjy,
    ),
}
