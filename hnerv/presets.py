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


PRESETS: dict[str, dict[str, object]] = {
    "demo": DEMO,
    "bunny-0.35m": _bunny(0.35),
    "bunny-0.75m": _bunny(0.75),
    "bunny-1.5m": _bunny(1.5),
    "bunny-3m": _bunny(3.0),
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
