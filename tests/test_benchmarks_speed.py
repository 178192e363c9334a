"""benchmarks/speed.py, floor.py and reference.py at toy size. No time is judged.

HNERV_REFERENCE names a checkout of haochen-rye/HNeRV or AlanjyHuang/HNeRV to compare with.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hnerv.config import Config
from hnerv.errors import UserError
from hnerv.presets import PRESETS

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def speed(monkeypatch):
    """The script as a module, with its siblings importable as when it runs; everything is timed once."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import floor
    import speed

    from hnerv.evaluation import cost

    fps = cost.decode_fps
    monkeypatch.setattr(cost, "decode_fps", lambda model, seconds=1.0: fps(model, seconds=0.01))
    for module in (floor, speed):
        monkeypatch.setattr(module, "BLOCK", 1)
    yield speed
    for name in ("speed", "floor", "reference", "common"):
        sys.modules.pop(name, None)


@pytest.fixture
def reference(speed):
    import reference

    return reference


@pytest.fixture
def config(speed, flags) -> Config:
    return speed.parse(flags())[1].resolve(cuda=False).config


def finite(value: object) -> bool:
    """Whether every number inside is finite and not negative; the cost of logging may be, as a difference."""
    if isinstance(value, dict):
        return all(finite(v) for key, v in value.items() if not key.startswith("logging_percent"))
    if isinstance(value, list | tuple):
        return all(map(finite, value))
    return not isinstance(value, float) or (math.isfinite(value) and value >= 0)


def test_flags(speed, film):
    args, invocation = speed.parse(["--data", str(film), "--steps", "20", "--dec_strides", "2", "2", "--threads", "1"])
    assert args.steps == 20 and args.reference is None and not args.growth
    assert invocation.settings == {"data": str(film), "dec_strides": (2, 2)} and invocation.threads == 1
    assert speed.parse([])[1].resolve(cuda=False).preset == "demo"


@pytest.mark.parametrize("words", [["--plot", "x.png"], ["--steps", "0"], ["--reference", "."]])
def test_refused_flags(speed, flags, words):
    with pytest.raises(UserError):
        speed.measure(*speed.parse([*flags(), "--device", "cpu", *words]))


def test_training_and_floor(speed, config, tmp_path):
    found = speed.training(config, CPU, 1, str(tmp_path))
    assert finite(found) and found["patches_per_second"] > 0 and found["peak_memory_mib"] > 0
    assert math.isfinite(found["logging_percent"]) and found["parameters"] > 0
    assert any(tmp_path.rglob("events.*")), "the epochs with a log wrote none"
    assert 50 < found["operators_without_clip"] < found["operators"] and "operators_eager" not in found
    found = sys.modules["floor"].floor(config, CPU, 1, str(tmp_path))
    assert finite(found) and all(found[name]["times_bare"] > 0 for name in ("muon", "adam"))
    assert found["adam"]["moved_mb"] > found["muon"]["moved_mb"] > 0, "Adam keeps the larger state"


def test_captured_steps(speed, config, tmp_path, monkeypatch):
    """With graphs that run each step eagerly: eager steps are counted as well, and the floor times epochs."""
    from hnerv.training import trainer as module

    class EagerGraphs:
        def __init__(self, call, parameters, device, clock) -> None:
            self.call = call

        def __call__(self, kind) -> bool:
            self.call(kind)
            return True

    def clip_trainer(*args, **options):
        trainer = sys.modules["common"].clip_trainer(*args, **options)
        trainer.captures = True
        return trainer

    floor = sys.modules["floor"]
    monkeypatch.setattr(module, "Graphs", EagerGraphs)
    for script in (speed, floor):
        monkeypatch.setattr(script, "clip_trainer", clip_trainer)
    found = speed.training(config, CPU, 1, str(tmp_path)) | floor.floor(config, CPU, 1, str(tmp_path))
    assert finite(found) and found["operators_eager"] > 50 and found["muon"]["step_ms"] > 0


def test_advance_crosses_the_ends_of_epochs(speed, config, tmp_path):
    """8 frames in steps of 3, 3 and 2; an epoch has the times of its own steps."""
    trainer = speed.clip_trainer(config, CPU, str(tmp_path))
    assert [speed.advance(trainer, count) for count in (2, 1, 1, 5)] == [6, 2, 3, 13]
    assert trainer.state.step_in_epoch == 3 == len(trainer.state.times)


def test_operators_are_counted_without_views(speed):
    x = torch.ones(2, 3, requires_grad=True)
    with sys.modules["floor"].OperatorCounter() as counter:
        (x.t().reshape(-1)[None] * 2).detach().sum()
        (x * x).sum().backward()
    assert {name: counter.counts[f"aten::{name}"] for name in ("clone", "mul", "sum", "t")} == {
        "clone": 1,
        "mul": 4,  # one forward, then one forward and two backward
        "sum": 2,
        "t": 0,
    }


@pytest.mark.parametrize("kind", ["grid", "pe"])
def test_the_arithmetic_of_the_layers_is_that_which_torch_counts(speed, config, tmp_path, setting_of, kind):
    """In networks without depthwise convolutions, whose backward pass torch counts as if they were dense."""
    changes = {"optimizer": "adam", "blend_freq": 0, "clip_targets": "", "clip_weights": "none"}
    changes |= setting_of(kind) | ({"grid": "1x2"} if kind == "pe" else {})
    trainer = speed.clip_trainer(config.replaced(changes), CPU, str(tmp_path))
    batch, floor = next(trainer.remaining_batches()), sys.modules["floor"]
    with FlopCounterMode(display=False) as counter:
        layers = floor.recorded(trainer, batch)
    assert floor.step_gmac(layers) * 1e9 == pytest.approx(counter.get_total_flops() / 2, rel=1e-3)


