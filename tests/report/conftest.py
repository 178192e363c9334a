"""Results of a run as plain numbers, without a folder behind them; and run folders."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hnerv.evaluation import cost
from hnerv.report.results import EmbeddingScores, Measurement, RunResults
from hnerv.runs.record import TargetsRecord, read_record

HEALTHY_VALUES = {
    "Eval/Frame/train_psnr": 33.0,
    "Eval/Frame/val_psnr": 32.0,
    "Eval/Frame/train_psnr_frame": 32.5,
    "Eval/Frame/val_psnr_frame": 31.0,
    "Eval/Frame/train_clip_sim": 0.95,
    "Eval/Frame/val_clip_sim": 0.9,
    "Eval/Frame/val_clip_sim_centred": 0.7,
    "Eval/PSNR_Stats/val_min": 30.0,
    "Eval/Info/num_val_frames": 13,
    "Eval/Gap/psnr_gap": 1.0,
    "Eval/Gap/psnr_gap_paired": 0.8,
    "Eval/Gap/psnr_gap_paired_error": 0.1,
    "Eval/Embedding/val_effective_rank": 20.0,
    "Eval/Embedding/val_target_rank": 25.0,
}
HEALTHY_CURVES = {
    "Train/PSNR": (20, 25, 28, 30, 31, 32),
    "Train/learning_rate": (1, 1, 1, 0.5, 0.2, 0.01),
    "Train/Gradients/total_norm": (0.1, 0.1, 0.1, 0.1, 0.1, 0.0001),
    "Train/Gradients/rgb_to_clip_ratio": (2, 2, 2, 2, 2, 200),
    "Train/Loss/pixel_loss": (0.1, 0.05, 0.03, 0.02, 0.015, 0.01),
    "Train/Loss/clip_loss": (0, 0.5, 0.4, 0.3, 0.2, 0.1),
    "Train/Loss/clip_loss_weighted": (0, 0.005, 0.004, 0.003, 0.002, 0.001),
    "Eval/Frame/val_psnr": (24, 26, 27, 30, 31, 32),
    "seconds": (2, 1, 1, 1, 1, 1),
}


@pytest.fixture(scope="session")
def rows() -> Callable[..., list[Measurement]]:
    """rows(12, patches=0) -> frames 0 to 11, frames 5 and 11 unseen; PSNR rises with the frame, and with the patch."""

    def build(count: int = 12, patches: int = 0) -> list[Measurement]:
        found = []
        for frame in range(count):
            split = "val" if frame % 6 == 5 else "train"
            for patch in range(patches) if patches else [-1]:
                values = {"psnr": 20.0 + frame + max(patch, 0) / 10, "psnr_frame": 19.0 + frame, "ms_ssim": 0.9}
                values |= {"clip_sim": 0.8 + frame / 100, "clip_sim_centred": 0.5, "clip_retrieval": 1.0}
                found.append(Measurement(frame, patch, split, values))
        return found

    return build


@pytest.fixture
def results(rows, finished: Path) -> Callable[..., RunResults]:
    """results('run', values={tag: value}, curves={tag: values}, kind='clip') -> a healthy run of 6 epochs, changed."""
    record = read_record(finished / "config.json")

    def build(name: str = "run", values=(), curves=(), kind: str = "clip", settings=(), **changes: object):
        config = record.config.replaced({"epochs": 6, "clip_weights": "auto", "clip_targets": "", **dict(settings)})
        targets = None if kind == "none" else TargetsRecord(f"OpenCLIP of {name}", kind, "w", "m")
        video = dataclasses.replace(record.video, source="/films/kitchen.mp4")
        found = {tag: list(enumerate(c, start=1)) for tag, c in {**HEALTHY_CURVES, **dict(curves)}.items()}
        run = RunResults(
            folder=finished,
            name=name,
            record=dataclasses.replace(record, config=config, targets=targets, video=video),
            curves=found,
            values={**HEALTHY_VALUES, **dict(values)},
            values_epoch=6,
            summary={"epoch": 6, "decode_fps": 50.0},
            frames=rows(),
            patches=rows(patches=8),
            environment={"commit": "abc", "torch": "2"},
        )
        return run._replace(**changes)

    return build


@pytest.fixture
def baselines() -> Callable[..., dict]:
    """baselines(head=0.9, table=0.8) -> the changes that give a run baselines of these centred similarities."""

    def build(head: float = 0.9, table: float = 0.8) -> dict:
        split = {"cosine": 0.95, "recall@1": 0.5}
        both = [{name: {**split, "centred": value} for name in ("train", "val")} for value in (head, table)]
        mean = {name: {"cosine": 0.7, "centred": 0.01} for name in ("train", "val")}
        found = (
            EmbeddingScores("CLIP head", 1234, both[0], {"recall@1": 0.25}),
            EmbeddingScores("mean", 16, mean, {}),
            EmbeddingScores("neighbours", None, {"val": {**split, "centred": 0.99}}, {}),
            EmbeddingScores("PCA table", 1200, both[1], {"recall@1": 0.125}),
        )
        semantics = {"queries": 8, "head_bytes_are": "estimated"}
        return {"baselines": found, "summary": {"epoch": 6, "decode_fps": 50.0, "semantics": semantics}}

    return build


@pytest.fixture
def without_val() -> Callable[[RunResults], RunResults]:
    """The same run with a split that leaves no unseen frames."""

    def change(run: RunResults) -> RunResults:
        scene = dataclasses.replace(run.record.scene, val=())
        return run._replace(record=dataclasses.replace(run.record, scene=scene))

    return change


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run of this test's own, not evaluated."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="session")
def kept_evaluation(finished: Path, tmp_path_factory, run_script) -> Path:
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("evaluated") / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "decode_fps", lambda model: 100.0)
        assert run_script("eval", [folder]) == 0
    return folder


@pytest.fixture
def evaluated(kept_evaluation: Path, tmp_path: Path) -> Path:
    """A finished and evaluated run of this test's own."""
    return Path(shutil.copytree(kept_evaluation, tmp_path / "evaluated"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots with their words but without their picture, which takes 0.1 s each."""
    monkeypatch.setattr("hnerv.viz.figure.svg_uri", lambda draw, extra=0.0: "data:,")
