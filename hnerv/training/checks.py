"""What would fail only after a run had written something is refused here, before."""

from __future__ import annotations

import importlib.util

from hnerv.config import Config, LogConfig
from hnerv.errors import UserError
from hnerv.metrics import SSIM_WINDOW, ms_ssim_scales
from hnerv.model import Scene

MAX_SEED = 1 << 32


def check_settings(config: Config, log: LogConfig | None = None) -> None:
    """Raises UserError for a seed out of range, --unseen encode without encoder, a missing logger."""
    if config.train.seed >= MAX_SEED:
        raise UserError(f"--seed {config.train.seed} must be below {MAX_SEED}: choose a smaller one")
    if config.model.unseen == "encode" and config.model.embedding != "encoder":
        raise UserError(
            f"--unseen encode requires --embedding encoder, not {config.model.embedding}: change one of them"
        )
    if log and log.report_to == "wandb" and importlib.util.find_spec("wandb") is None:
        raise UserError("--report-to wandb needs wandb, which is not installed: pip install wandb, or remove the flag")


def check_scene(scene: Scene) -> None:
    """Raises UserError for frames on which MS-SSIM, and so every evaluation, is not defined."""
    if not ms_ssim_scales(scene.height, scene.width):
        raise UserError(
            f"frames of {scene.height}x{scene.width} are too small for MS-SSIM, which needs "
            f"{SSIM_WINDOW}x{SSIM_WINDOW} pixels: choose a larger --crop or --resize"
        )
