"""A trainer of the run in miniature, without the command around it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hnerv.config import Config, LogConfig
from hnerv.data.store import Material, load_material, training_store
from hnerv.flags import parse_train
from hnerv.model import build_model
from hnerv.runs.folder import RunFolder
from hnerv.runs.record import RunRecord
from hnerv.tracking import NullLogger
from hnerv.training.optim import build_optimizer
from hnerv.training.trainer import Trainer


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def timeless_lines(run: Path) -> list[str]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [json.dumps({key: value for key, value in line.items() if not of_time(key)}) for line in lines]


def of_time(key: str) -> bool:
    """What depends on the clock and on the machine's memory."""
    return key == "seconds" or key.startswith("Train/Performance/")


def without_times(events: dict[str, list]) -> dict[str, list]:
    """Of tags of time, the steps alone."""
    return {tag: [p[0] for p in points] if of_time(tag) else points for tag, points in events.items()}


def by_data_loader(folder: Path) -> dict[str, list]:
    """What the loader behind TensorBoard's page sees: every event of every file, without purges."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[str, list] = {}
    for path in sorted(folder.glob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    return found


class Memory(NullLogger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.values: dict[str, dict[int, float]] = {}

    def scalars(self, values, step):
        for tag, value in values.items():
            self.values.setdefault(tag, {})[step] = value

    def curve(self, tag, steps, values, times):
        self.values.setdefault(tag, {}).update(zip(steps, values, strict=True))


@pytest.fixture
def config(flags) -> Callable[..., Config]:
    """config(epochs=3) -> the configuration of the run in miniature, changed."""
    return lambda **changes: parse_train(["--exp-id", "x", *flags(**changes)]).resolve(cuda=False).config


@pytest.fixture
def make(config, tmp_path: Path) -> Callable[..., Trainer]:
    """make(epochs=3) -> a fresh trainer of it, and a logger that keeps everything; `edit` may change what it sees."""

    def build(
        device: str = "cpu",
        edit: Callable[[Material], None] = lambda material: None,
        log: LogConfig | None = None,
        compile: bool = False,
        capture: bool = True,
        **changes: object,
    ) -> Trainer:
        settings, target = config(**changes), torch.device(device)
        material = load_material(settings, target)
        edit(material)
        torch.manual_seed(settings.train.seed)
        model = build_model(settings.model, material.scene).to(target, memory_format=torch.channels_last)
        record, folder = RunRecord.of("", settings, material, model), RunFolder(tmp_path / "run", False)
        optimizer, store = build_optimizer(model, settings.train), training_store(material, settings, target)
        options = {"log": log or LogConfig(), "compile": compile, "capture": capture, "logger": Memory()}
        return Trainer(model, optimizer, store, settings, folder, record, **options)

    return build


@pytest.fixture
def console() -> SimpleNamespace:
    """Says nothing."""
    ignore = lambda *_: None  # noqa: E731
    return SimpleNamespace(step=ignore, epoch=ignore, evaluation=ignore, print_line=ignore)


@pytest.fixture
def timeless() -> Callable[[Path], list[str]]:
    """timeless(run) -> the lines of its metrics.jsonl, without what depends on clock and memory."""
    return timeless_lines


@pytest.fixture
def assert_same(events_of) -> Callable[[Path, Path], None]:
    """assert_same(run, other): they ended with the same bits, and with the same logs but for times."""

    def check(stopped: Path, whole: Path) -> None:
        for name in ("latest.pt", "best.pt"):
            ours, theirs = (torch.load(run / "checkpoints" / name) for run in (stopped, whole))
            assert ours.keys() == theirs.keys()
            for key in ours.keys() - {"progress"}:
                assert equal(ours[key], theirs[key]), (name, key)
            for key in ("epoch", "step", "step_in_epoch", "best", "rate_weight"):
                assert ours["progress"][key] == theirs["progress"][key]
        assert timeless_lines(stopped) == timeless_lines(whole)
        assert (stopped / "config.json").read_bytes() == (whole / "config.json").read_bytes()
        ours, theirs = (without_times(events_of(run / "tensorboard")) for run in (stopped, whole))
        assert ours == theirs
        steps = by_data_loader(stopped / "tensorboard")
        assert steps == by_data_loader(whole / "tensorboard")
        assert max(max(Counter(found).values()) for found in steps.values()) == 1
        assert not list(stopped.rglob(".*"))

    return check