@pytest.mark.parametrize("kind", ["encoder", "convnext"])
def test_bare_layers_take_the_shapes_of_a_step(speed, config, tmp_path, setting_of, kind):
    """Linear layers and depthwise convolutions among them."""
    changes = {"blend_freq": 0, "clip_targets": "", "clip_weights": "none"} | setting_of(kind)
    trainer = speed.clip_trainer(config.replaced(changes), CPU, str(tmp_path))
    layers = sys.modules["floor"].recorded(trainer, next(trainer.remaining_batches()))
    modules = [layer.module for layer in layers]
    assert any(isinstance(module, torch.nn.Linear) for module in modules)
    assert any(getattr(module, "groups", 1) > 1 for module in modules)
    sys.modules["floor"].bare(layers, CPU)()


def test_the_script_with_growth(speed, flags, tmp_path, monkeypatch, capsys):
    words = flags(clip_targets=None, clip_weights="none", optimizer="adam", modelsize=0.01, dec_width=0)
    files = ["--json", str(tmp_path / "out.json"), "--growth", "--plot", str(tmp_path / "growth.png")]
    monkeypatch.setattr(sys, "argv", ["speed.py", *words, "--device", "cpu", "--steps", "1", *files])
    speed.main()
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found) == {"environment", "config", "training", "floor", "growth"} and finite(found)
    assert {row["axis"] for row in found["growth"]} == {"frames", "pixels", "modelsize"}
    assert (tmp_path / "growth.png").stat().st_size > 1000
    out = capsys.readouterr().out
    assert re.search(rf"^training +operators +{found['training']['operators']}$", out, re.M)


@pytest.mark.parametrize("name", PRESETS)
def test_the_same_network_has_the_stages_of_hnerv(reference, name):
    """Whatever the preset, an upsampling RGB head as the last of them."""
    ours = Config().replaced(PRESETS[name])
    for kind in reference.KINDS.values():
        model = reference.same_network(kind, ours).model
        assert (model.decoder, model.rgb_stride) == ("hnerv", 1)
        assert math.prod(model.dec_strides) == math.prod(ours.model.strides)


def test_an_unknown_checkout_is_refused(reference, tmp_path):
    (tmp_path / "model_all.py").write_text("")
    with pytest.raises(UserError, match="is not a checkout of haochen-rye/HNeRV or AlanjyHuang/HNeRV"):
        reference.recognise(tmp_path, reference.KINDS)


def test_modules_of_a_checkout_leave_no_trace(reference, tmp_path):
    (tmp_path / "theirs.py").write_text("import accelerate\nimport decord\ndecord.bridge.set_bridge('torch')\nx = 3\n")
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
        assert other.loss.clip_loss == "cosine" and other.model.dec_strides == (2, 2, 2, 2)
        assert (other.model.rgb_stride, other.model.act, other.train.optimizer) == (1, "gelu", "adam")


CHECKOUT = {
    "train_patch_dual": "",
    "hnerv_utils": """
import torch
def adjust_lr(optimizer, progress, args): optimizer.param_groups[0]["lr"] = args.lr
def loss_fn(out, truth, name): assert name == "L2"; return (out - truth).square().mean()
def psnr_fn_single(out, truth): return -10 * (out - truth).square().mean().log10()
""",
    "model_patch_dual": """
import torch
class DualHeadHNeRV(torch.nn.Module):
    def __init__(self, args):
        super().__init__()
        self.size = 8 * int(args.fc_hw.split("_")[0]), 8 * int(args.fc_hw.split("_")[1])
        self.rgb, self.clip = torch.nn.Linear(3, 3 * self.size[0] * self.size[1]), torch.nn.Linear(3, args.clip_dim)
    def forward(self, x):
        return self.rgb(x).sigmoid().unflatten(-1, (3, *self.size)), self.clip(x), None, None
""",
}
"""A checkout of AlanjyHuang/HNeRV with another network: what is checked is that its parts fit together."""


def test_against_a_checkout(speed, config, tmp_path):
    checkout = Path(os.environ.get("HNERV_REFERENCE", tmp_path))
    if checkout == tmp_path:
        (tmp_path / "core").mkdir()
        for name, text in CHECKOUT.items():
            (tmp_path / "core" / f"{name}.py").write_text(text)
    patches = {"grid": "2x4"} if (checkout / "model_all.py").is_file() else {"grid": "1x2"}
    config = config.replaced({"clip_targets": "", "clip_weights": "auto", "clip_loss": "motion", **patches})
    found = speed.compare(checkout, config, CPU, 2, str(tmp_path))
    assert finite(found) and found["training"]["times"] > 0 and found["decoding"]["times"] > 0
    assert found["config"]["loss"]["clip_loss"] == "cosine", "ours has the CLIP loss of the checkout, not the demo's"
    if checkout != tmp_path:
        for what in ("parameters", "gmac_per_frame"):
            assert found[what]["ours"] == pytest.approx(found[what]["theirs"], rel=0.05)
