"""`--compile`: the same steps to rounding, the same files, and one line where torch cannot compile."""

from __future__ import annotations

import functools
import shutil

import pytest
import torch

from hnerv.errors import RunError
from hnerv.training.run import compilation_errors

pytestmark = pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # torch, of Python 3.13.0


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",  # all but the compiler
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.campaign,
                pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
            ],
        ),
    ],
)
@pytest.mark.parametrize("decoder", ["hnerv", "convnext"])
def test_compiled_steps_are_those_of_the_model(make, monkeypatch, decoder, backend):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    settings = {"clip_loss": "motion", "pixel_loss_warmup_epochs": 0, "optimizer": "adam", "decoder": decoder}
    plain, fast = make(**settings), make(**settings, compile=True)
    batch = next(plain.remaining_batches())  # one shape, since each is compiled separately
    for _ in range(2):
        assert torch.allclose(fast.step(batch), plain.step(batch), rtol=1e-3, atol=1e-6)
    ours, theirs = fast.checkpoint()["model"], plain.checkpoint()["model"]
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], atol=1e-4), name


def no_compiler(graph, inputs):
    raise RuntimeError("no working C++ compiler\nsecond line")


def test_what_cannot_be_compiled_is_one_line(make, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=no_compiler))
    trainer = make(compile=True)
    refused = pytest.raises(RunError, match=r"^--compile: .*no working C\+\+ compiler.*or remove --compile$")
    with refused, compilation_errors(True):
        trainer.step(next(trainer.remaining_batches()))


@pytest.mark.parametrize("segments", [[], ["--segment-frames", "6"]], ids=["whole", "segments"])
def test_the_flag_reaches_each_trainer(segments, train, flags, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda losses, dynamic: calls.append(losses) or losses)
    words = flags(epochs=1, clip_targets=None, clip_weights="none", data_split="1_1_1")
    assert train(tmp_path, [*words, "--compile", *segments]) == 0
    assert len(calls) == (2 if segments else 1)
