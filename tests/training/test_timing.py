"""Times of the parts of a step, by a clock and by events that the tests hold."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from hnerv.training import timing
from hnerv.training.timing import Clock, memory_values

ROOT = "Train/Performance"
PLAN = (("data", 1), ("forward", 2), ("backward", 4), ("optimizer", 3), ("rest", 0.5))


@pytest.fixture
def now(monkeypatch):
    """now.time is what the clock shows, in seconds."""
    watch = SimpleNamespace(time=100.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: watch.time)
    return watch


@pytest.fixture
def gpu(now, monkeypatch):
    """CUDA without CUDA: events take the time of `now` when they are recorded; reading one too early fails."""
    made = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            made.append(self)

        def record(self, stream):
            self.time, self.done = now.time, False

        def synchronize(self):
            for event in made:
                event.done = True

        def elapsed_time(self, other):
            assert self.done and other.done
            return 1000 * (other.time - self.time)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: len(name) * timing.MIB)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 93)
    return made


def run_steps(clock, now, steps):
    clock.start()
    for _ in range(steps):
        for part, seconds in PLAN:
            now.time += seconds
            clock.mark(part)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda":
        request.getfixturevalue("gpu")
    return torch.device(request.param)


def test_an_epoch(now, device):
    clock = Clock(device)
    run_steps(clock, now, 4)
    values = clock.close(patches=84)
    times = {part: values[f"{ROOT}/{part}_ms"] for part in ("forward", "backward", "optimizer")}
    assert times == pytest.approx({"forward": 2000, "backward": 4000, "optimizer": 3000})
    assert values[f"{ROOT}/data_share"] == pytest.approx(100 * 1 / 10.5)
    assert values[f"{ROOT}/epoch_seconds"] == pytest.approx(42)
    assert values[f"{ROOT}/patches_per_second"] == pytest.approx(2)
    assert values[f"{ROOT}/logging_share"] == 0


def test_what_happens_between_epochs_is_no_part_of_one(now, device):
    clock = Clock(device)
    run_steps(clock, now, 2)
    clock.close(1)
    now.time += 1000
    clock.state()
    run_steps(clock, now, 1)
    values = clock.close(1)
    assert values[f"{ROOT}/epoch_seconds"] == pytest.approx(10.5)
    assert values[f"{ROOT}/forward_ms"] == pytest.approx(2000)


def test_an_epoch_that_was_interrupted_is_measured_whole(now, device):
    first = Clock(device)
    run_steps(first, now, 3)
    state = json.loads(json.dumps(first.state()))
    now.time += 5000
    second = Clock(device)
    second.load_state(state)
    run_steps(second, now, 1)
    values = second.close(42)
    assert values[f"{ROOT}/epoch_seconds"] == pytest.approx(42)
    assert values[f"{ROOT}/backward_ms"] == pytest.approx(4000)
    assert values[f"{ROOT}/patches_per_second"] == pytest.approx(1)


def test_saving_in_the_middle_changes_nothing(now, device):
    clock = Clock(device)
    run_steps(clock, now, 2)
    assert clock.state() == clock.state()
    for part, seconds in PLAN:
        now.time += seconds
        clock.mark(part)
    assert clock.close(1)[f"{ROOT}/epoch_seconds"] == pytest.approx(31.5)


def test_logging_is_a_share_of_the_time_since_the_epoch_before(now, device):
    clock = Clock(device)
    run_steps(clock, now, 2)  # 21 s
    clock.close(1)
    with clock.logging():
        now.time += 10.5
    run_steps(clock, now, 2)
    assert clock.close(1)[f"{ROOT}/logging_share"] == pytest.approx(100 / 3)
    run_steps(clock, now, 1)
    assert clock.close(1)[f"{ROOT}/logging_share"] == 0


def test_without_a_step_no_times(now, device):
    assert not {f"{ROOT}/forward_ms", f"{ROOT}/epoch_seconds"} & set(Clock(device).close(5))


def test_events_are_used_again(now, gpu):
    clock = Clock(torch.device("cuda"))
    for _ in range(3):
        run_steps(clock, now, 5)
        clock.close(1)
    assert len(gpu) <= 5 * len(PLAN) + 2


def test_gpu_memory_and_utilisation(gpu):
    values = memory_values(torch.device("cuda"))
    found = {name: values[f"{ROOT}/gpu_{name}"] for name in ("memory_allocated_mib", "memory_peak_mib", "utilisation")}
    assert found == {"memory_allocated_mib": 16, "memory_peak_mib": 20, "utilisation": 93}
    assert values[f"{ROOT}/gpu_memory_reserved_mib"] == 15


def test_without_nvidia_ml_py_no_utilisation(gpu, monkeypatch):
    def missing(_):
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "utilization", missing)
    assert f"{ROOT}/gpu_utilisation" not in memory_values(torch.device("cuda"))


def test_host_memory(monkeypatch):
    import resource

    values = memory_values(torch.device("cpu"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert 50 < values[f"{ROOT}/host_memory_mib"] <= peak * 1.1
    monkeypatch.setattr(timing, "_resident_bytes", lambda: 0)
    assert memory_values(torch.device("cpu")) == {}


def test_times_of_a_run_add_up(make, console):
    """The steps take most of an epoch, but of one in which a loaded machine paused between them."""
    trainer, shares = make(epochs=8), []
    trainer.fit(console)
    logged = {tag.removeprefix(f"{ROOT}/"): points for tag, points in trainer.logger.values.items() if ROOT in tag}
    for epoch in range(2, 9):
        values = {name: points[epoch] for name, points in logged.items() if epoch in points}
        steps = trainer.steps_per_epoch * sum(values[f"{p}_ms"] for p in ("forward", "backward", "optimizer")) / 1000
        shares.append(steps / values["epoch_seconds"])
        assert values["patches_per_second"] == pytest.approx(8 * 8 / values["epoch_seconds"])
        assert 0 <= values["data_share"] < 60 and 0 <= values["logging_share"] < 100
    assert 0.5 < max(shares) <= 1.001


@pytest.mark.cuda
def test_events_of_a_real_gpu(no_sync):
    device = torch.device("cuda")
    clock, x = Clock(device), torch.randn(2048, 2048, device=device)
    clock.start()
    with no_sync():
        for part in timing.PARTS:
            x = x @ x / 2048
            clock.mark(part)
    values = clock.close(1)
    assert values[f"{ROOT}/forward_ms"] > 0 and values[f"{ROOT}/gpu_memory_allocated_mib"] > 0
