"""The pieces of benchmarks/speed.py at toy size. No time is judged.

HNERV_REFERENCE names a checkout of haochen-rye/HNeRV or AlanjyHuang/HNeRV: without it, none is compared with.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch

from hnerv.config import Config
from hnerv.errors import UserError

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def speed(monkeypatch):
    """The script as a module, with its siblings importable by plain name as when it runs; everything is timed once."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import floor
    import growth
    import speed

    from hnerv.evaluation import cost

    fps = cost.decode_fps
    monkeypatch.setattr(cost, "decode_fps", lambda model, seconds=1.0: fps(model, seconds=0.01))
    for module in (floor, growth, speed):
        monkeypatch.setattr(module, "BLOCK", 1)
    yield speed
    for name in ("speed", "floor", "growth", "timing", "operators", "reference", "quality", "ladder"):
        sys.modules.pop(name, None)


@pytest.fixture
def reference(speed):
    import reference

    return reference


@pytest.fixture
def captured(monkeypatch):
    """captured(trainer) -> it, taking its steps for captured ones: a stand-in for CUDA graphs that runs each eagerly.

    Which steps an eager trainer would take in its place is what it keeps.
    """
    from hnerv.training import trainer as module

    class Eager:
        def __init__(self, call, parameters, device, clock) -> None:
            self.call = call

        def __call__(self, kind) -> bool:
            self.call(kind)
            return True

    monkeypatch.setattr(module, "Graphs", Eager)

    def capture(trainer):
        trainer.captures = True
        return trainer

    return capture


@pytest.fixture
def config(speed, flags) -> Config:
    _, ask = speed.parse(flags())
    return ask.resolve(cuda=False).config


def finite(value: object) -> bool:
    """Whether every number inside is finite and not negative, but for a difference of two epochs."""
    if isinstance(value, dict):
        return all(finite(v) for key, v in value.items() if not key.startswith("logging_percent"))
    if isinstance(value, list | tuple):
        return all(map(finite, value))
    return not isinstance(value, float) or (math.isfinite(value) and value >= 0)


def test_flags(speed, film):
    args, ask = speed.parse(["--data", str(film), "--steps", "20", "--dec_strides", "2", "2", "--threads", "1"])
    assert args.steps == 20 and args.reference is None and not args.growth
    assert ask.settings == {"data": str(film), "dec_strides": (2, 2)} and ask.threads == 1
    assert speed.parse([])[1].resolve(cuda=False).preset == "demo"


@pytest.mark.parametrize("words", [["--plot", "x.png"], ["--steps", "0"], ["--reference", "."]])
def test_what_is_refused(speed, flags, words):
    with pytest.raises(UserError):
        speed.measure(*speed.parse([*flags(), "--device", "cpu", *words]))


def test_training_numbers(speed, config, tmp_path):
    found = speed.training(config, CPU, 2, str(tmp_path))
    assert finite(found) and found["patches_per_second"] > 0 and found["peak_memory_mib"] > 0
    assert math.isfinite(found["logging_percent"]) and found["parameters"] > 0
    assert any(tmp_path.rglob("events.*")), "the epochs with a log wrote none"
    assert 50 < found["operators_without_clip"] < found["operators"] and "operators_eager" not in found


def test_numbers_where_steps_are_captured(speed, config, tmp_path, captured, monkeypatch):
    """An eager step is counted next to them, and the floor is compared with epochs of them."""
    for module in (speed, sys.modules["floor"]):
        monkeypatch.setattr(module, "trainer_of", lambda *args: captured(sys.modules["timing"].trainer_of(*args)))
    found = speed.training(config, CPU, 1, str(tmp_path)) | speed.floor(config, CPU, 1, str(tmp_path))
    assert finite(found) and found["operators_eager"] > 50 and found["muon"]["step_ms"] > 0


def test_advance_goes_over_the_ends_of_epochs(speed, config, tmp_path):
    """8 frames in steps of 3, 3 and 2; each epoch is drawn anew, and its times are those of its own steps."""
    trainer = speed.trainer_of(config, CPU, str(tmp_path))
    assert [speed.advance(trainer, count) for count in (2, 1, 1, 5)] == [6, 2, 3, 13]
    assert trainer.step_in_epoch == 3 == len(trainer.times)


def test_operators_are_counted_without_views(speed):
    from operators import OperatorCounter

    x = torch.ones(2, 3, requires_grad=True)
    with OperatorCounter() as counter:
        (x.t().reshape(-1)[None] * 2).detach().sum()
    assert counter.counts == {"aten::clone": 1, "aten::mul": 1, "aten::sum": 1} and counter.total == 3
    with OperatorCounter() as counter:
        (x * x).sum().backward()
    assert counter.counts["aten::mul"] == 3, "backward passes count too"


