"""Presets: one table of the settings that each changes from the defaults in `hnerv.config`."""

from __future__ import annotations

from typing import NamedTuple

from hnerv.config import Config
from hnerv.errors import UserError

DEMO: dict[str, object] = {
    "data": "bunny",
    "crop": "640x1280",
    "resize": "160x320",
    "modelsize": 0.6,
    "dec_strides": (2, 5),
    "rgb_stride": 4,
    "enc_strides": (2, 5, 2, 2),
    "ks": "0_3_3",
    "embed_dim": 32,
    "clip_site": 1,
    "clip_pool": 2,
    "clip_hidden": 36,
    "clip_loss": "motion",
    "clip_loss_weight": 0.001,
    "lr": 0.008,
    "epochs": 70,
    "pixel_loss_warmup_epochs": 10,
    "eval_freq": 35,
    "checkpoint_freq": 2,
}

DEMO_SMALL: dict[str, object] = {
    **{key: DEMO[key] for key in ("data", "crop", "resize", "clip_loss", "clip_loss_weight", "lr", "clip_site")},
    "decoder": "convnext",
    "modelsize": 0.24,
    "dec_strides": (1, 2),
    "dec_depths": (4,),
    "rgb_stride": 4,
    "enc_strides": (2, 2, 2),
    "ks": "0_3_3",
    "reduce": 1.5,
    "act": "gelu",
    "embed_dim": 2,
    "grid_levels": 2,
    "grid_knots": 40,
    "pixel_loss": "L1_freq",
    "clip_hidden": 16,
    "batch_size": 1,
    "blend_freq": 2,
    "precision": "bf16",
    "epochs": 250,
    "pixel_loss_warmup_epochs": 100,
    "eval_freq": 50,
    "checkpoint_freq": 5,
}

DEMO_CODEC: dict[str, object] = {
    **DEMO_SMALL,
    "data_split": "1_1_1",
    "reduce": 1.0,
    "rate_weight": 0.002,
    "epochs": 200,
    "pixel_loss_warmup_epochs": 80,
}
"""Channels do not fall from stage to stage: the rate prunes what the first stage does not need."""


def _bunny(modelsize: float) -> dict[str, object]:
    return {
        "data": "bunny",
        "crop": "640x1280",
        "modelsize": modelsize,
        "width_multiple": 8,
        "epochs": 300,
        "eval_freq": 100,
        "checkpoint_seconds": 10.0,
    }


def _bunny_convnext(modelsize: float, embed_dim: int) -> dict[str, object]:
    """Base grids of 20x40 cells, with an eighth to a sixth of the parameters."""
    return {
        **_bunny(modelsize),
        "decoder": "convnext",
        "dec_strides": (2, 2, 2),
        "dec_depths": (4,),
        "rgb_stride": 4,
        "enc_strides": (2, 2, 2, 4),
        "ks": "0_3_3",
        "reduce": 1.5,
        "act": "gelu",
        "embed_dim": embed_dim,
        "grid_levels": 2,
        "grid_knots": 50,
        "clip_site": 1,
        "pixel_loss": "L1_freq",
        "batch_size": 1,
        "blend_freq": 2,
        "lr": 0.006,
    }


# Full frames, as in the tables of HiNeRV, NVRC and C3. Patches of 540x480 pixels allow strides that divide 60 after the
# stage of the CLIP head: 3 here, 4 in the RGB head. HNeRV's crop fits too (--crop 960x1920). 75 knots are 8 of the 600
# frames apart, less time than those of Bunny, and the grids of 45x80 cells take a seventh of the parameters.
UVG: dict[str, object] = {
    **_bunny_convnext(3.0, 2),
    "data": "Beauty_1920x1080_120fps_420_8bit_YUV.yuv",
    "crop": "1080x1920",
    "data_split": "1_1_1",
    "dec_strides": (1, 2, 3),
    "enc_strides": (2, 3, 4),
    "grid_knots": 75,
    "clip_site": 2,
    "blend_freq": 0,
}

# 0.24 L / R: the slope of a curve that gains 1.44 dB per doubling of the rate, as HiNeRV's published one on UVG, where
# R = 0.012 bpp and L1_freq of 1080p is L = 0.0022. An estimate; not trained.
UVG_CODEC: dict[str, object] = {**UVG, "reduce": 1.0, "rate_weight": 0.04}

PRESETS: dict[str, dict[str, object]] = {
    "demo": DEMO,
    "demo-small": DEMO_SMALL,
    "demo-codec": DEMO_CODEC,
    "bunny-0.35m": _bunny_convnext(0.35, 2),
    "bunny-0.75m": _bunny_convnext(0.75, 4),
    "bunny-1.5m": _bunny_convnext(1.5, 8),
    "bunny-3m": _bunny_convnext(3.0, 12),
    "bunny-1.5m-codec": {**_bunny_convnext(1.5, 8), "data_split": "1_1_1", "reduce": 1.0, "rate_weight": 0.006},
    "bunny-0.35m-fast": _bunny(0.35),
    "bunny-0.75m-fast": _bunny(0.75),
    "bunny-1.5m-fast": _bunny(1.5),
    "bunny-3m-fast": _bunny(3.0),
    "uvg": UVG,
    "uvg-codec": UVG_CODEC,
}


def preset(name: str) -> dict[str, object]:
    """Settings of a preset, {field: value}. Raises UserError naming the presets."""
    if name not in PRESETS:
        raise UserError(f"--preset {name!r} does not exist: choose from {', '.join(PRESETS)}")
    return PRESETS[name]


class Choice(NamedTuple):
    """The chosen settings: name of the preset ('' for none), its configuration `base`, and `config` with all flags."""

    preset: str
    base: Config
    config: Config

    @classmethod
    def of(cls, name: str, settings: dict[str, object]) -> Choice:
        """Defaults, changed by the preset `name`, changed by `settings`, {field: value}. Raises UserError."""
        base = Config().replaced(preset(name)) if name else Config()
        return cls(name, base, base.replaced(settings))
