"""A run as plain numbers, without a folder behind it; and what a folder of one looks like."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hnerv.config import Config
from hnerv.report.reading import Beside, Row, RunData
from hnerv.runs.record import RunRecord

HEALTHY = {
    "Eval/Frame/train_psnr": 33.0,
    "Eval/Frame/val_psnr": 32.0,
    "Eval/Frame/train_psnr_frame": 32.5,
    "Eval/Frame/val_psnr_frame": 31.0,
    "Eval/Frame/train_clip_sim": 0.95,
    "Eval/Frame/val_clip_sim": 0.9,
    "Eval/Frame/val_clip_sim_centred": 0.7,
    "Eval/PSNR_Stats/val_min": 30.0,
    "Eval/Gap/psnr_gap": 1.0,
    "Eval/Embedding/val_effective_rank": 20.0,
    "Eval/Embedding/val_target_rank": 25.0,
}


def curve(*values: float) -> list[tuple[int, float]]:
    return list(enumerate(values, start=1))


@pytest.fixture
def rows() -> Callable[..., list[Row]]:
    """rows(12, patches=0) -> frames 0 to 11, frames 5 and 11 unseen; PSNR rises with the frame, and with the patch."""

    def build(count: int = 12, patches: int = 0) -> list[Row]:
        found = []
        for frame in range(count):
            split = "val" if frame % 6 == 5 else "train"
            for patch in range(patches) if patches else [-1]:
                values = {"psnr": 20.0 + frame + max(patch, 0) / 10, "psnr_frame": 19.0 + frame, "ms_ssim": 0.9}
                values |= {"clip_sim": 0.8 + frame / 100, "clip_sim_centred": 0.5, "clip_retrieval": 1.0}
                found.append(Row(frame, patch, split, values))
        return found

    return build


@pytest.fixture
def numbers(rows, tmp_path: Path) -> Callable[..., RunData]:
    """numbers(name='run', values={...}, curves={...}, kind='clip') -> a healthy run of 6 epochs, changed."""

    def build(
        name: str = "run", values: dict | None = None, curves: dict | None = None, kind: str = "clip",
        settings: dict | None = None, **changes: object,
    ) -> RunData:  # fmt: skip
        config = Config().replaced({"epochs": 6, "pixel_loss_warmup_epochs": 1, **(settings or {})})
        targets = {"source": f"OpenCLIP of {name}", "kind": kind, "model": "m", "weights": "w"}
        record = {
            "hnerv": "0", "preset": "", "config": config.to_dict(),
            "video": {"source": "/films/kitchen.mp4", "digest": "d", "reader": "pyav", "crop": [0, 0, 32, 64, 32, 64]},
            "scene": {
                "frames": 12, "height": 32, "width": 64, "rows": 2, "cols": 4, "fps": 24.0,
                "train": [0, 1, 2, 3, 4, 6, 7, 8, 9, 10], "val": [5, 11], "clip_dim": 8,
            },
            "targets": None if kind == "none" else targets,
            "model": {"width": 8, "coded_parameters": {"decoder": 900, "heads": 124}},
        }  # fmt: skip
        healthy = {
            "Train/PSNR": curve(20, 25, 28, 30, 31, 32),
            "Train/learning_rate": curve(1, 1, 1, 0.5, 0.2, 0.01),
            "Train/Gradients/total_norm": curve(0.1, 0.1, 0.1, 0.1, 0.1, 0.0001),
            "Train/Gradients/rgb_to_clip_ratio": curve(2, 2, 2, 2, 2, 200),
            "Train/Loss/pixel_loss": curve(0.1, 0.05, 0.03, 0.02, 0.015, 0.01),
            "Train/Loss/clip_loss": curve(0, 0.5, 0.4, 0.3, 0.2, 0.1),
            "Train/Loss/clip_loss_weighted": curve(0, 0.005, 0.004, 0.003, 0.002, 0.001),
            "Eval/Frame/val_psnr": [(3, 27.0), (6, 32.0)],
            "seconds": curve(2, 1, 1, 1, 1, 1),
        }
        plain = RunData(
            folder=tmp_path / name, name=name, record=RunRecord.from_dict(record, tmp_path),
            curves=healthy | (curves or {}),
            values=HEALTHY | (values or {}), values_epoch=6, summary={"epoch": 6, "decode_fps": 50.0},
            frames=rows(), patches=rows(patches=8), environment={"commit": "abc", "torch": "2"},
        )  # fmt: skip
        return plain._replace(**changes)

    return build


@pytest.fixture
def beside() -> Callable[..., dict]:
    """beside(head=0.9, table=0.8) -> the changes that give a run baselines of these centred similarities."""

    def build(head: float = 0.9, table: float = 0.8) -> dict:
        split = {"cosine": 0.95, "recall@1": 0.5}
        rows = (
            Beside("CLIP head", 1234, {s: {**split, "centred": head} for s in ("train", "val")}, {"recall@1": 0.25}),
            Beside("mean", 16, {s: {"cosine": 0.7, "centred": 0.01} for s in ("train", "val")}, {}),
            Beside("neighbours", None, {"val": {**split, "centred": 0.99}}, {}),
            Beside("PCA table", 1200, {s: {**split, "centred": table} for s in ("train", "val")}, {"recall@1": 0.125}),
        )
        summary = {"epoch": 6, "decode_fps": 50.0, "semantics": {"queries": 8, "head_bytes_are": "estimated"}}
        return {"beside": rows, "summary": summary}

    return build


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run of this test's own."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots with their words but without their picture, which takes 0.1 s each."""
    from hnerv.report import plots

    monkeypatch.setattr(plots, "_plot", lambda title, alt, draw, clip, extra=0: plots.Plot(title, "data:,", alt, clip))
