"""What a run says of itself: the record in config.json and checkpoints, the lines at its start, its text page."""

from __future__ import annotations

import torch

from hnerv import __version__
from hnerv.config import Config
from hnerv.dataset import Material, targets_label
from hnerv.evaluation.cost import estimated_rate
from hnerv.model import DualHeadHNeRV, Scene, coded_parameters


def run_record(preset: str, config: Config, material: Material, model: DualHeadHNeRV) -> dict:
    """What identifies a run, as a plain dictionary: preset, configuration, video, scene, targets, size."""
    return {
        "hnerv": __version__,
        "preset": preset,
        "config": config.to_dict(),
        **material.describe(),
        "model": {"width": model.width, "coded_parameters": coded_parameters(model)},
    }


def announce(record: dict, device: torch.device) -> str:
    """The lines printed at the start: what was chosen, and what it is made of."""
    scene, video, model = record["scene"], record["video"], record["model"]
    top, left, height, width, *size = video["crop"]
    parts = model["coded_parameters"]
    total = sum(parts.values())
    held_out = f"{len(scene['val'])} unseen" if scene["val"] else "no unseen frame, so no validation"
    return "\n".join(
        (
            f"preset   {record['preset'] or 'none'}; device {device}",
            f"video    {video['source']} ({video['reader']}), crop {height}x{width} at {top},{left}"
            f" -> {size[0]}x{size[1]}, grid {scene['rows']}x{scene['cols']}",
            f"frames   {scene['frames']}: {len(scene['train'])} for training, {held_out}",
            f"targets  {targets_label(record)}",
            f"model    {record['config']['model']['embedding']}, width {model['width']}, {total:,} coded parameters: "
            + ", ".join(f"{name} {count:,}" for name, count in parts.items()),
            f"rate     {estimated_rate(total, Scene.from_dict(scene)):.4f} bpp, an estimate at 8 bits per parameter",
        )
    )


def text_page(record: dict) -> str:
    """The record as Markdown, for TensorBoard."""
    sections = [f"**{targets_label(record)}**"]
    for name, knobs in record["config"].items():
        rows = "\n".join(f"| {key} | {value} |" for key, value in knobs.items())
        sections.append(f"### {name}\n\n| setting | value |\n|---|---|\n{rows}")
    return "\n\n".join(sections)
