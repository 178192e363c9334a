"""benchmarks/rate.py at toy size."""

from __future__ import annotations

from pathlib import Path

import pytest

from hnerv.files import read_json

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def rate(monkeypatch, film):
    """The script as a module; its clip is tiny."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import rate

    small = {"data": str(film), "crop": "", "resize": "", "modelsize": 0.008, "dec_depths": (1,), "embed_dim": 2}
    monkeypatch.setattr(rate, "BASE", rate.BASE | small | {"grid_knots": 0, "precision": "fp32", "lr": 0.01})
    return rate


@pytest.mark.parametrize("name", ["rate left to the encoder, 8 bits", "+ scales per row and column"])
def test_a_variant_is_trained_and_coded(rate, tmp_path, name):
    path = rate.path_of(tmp_path, name, 2)
    assert f"{name}: " in rate.run((name, 2, path))
    (row,) = read_json(path)
    assert row[0] == name and row[1] > 1000 and row[2] > 5


def test_parts_of_the_coder_are_left_out(rate, tmp_path):
    """Each part is chosen by size, so that a file without it is not smaller; all decode to the same frames."""
    path = tmp_path / "all.json"
    rate.run(("+ context of the grids (all)", 6, path))
    (_, size, quality), *others = read_json(path)
    assert len(others) == 2
    assert all(other[1] >= size - 4 and other[2] == quality for other in others)


def test_single_steps_and_scales(rate, tmp_path, monkeypatch):
    """Of a variant without vectors, and without a context of latents that could be trained."""
    import torch

    from hnerv.model import build_model
    from hnerv.model.scene import Scene
    from hnerv.presets import Choice
    from hnerv.rate import LatentDensity

    config = Choice.of("demo-codec", rate.BASE).config
    scene = Scene(frames=4, height=32, width=64, rows=2, cols=4, fps=24.0, train=(0, 1, 2, 3), val=(), clip_dim=0)
    made = rate.reduced(rate.VARIANTS["one step and one scale per tensor, no context"])(
        build_model(config.model, scene), 0
    )
    assert made.num_exponents == 0
    assert not any(
        p.requires_grad for d in made.densities if isinstance(d, LatentDensity) for p in (d.previous, d.near)
    )
    assert made.bits(made(torch.zeros(()), rounded=False).symbols, rounded=False).isfinite().all()
