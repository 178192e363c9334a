"""Which frames are shown, and what of them."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from hnerv.evaluation import open_run
from hnerv.report import pictures
from hnerv.report.pictures import draw_frames, pick_frames
from hnerv.report.reading import is_current


def test_the_ends_of_both_splits_are_among_the_chosen(rows):
    chosen = pick_frames(rows(120), 12)
    assert len(chosen) == 12 and list(chosen) == sorted(chosen)
    assert {frame: why for frame, why in chosen.items() if why} == {
        0: "worst training frame", 5: "worst unseen frame", 118: "best training frame", 119: "best unseen frame",
    }  # fmt: skip
    assert sum(frame % 6 == 5 for frame in chosen) == 5


@pytest.mark.parametrize("count", [1, 4, 7, 12, 50])
def test_never_more_frames_than_there_are(rows, count):
    assert len(pick_frames(rows(12), count)) == min(max(count, 4), 12)


def test_without_unseen_frames(rows):
    seen = [row for row in rows(24) if row.seen]
    assert len(pick_frames(seen, 8)) == 8


def test_the_frames_of_another_run(rows):
    assert pick_frames(rows(12), 4, [0, 3, 5]) == {0: "worst training frame", 3: "", 5: "worst unseen frame"}
    assert pick_frames(rows(12), 4, [0, 99]) == pick_frames(rows(12), 4)


@pytest.fixture
def opened(run, evaluate):
    assert evaluate(run) == 0
    assert is_current(run, 5, run / "checkpoints" / "latest.pt")
    return open_run(run, torch.device("cpu"))


def pixels(uri: str) -> np.ndarray:
    head, data = uri.split(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(float)


def test_the_pictures_are_the_frames(opened, rows):
    chosen = {0: "", 5: "why", 11: ""}
    shown = draw_frames(opened, rows(), chosen, budget=10**9)
    assert [(s.row.frame, s.why) for s in shown] == [(0, ""), (5, "why"), (11, "")]
    for shot in shown:
        where = torch.tensor([shot.row.frame])
        truth = opened.store.frames(where)[0].permute(1, 2, 0).numpy() * 255
        with torch.no_grad():
            found = opened.model(where.float()).rgb[0].permute(1, 2, 0).numpy() * 255
        assert pixels(shot.truth).shape == (32, 64, 3)
        assert np.abs(pixels(shot.truth) - truth).mean() < 8
        assert np.abs(pixels(shot.reconstruction) - found).mean() < 8


def test_a_small_budget_costs_quality(opened, rows):
    size = {
        budget: sum(len(s.truth) for s in draw_frames(opened, rows(), {0: "", 1: ""}, budget)) for budget in (1, 10**9)
    }
    assert size[1] < size[10**9]


def test_wide_frames_are_reduced(opened, rows, monkeypatch):
    monkeypatch.setattr(pictures, "WIDEST", 16)
    (shot,) = draw_frames(opened, rows(), {3: ""}, 10**9)
    assert {pixels(uri).shape for uri in (shot.truth, shot.reconstruction, shot.error)} == {(8, 16, 3)}


def test_unseen_frames_that_the_encoder_saw_are_drawn_so(tmp_path, train, flags, evaluate):
    from hnerv.report.reading import read_run

    assert train(tmp_path, flags(embedding="encoder", unseen="encode", epochs=1, pixel_loss_warmup_epochs=0)) == 0
    assert evaluate(tmp_path / "run") == 0
    rows = read_run(tmp_path / "run").frames
    assert {row.split for row in rows} == {"train", "val-encoded"}
    opened = open_run(tmp_path / "run", torch.device("cpu"))
    (shot,) = draw_frames(opened, rows, {5: ""}, 10**9)
    with torch.no_grad():
        frames = opened.store.frames(torch.tensor([5]))
        seen, unseen = (
            (opened.model(torch.tensor([5.0]), given).rgb[0].permute(1, 2, 0) * 255).numpy() for given in (frames, None)
        )
    away = seen - unseen  # far less than what the compression of the picture loses, but in a direction of its own
    assert 0.5 < ((pixels(shot.reconstruction) - unseen) * away).sum() / np.square(away).sum() < 1.5
