"""Files of earlier versions: read by this one, with the same weights and the same pixels."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hnerv.codec import open_single_chunk, play
from hnerv.runs.opening import open_checkpoint

FOLDER = Path(__file__).parent / "fixtures"
VERSIONS = sorted(path.parent for path in FOLDER.glob("*/expected.json"))


def _make():
    spec = importlib.util.spec_from_file_location("fixtures_make", FOLDER / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = _make()


def test_there_are_fixtures_and_they_are_small() -> None:
    assert [folder.name for folder in VERSIONS][:1] == ["0.1"]
    for folder in VERSIONS:
        assert sum(path.stat().st_size for path in folder.iterdir()) < 60_000


@pytest.fixture(params=VERSIONS, ids=lambda folder: folder.name)
def kept(request) -> tuple[Path, dict, dict]:
    folder = request.param
    return folder, json.loads((folder / "expected.json").read_text()), dict(np.load(folder / "pixels.npz"))


def test_a_checkpoint_is_read(kept) -> None:
    folder, expected, pixels = kept
    found = open_checkpoint(folder / "run.pt")
    assert found.epoch == expected["epoch"]
    assert make.weights_hash(found.model.state_dict()) == expected["checkpoint_weights"]
    with torch.no_grad():
        rgb = found.model.eval()(torch.tensor(expected["frames"]).float()).rgb
    levels = (rgb.clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(levels - pixels["checkpoint"]).max() <= 1


def test_a_bitstream_is_read(kept) -> None:
    folder, expected, pixels = kept
    stream = open_single_chunk(folder / "run.hnerv")
    stream.check()
    model = stream.model()
    assert make.weights_hash(model.state_dict()) == expected["bitstream_weights"]
    decoded = np.stack(list(play(model, expected["frames"]))).astype(int)
    assert np.abs(decoded - pixels["bitstream"]).max() <= 1


def test_their_pictures_are_of_the_film(kept, tmp_path) -> None:
    """Or two wrongs would agree: the run has learned the waves that it was made of."""
    from PIL import Image

    _, expected, pixels = kept
    make.draw_film(tmp_path / "film")
    film = np.stack([np.asarray(Image.open(tmp_path / "film" / f"{i}.png")) for i in expected["frames"]])
    for name in ("checkpoint", "bitstream"):
        assert ((pixels[name].astype(float) - film) ** 2).mean() < 500