@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_floor_is_positive(speed, config, tmp_path, embedding):
    grid = {"grid": "1x2"} if embedding == "pe" else {}
    config = config.replaced({"embedding": embedding, "clip_targets": "", "clip_weights": "auto", **grid})
    found = speed.floor(config, CPU, 1, str(tmp_path))
    assert finite(found) and set(found) >= {"muon", "adam"}
    for name in ("muon", "adam"):
        assert found[name]["times_floor"] > 0 and found[name]["times_bare"] > 0
    assert found["adam"]["moved_mb"] > found["muon"]["moved_mb"] > 0, "Adam keeps the larger state"


def test_counted_arithmetic_is_that_of_the_convolutions(speed, config, tmp_path):
    """Forward once, backward twice (weights, and inputs that need it); the embedding and the norms add next to nothing.

    The CLIP head's products come on top.
    """
    config = config.replaced({"optimizer": "adam", "blend_freq": 0, "clip_targets": "", "clip_weights": "none"})
    trainer = speed.trainer_of(config, CPU, str(tmp_path))
    batch = next(trainer.remaining_batches())
    convolutions = sys.modules["floor"].recorded(trainer, batch)
    forward = [
        math.prod(conv.kernel_size) * conv.in_channels * given[0] * conv.out_channels * math.prod(given[2:])
        for conv, (given, _), _ in convolutions
    ]
    every = sum(count * (2 + needs) for count, (_, (_, needs), _) in zip(forward, convolutions, strict=True))
    assert len(convolutions) == 5
    assert sys.modules["floor"].step_gmac(trainer, batch) == pytest.approx(every / 1e9, rel=1e-3)


def test_growth_and_its_plot(speed, config, tmp_path):
    config = config.replaced({"clip_targets": "", "clip_weights": "auto", "modelsize": 0.01, "dec_width": 0})
    rows = speed.growth(config, CPU, str(tmp_path))
    assert {row["axis"] for row in rows} == {"frames", "pixels", "modelsize"} and finite(rows)
    speed.plot(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_an_unknown_checkout_is_refused(reference, tmp_path):
    (tmp_path / "model_all.py").write_text("")
    with pytest.raises(UserError, match="is not a checkout of haochen-rye/HNeRV or AlanjyHuang/HNeRV"):
        reference.recognise(tmp_path)


def test_stand_ins_leave_no_trace(reference, tmp_path):
    """A module that imports what is not there, and what must not be touched."""
    (tmp_path / "theirs.py").write_text("import imageio\nimport decord\ndecord.bridge.set_bridge('torch')\nx = 3\n")
    before = set(sys.modules)
    (module,) = reference.import_theirs(tmp_path, "theirs")
    assert module.x == 3 and "theirs" not in sys.modules and str(tmp_path) not in sys.path
    assert not any("Mock" in type(sys.modules[name]).__name__ for name in set(sys.modules) - before)
    assert not (tmp_path / "__pycache__").exists()
    (tmp_path / "broken.py").write_text("import no_such_module_at_all\n")
    with pytest.raises(UserError, match="no_such_module_at_all"):
        reference.import_theirs(tmp_path, "broken")


def test_same_network(reference, config):
    """An upsampling RGB head becomes a stage, whatever the optimiser and the activation were."""
    for kind in reference.KINDS.values():
        other = reference.same_network(kind, config.replaced({"rgb_stride": 2, "clip_loss": "motion"}))
        assert other.loss.clip_loss == "cosine", "theirs; and an encoder embeds no more frames than it is given"
        assert other.model.dec_strides == (2, 2, 2, 2) and other.model.rgb_stride == 1
        assert (other.model.act, other.train.optimizer, other.train.blend_freq) == ("gelu", "adam", 0)


@pytest.mark.skipif("HNERV_REFERENCE" not in os.environ, reason="HNERV_REFERENCE names no checkout")
def test_against_a_checkout(speed, config, tmp_path):
    checkout = Path(os.environ["HNERV_REFERENCE"])
    patches = {"grid": "2x4"} if (checkout / "model_all.py").is_file() else {"grid": "1x2"}
    config = config.replaced({"clip_targets": "", "clip_weights": "auto", **patches})
    found = speed.compare(checkout, config, CPU, 2, str(tmp_path))
    assert finite(found) and found["training"]["times"] > 0 and found["decoding"]["times"] > 0
    for what in ("parameters", "gmac_per_frame"):
        assert found[what]["ours"] == pytest.approx(found[what]["theirs"], rel=0.05)


def test_the_whole_script(speed, flags, tmp_path, monkeypatch, capsys):
    words = flags(clip_targets=None, clip_weights="none", optimizer="adam")
    monkeypatch.setattr(sys, "argv", ["speed.py", *words, "--device", "cpu", "--json", str(tmp_path / "out.json")])
    speed.main()
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found) == {"environment", "config", "training", "floor"}
    out = capsys.readouterr().out
    assert "patches/s" in out and f"{found['training']['operators']} dispatched per step, views excluded" in out
