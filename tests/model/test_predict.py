"""A decoded frame does not depend on the frames decoded with it; rounding to 8 bits against a table and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hnerv.geometry import Window
from hnerv.model.predict import (
    FRAMES_AT_ONCE,
    predict,
    predict_clip,
    predict_patch,
    predict_window,
    round8,
    to_uint8,
)

BATCHES = ([0.0], [3.0], [2.0, 1.0], [3.0, 0.0, 2.0], [1.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_a_prediction_does_not_depend_on_its_batch(make, embedding):
    model, sizes = make((4, 8), embedding=embedding, grid="2x2"), set()
    model.embedding.register_forward_hook(lambda _, given, __: sizes.add(len(given[0])))
    window = Window(1, 2, *model.scene.grid.patch_size)
    frames = torch.rand(4, 3, model.scene.height, model.scene.width)

    def all_of(times: torch.Tensor) -> list[torch.Tensor]:
        exact = [*predict(model, times), predict_clip(model, times)]
        return [*exact, *predict(model, times, frames[times.long()]), predict_patch(model, times, 3)]

    together = all_of(torch.arange(4.0))
    with torch.no_grad():
        alone = [*model(torch.arange(4.0)), model.embed(torch.arange(4.0)), *model(torch.arange(4.0), frames)]
        alone.append(model.decode_patch(torch.arange(4.0), 3).rgb)
        assert torch.equal(
            predict_window(model, torch.zeros(1), window), model.decode_window(torch.zeros(4), window)[:1]
        )
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    for batch in BATCHES:
        times = torch.tensor(batch)
        found = all_of(times)
        assert all(torch.allclose(a, b[times.long()], atol=1e-6) for a, b in zip(found, together, strict=True))
        assert all(torch.equal(a, b[times.long()]) for a, b in zip(found[:3], together[:3], strict=True))
    assert sizes == {FRAMES_AT_ONCE}
    assert predict(model, torch.zeros(1), clip=False).clip is None


def test_rounding_table():
    levels = torch.arange(256)
    assert torch.equal(to_uint8(levels / 255), levels.byte()) and torch.equal(round8(levels / 255), levels / 255)
    x = torch.tensor([-1.0, 0.0, 0.5 / 255, 1.5 / 255, 0.0019, 0.002, 1.0, 1.5])
    assert to_uint8(x).tolist() == [0, 0, 0, 2, 0, 1, 255, 255]


def test_rounding_is_that_of_numpy():
    x = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    expected = np.rint(x.numpy().clip(0, 1) * np.float32(255)).astype(np.uint8)
    assert np.array_equal(to_uint8(x).numpy(), expected)
    assert torch.equal(round8(round8(x)), round8(x)) and torch.equal(to_uint8(round8(x)), to_uint8(x))
