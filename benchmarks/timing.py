"""Shared by the speed benchmarks: a trainer with the CLIP loss on, and timing of alternating calls."""

from __future__ import annotations

import time
from collections.abc import Callable

from quality import new_trainer

from hnerv.config import Config

BLOCK = 10
"""Steps timed together."""
CLIP_DIM = 512


def trainer_of(config: Config, device, folder: str):
    """A Trainer whose CLIP loss is on from the first step."""
    from hnerv.data.store import FrameStore

    config = config.replaced({"pixel_loss_warmup_epochs": 0, "clip_ramp_epochs": 0, "params_freq": 1})
    material = material_of(config, device)
    return new_trainer(config, material.scene, FrameStore(material, device), folder)


def material_of(config: Config, device):
    """What `hnerv.data.store.load_material` gives, random vectors in the place of a teacher's."""
    import dataclasses

    import torch
    import torch.nn.functional as F

    from hnerv.data.clip import Targets
    from hnerv.data.store import load_material

    if config.clip.clip_weights == "none" or config.clip.clip_targets:
        return load_material(config, device)
    material = load_material(config.replaced({"clip_weights": "none"}), device)
    scene = material.scene
    draw = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(scene.frames, scene.grid.patches, CLIP_DIM, generator=draw), dim=-1)
    targets = Targets(vectors, "random vectors", "random", "", "random vectors")
    return material._replace(targets=targets, scene=dataclasses.replace(scene, clip_dim=CLIP_DIM))


def advance(trainer, count: int) -> int:
    """The next `count` steps as `fit` runs them, over the ends of epochs -> training frames in them."""
    sizes, frames = trainer.batches.sizes.tolist(), 0
    for _ in range(count):
        trainer.step_in_epoch %= trainer.steps_per_epoch
        if trainer.step_in_epoch == 0:
            trainer.times.clear()
            trainer.begin_epoch()
        frames += sizes[trainer.step_in_epoch]
        trainer.advance()
    return frames


def warm_up(trainer) -> None:
    """Where steps are captured: until each kind of step is. The rarest, the last of an epoch, comes once in each."""
    if trainer.captures:
        advance(trainer, 3 * trainer.steps_per_epoch)


def seconds_of(call: Callable[[], object], device) -> float:
    """Wall time of a call, all of its work on the device included."""
    import torch

    sync = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    sync(device)
    start = time.perf_counter()
    call()
    sync(device)
    return time.perf_counter() - start


def alternating(calls: dict[str, Callable[[], object]], rounds: int, device) -> dict[str, list[float]]:
    """Seconds of each call, in turns so that a machine that slows down slows all; one turn first is not counted."""
    turns = [{name: seconds_of(call, device) for name, call in calls.items()} for _ in range(rounds + 1)]
    return {name: [turn[name] for turn in turns[1:]] for name in calls}


def repeated(call: Callable[..., object], *args: object, times: int = BLOCK) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            call(*args)

    return run
