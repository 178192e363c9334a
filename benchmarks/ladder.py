"""Scales of `quality.py`, and the variants that each change one setting of a scale."""

from __future__ import annotations

from hnerv.presets import preset

PROXY: dict[str, object] = {
    **preset("demo"),
    "modelsize": 0.2,
    "epochs": 30,
    "eval_freq": 5,
    "clip_weights": "none",
}


def _full(name: str) -> dict[str, dict[str, object]]:
    """A full-size preset with each split of the published tables."""
    base = {**preset(name), "eval_freq": 25, "clip_weights": "none"}
    return {f"{name}-{split}": {**base, "data_split": split} for split in ("1_1_1", "9_9_10", "1_1_2", "6_6_10")}


SCALES: dict[str, dict[str, object]] = {
    "proxy": PROXY,
    "proxy-1_1_2": {**PROXY, "data_split": "1_1_2"},
    "demo": {**preset("demo"), "clip_weights": "none"},
    **_full("bunny-1.5m"),
    **_full("bunny-3m"),
}
"""Name -> settings that differ from the defaults of `hnerv.config`."""

PUBLISHED: dict[str, object] = {
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
"""How HNeRV and its patch-based descendant with a CLIP head (AlanjyHuang/HNeRV) train, on our layout of the stages."""

LADDER: dict[str, dict[str, object]] = {
    "default": {},
    "pe 1.25": {"embedding": "pe", "pe": "1.25_80"},
    "pe 1.25 without blends": {"embedding": "pe", "pe": "1.25_80", "blend_freq": 0},
    "pe 1.25 as published": {"embedding": "pe", "pe": "1.25_80", **PUBLISHED},
    "pe 1.05": {"embedding": "pe", "pe": "1.05_80"},
    "encoder": {"embedding": "encoder", "clip_loss": "cosine"},
    "encoder as published": {"embedding": "encoder", "clip_loss": "cosine", **PUBLISHED},
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
"""Name -> what it changes of the scale; 'default' is the scale as it is."""

CLIP_LADDER: dict[str, dict[str, object]] = {
    "no CLIP head": {"clip_targets": "", "clip_weights": "none"},
    "CLIP head": {},
    "lambda 0.01": {"clip_loss_weight": 0.01},
    "cosine alone": {"clip_loss": "cosine"},
    "lambda 0.05": {"clip_loss_weight": 0.05},
    "site 2": {"clip_site": 2},
    "one mean a patch": {"clip_pool": 1},
    "ramp": {"clip_ramp_epochs": 10},
}
"""The same with targets, which `--clip-targets` gives."""
