"""Descriptions of a run: the lines printed at its start, its TensorBoard pages, hyperparameters and graph."""

from __future__ import annotations

import dataclasses
import platform
import shlex
from pathlib import Path

import torch
from torch import Tensor, nn

from hnerv.evaluation import estimated_rate
from hnerv.files import read_json
from hnerv.model import DualHeadHNeRV
from hnerv.model.decoder import stage_widths
from hnerv.runs.record import RunRecord
from hnerv.tracking import NullLogger


def announce(record: RunRecord, device: torch.device) -> str:
    """The lines printed at the start: preset, video, frames, targets, model and estimated rate."""
    scene, video, crop, total = record.scene, record.video, record.video.crop, record.parameters
    model = record.config.model
    widths = " ".join(map(str, stage_widths(record.width, model)))
    held_out = f"{len(scene.val)} unseen" if scene.val else "none unseen"
    return "\n".join(
        (
            f"preset   {record.preset or 'none'}; device {device}",
            f"video    {video.source} ({video.reader}), crop {crop.height}x{crop.width} at {crop.top},{crop.left}"
            f" -> {crop.out_height}x{crop.out_width}, grid {scene.rows}x{scene.cols}",
            f"frames   {scene.frames}: {len(scene.train)} for training, {held_out}",
            f"targets  {record.targets_label}",
            f"model    {model.embedding}, {model.decoder}, widths {widths}, {total:,} coded parameters: "
            + ", ".join(f"{name} {count:,}" for name, count in record.coded_parameters.items()),
            f"rate     {_rate(record)}",
            *_untrained_head(record),
            *_emulated_precision(record, device),
        )
    )


def _rate(record: RunRecord) -> str:
    loss = record.config.loss
    if loss.target_bpp:
        return f"steered to {loss.target_bpp:g} bpp"
    if loss.rate_weight:
        return f"part of the objective, with weight {loss.rate_weight:g}"
    return f"{estimated_rate(record.parameters, record.scene):.4f} bpp, estimated at 8 bits per parameter"


def _untrained_head(record: RunRecord) -> list[str]:
    epochs, warmup = record.config.train.epochs, record.config.loss.pixel_loss_warmup_epochs
    if not record.targets or epochs > warmup:
        return []
    return [f"warm-up  covers all {epochs} epochs: the CLIP head is not trained (--pixel-loss-warmup-epochs {warmup})"]


def _emulated_precision(record: RunRecord, device: torch.device) -> list[str]:
    native = platform.machine().lower() not in ("x86_64", "amd64") or torch.cpu._is_avx512_bf16_supported()
    if native or device.type != "cpu" or not record.config.train.in_bf16(device.type):
        return []
    return ["bf16     is emulated on this processor, and slower than fp32: pass --precision fp32"]


def log_start(logger: NullLogger, model: DualHeadHNeRV, record: RunRecord, folder: Path, graph: bool) -> None:
    """Log the text pages, layout, hyperparameters and graph, unless an earlier start of the run has."""
    if not (logger.fresh and logger.shows):
        return
    logger.text("Model/Info/run", text_page(record), 0)
    logger.text("Model/Info/targets", targets_page(record), 0)
    environments = folder / "environment.json"
    if environments.is_file():
        logger.text("Model/Info/environment", environment_page(read_json(environments)[-1]), 0)
    logger.layout()
    logger.hparams(hyperparameters(record), compared_tags(record))
    if graph:
        log_graph(logger, model)


def hyperparameters(record: RunRecord) -> dict[str, object]:
    """Settings and size of a run as numbers and words, for the HParams table of TensorBoard."""
    flat = {
        key: " ".join(map(str, value)) if isinstance(value, tuple) else value
        for key, value in record.config.flat().items()
    }
    return flat | {"preset": record.preset, "coded_parameters": record.parameters}


def compared_tags(record: RunRecord) -> list[str]:
    """The tags that compare the run with others, limited to those that it will log."""
    splits = ["train", "val"] if record.scene.val else ["train"]
    quantities = ["psnr_frame", "psnr", "ms_ssim"] + ["clip_sim"] * bool(record.targets)
    return [f"Eval/Frame/{split}_{quantity}" for split in splits for quantity in quantities]


def log_graph(logger: NullLogger, model: DualHeadHNeRV) -> None:
    """One frame, from its time to its pixels and embeddings."""

    class Traced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, times: Tensor) -> tuple[Tensor, ...]:
            return tuple(output for output in self.model(times) if output is not None)

    was_training = model.training
    with torch.no_grad():
        logger.graph(Traced().eval(), torch.zeros(1, device=next(model.parameters()).device))
    model.train(was_training)


def environment_page(environment: dict) -> str:
    """One start of a run as Markdown."""
    rows = [f"| {key} | {value} |" for key, value in environment.items() if key != "command"]
    return f"```\n{command_line(environment['command'])}\n```\n\n| | |\n|---|---|\n" + "\n".join(rows)


def command_line(words: list[str]) -> str:
    """The command of environment.json as a shell takes it."""
    script = words[0].endswith(".py") if words else False
    return shlex.join(["python"] * script + words)


def targets_page(record: RunRecord) -> str:
    """The targets of the CLIP head and the meaning of its numbers, as Markdown."""
    targets = record.targets
    if not targets:
        return "No CLIP head: the run has no targets."
    rows = [f"| {key} | {value} |" for key, value in dataclasses.asdict(targets).items()]
    warning = (
        "**NOT CLIP**: the targets come from a random encoder and have no meaning; no number based on them is a CLIP "
        "number.\n\n"
    )
    return warning * (targets.kind == "random") + "| | |\n|---|---|\n" + "\n".join(rows)


def text_page(record: RunRecord) -> str:
    """The record as Markdown, for TensorBoard."""
    sections = [f"**{record.targets_label}**"]
    for name, knobs in record.config.to_dict().items():
        rows = "\n".join(f"| {key} | {value} |" for key, value in knobs.items())
        sections.append(f"### {name}\n\n| setting | value |\n|---|---|\n{rows}")
    return "\n\n".join(sections)
