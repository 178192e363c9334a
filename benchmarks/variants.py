"""The variants of model and recipe that `quality.py` trains, as settings that differ from the defaults."""

from __future__ import annotations

from hnerv.presets import preset

Settings = dict[str, object]
NO_CLIP: Settings = {"clip_weights": "none"}
PROXY: Settings = {**preset("demo"), "modelsize": 0.2, "epochs": 30, "eval_freq": 5, **NO_CLIP}
SCALES: dict[str, Settings] = {
    "proxy": PROXY,
    **{f"proxy-{split}": {**PROXY, "data_split": split} for split in ("1_1_2", "6_6_10")},
    "demo": {**preset("demo"), **NO_CLIP},
    **{
        f"{name}-{split}": {**preset(name), "eval_freq": 25, **NO_CLIP, "data_split": split}
        for name in ("bunny-1.5m", "bunny-1.5m-fast", "bunny-3m")
        for split in ("1_1_1", "9_9_10", "1_1_2", "6_6_10")  # those of the published tables
    },
}
"""Name -> settings that differ from the defaults of `hnerv.config`."""

PE: Settings = {"embedding": "pe", "pe": "1.25_80"}
ENCODER: Settings = {"embedding": "encoder", "clip_loss": "cosine"}
PUBLISHED: Settings = {
    "act": "gelu",
    "bilinear_init": False,
    "optimizer": "adam",
    "lr": 0.001,
    "lr_type": "cosine_0.1_1_0.1",
    "batch_size": 1,
    "pixel_loss": "Fusion6",
    "blend_freq": 0,
    "grad_clip": 0.0,
}
"""The recipe of HNeRV and of its patch-based fork with a CLIP head (AlanjyHuang/HNeRV), on our layout of the stages."""

_OF_A_SCALE = ("data", "crop", "resize", "modelsize", "epochs", "eval_freq")
CONVNEXT: Settings = {name: value for name, value in preset("demo-small").items() if name not in _OF_A_SCALE}
"""The decoder and the recipe of demo-small, for frames of 160x320."""

LADDER: dict[str, Settings] = {
    "default": {},
    "convnext": CONVNEXT,
    "convnext with L2": {**CONVNEXT, "pixel_loss": "L2"},
    "convnext without blends": {**CONVNEXT, "blend_freq": 0},
    "convnext with L2 without blends": {**CONVNEXT, "pixel_loss": "L2", "blend_freq": 0},
    "convnext with EMA": {**CONVNEXT, "ema_decay": 0.999},
    "pe 1.25": PE,
    "pe 1.25 without blends": {**PE, "blend_freq": 0},
    "pe 1.25 as published": {**PE, **PUBLISHED},
    "pe 1.05": {"embedding": "pe", "pe": "1.05_80"},
    "encoder": ENCODER,
    "encoder as published": {**ENCODER, **PUBLISHED},
    "gelu": {"act": "gelu"},
    "no bilinear init": {"bilinear_init": False},
    "adam": {"optimizer": "adam"},
    "frequency loss": {"pixel_loss": "Fusion10_freq"},
    "L1": {"pixel_loss": "L1"},
    "codes at the same rate": {"embed_lr_factor": 1.0},
    "codes at 10 x the rate": {"embed_lr_factor": 10.0},
    "one frame a step": {"batch_size": 1},
    "four frames a step": {"batch_size": 4},
    "lr 0.004": {"lr": 0.004},
    "no blends": {"blend_freq": 0},
    "blends in every second step": {"blend_freq": 2},
    "bf16": {"precision": "bf16"},
}
"""Variant -> the settings that it changes."""

CLIP_LADDER: dict[str, Settings] = {
    "no CLIP head": {"clip_targets": "", **NO_CLIP},
    "CLIP head": {},
    "lambda 0.01": {"clip_loss_weight": 0.01},
    "cosine alone": {"clip_loss": "cosine"},
    "lambda 0.05": {"clip_loss_weight": 0.05},
    "site 2": {"clip_site": 2},
    "one mean a patch": {"clip_pool": 1},
    "ramp": {"clip_ramp_epochs": 10},
}
"""Variants for --clip-targets."""

FRONTIER: dict[str, Settings] = {
    f"{decoder} {size}M": {**changes, "modelsize": size}
    for decoder, changes in (("hnerv", {}), ("convnext", CONVNEXT))
    for size in (0.1, 0.2, 0.4)
}
"""Variants for --frontier."""
