"""A trace of the steps that were asked for, as Perfetto reads it."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from hnerv.config import LogConfig
from hnerv.training.timing import StepProfiler

CPU = torch.device("cpu")


@pytest.fixture
def said():
    return []


def steps(profiler, numbers):
    with profiler:
        for number in numbers:
            profiler.before(number)
            with torch.profiler.record_function(f"step {number}"):
                torch.ones(3).sum()


def recorded(path) -> set[str]:
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return {event["name"] for event in events if event.get("name", "").startswith("step ")}


@pytest.mark.parametrize(
    ("span", "numbers", "name", "expected"),
    [
        (range(2, 4), range(6), "steps_2-4", {"step 2", "step 3"}),
        (range(2, 9), range(5), "steps_2-5", {"step 2", "step 3", "step 4"}),  # the run ends first
        (range(2, 5), range(3, 8), "steps_3-5", {"step 3", "step 4"}),  # a run that is resumed within
    ],
)
def test_the_span_is_recorded(tmp_path, said, span, numbers, name, expected):
    steps(StepProfiler(span, tmp_path / "profile", CPU, said.append), numbers)
    (path,) = (tmp_path / "profile").iterdir()
    assert path.name == f"{name}.json.gz" and recorded(path) == expected
    assert len(said) == 1 and str(path) in said[0] and "https://ui.perfetto.dev" in said[0]


@pytest.mark.parametrize(("span", "numbers"), [(range(0), range(3)), (range(9, 12), range(3)), (range(2), range(5, 7))])
def test_nothing_is_recorded_that_was_not_asked_for(tmp_path, said, span, numbers):
    steps(StepProfiler(span, tmp_path / "profile", CPU, said.append), numbers)
    assert not list(tmp_path.iterdir()) and not said


def test_a_disk_that_does_not_take_it_warns(tmp_path, said, caplog):
    (tmp_path / "profile").touch()
    steps(StepProfiler(range(1, 2), tmp_path / "profile", CPU, said.append), range(3))
    assert "was not written; the run continues" in caplog.text and not said


def test_a_run_that_is_profiled_learns_the_same(make, console, said):
    plain = make(epochs=2)
    plain.fit(console)
    console.print_line = said.append
    trainer = make(epochs=2, log=LogConfig(profile="1:3"))
    trainer.fit(console)
    assert [path.name for path in (trainer.folder.path / "profile").iterdir()] == ["steps_1-3.json.gz"]
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), trainer.model.parameters(), strict=True))
