"""benchmarks/quality.py at toy size."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from hnerv.config import Config
from hnerv.data.store import FrameStore, load_material
from hnerv.errors import UserError
from hnerv.metrics import frame_mse, psnr
from hnerv.model.predict import round8

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def quality(monkeypatch, film):
    """The script as a module; its proxy is a tiny run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import quality

    small = {"data": str(film), "data_split": "4_5_6", "dec_strides": (2, 2, 2), "dec_width": 6, "embed_dim": 4}
    small |= {"enc_strides": (2, 2, 2), "enc_width": 4, "clip_weights": "none", "epochs": 3, "eval_freq": 1, "lr": 0.01}
    monkeypatch.setitem(quality.SCALES, "proxy", small)
    yield quality
    sys.modules.pop("quality", None)


def test_every_variant_and_scale_is_a_configuration(quality):
    for scale in quality.SCALES.values():
        for changes in (quality.LADDER | quality.CLIP_LADDER | quality.FRONTIER).values():
            Config().replaced(scale | changes)


def test_a_row_is_trained_once_and_has_the_values_of_the_table(quality, tmp_path):
    flags = ["--out", str(tmp_path), "--only", "default", "no blends", "--seeds", "0", "1"]
    jobs = quality.plan(quality.parse(flags))
    assert [(job.settings["seed"], job.variant) for job in jobs] == [
        (seed, variant) for seed in (0, 1) for variant in ("default", "no blends")
    ]
    assert not any(map(quality.done, jobs))
    for job in jobs:
        quality.run(job)
    assert all(map(quality.done, jobs))
    assert not any(quality.done(job) for job in quality.plan(quality.parse([*flags, "--epochs", "4"])))
    rows = [json.loads(job.path.read_text()) for job in jobs]
    for row in rows:
        assert len(row["curve"]) == 3 and row["curve"][-1][1:] == [row["train_psnr_frame"], row["val_psnr_frame"]]
        assert 0 < row["curve"][0][0] < row["seconds"] == row["curve"][-1][0]
        assert row["blend_of_sources"] > 10 and row["blend_of_decoded"] > 5
    text = quality.table(rows)
    assert text.count("\n") == 4 and "| no blends | 2 | 3 |" in text and "±" in text
    for name, sizes in (("psnr.png", False), ("frontier.png", True)):
        quality.plot(rows, tmp_path / name, sizes)
        assert (tmp_path / name).stat().st_size > 1000


def test_the_frontier_has_both_decoders_in_the_same_sizes(quality):
    settings = [Config().replaced(job.settings).model for job in quality.plan(quality.parse(["--frontier"]))]
    sizes = {name: sorted({m.modelsize for m in settings if m.decoder == name}) for name in ("hnerv", "convnext")}
    assert sizes["hnerv"] == sizes["convnext"] and len(sizes["hnerv"]) > 2


@pytest.mark.parametrize("flags", [["--clip-targets", "a"], ["--scale", "bunny-1.5m-1_1_1"]])
def test_a_frontier_of_other_frames_or_with_a_head_is_refused(quality, flags):
    with pytest.raises(UserError, match="--frontier"):
        quality.plan(quality.parse(["--frontier", *flags]))


def test_a_line_of_the_frontier_is_one_network(quality):
    """A reference has the configuration of the variant whose parameters it has."""
    row = {"variant": "hnerv 0.1M", "config": {"model": {"decoder": "hnerv"}}, "budget_seconds": 0}
    theirs = {**row, "variant": "hmkx/HiNeRV", "layout": "HiNeRV XXS"}
    assert [quality.network_of(r) for r in (row, theirs)] == ["hnerv", "hmkx/HiNeRV"]
    assert quality.network_of(row | {"budget_seconds": 60.0}) == "hnerv, 60 s"


def test_the_average_is_decoded_where_it_is_measured(quality, tmp_path):
    (job,) = quality.plan(quality.parse(["--out", str(tmp_path), "--only", "default", "--seeds", "0"]))
    config = Config().replaced({**job.settings, "ema_decay": 0.9})
    material = load_material(config, torch.device("cpu"))
    store = FrameStore(material, torch.device("cpu"))
    trained = quality.train_variant(job, config, material, store, time.process_time)
    seen = torch.tensor(material.scene.train)
    with torch.no_grad():
        found = psnr(frame_mse(round8(trained.decode(seen)), store.frames(seen))).mean().item()
    assert found == pytest.approx(trained.row["train_psnr_frame"], abs=1e-3)


def test_equal_seconds_set_the_epochs(quality, tmp_path):
    flags = ["--out", str(tmp_path), "--only", "default", "--seeds", "0", "--seconds", "0.1"]
    (job,) = quality.plan(quality.parse(flags))
    quality.run(job)
    assert json.loads(job.path.read_text())["epochs"] >= 2 and quality.done(job)


def test_an_unknown_variant_is_one_line(quality, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quality.py", "--only", "nonsense"])
    with pytest.raises(SystemExit) as stop:
        quality.main()
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and "nonsense" in lines[0] and "no blends" in lines[0]
