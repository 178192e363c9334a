"""A Ray of one node for the tests of a whole fleet; each command connects to it, as to any cluster."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def cluster() -> Iterator:
    """Two CPUs. Its processes end with the tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        pytest.importorskip("ray")
        from ray.cluster_utils import Cluster

    words = {"num_cpus": 2, "object_store_memory": 100 << 20, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=words)
    yield nodes
    nodes.shutdown()


@pytest.fixture
def fleet(cluster, hnerv_main, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """fleet(source, output, *flags) runs the command on `cluster` -> exit status. It forgets no handler of a signal."""

    def run(source: Path, output: Path, *flags: str) -> int:
        words = ["hnerv", "fleet", source, "-o", output, *flags]
        monkeypatch.setattr(sys, "argv", [*map(str, words)])
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        hook = threading.excepthook, sys.excepthook
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
                warnings.filterwarnings(
                    "ignore", category=ResourceWarning
                )  # of sockets that Ray leaves to the collector
                warnings.filterwarnings("ignore", category=DeprecationWarning, module="ray")
                return hnerv_main("fleet", source, "-o", output, "--address", cluster.address, *flags)
        finally:
            threading.excepthook, sys.excepthook = hook
            for number, handler in before.items():
                signal.signal(number, handler)

    return run


@pytest.fixture
def films(tmp_path: Path, make_film) -> Path:
    """A folder of two videos."""
    for number in range(2):
        make_film(tmp_path / "films" / f"film{number}", shift=number)
    return tmp_path / "films"


@pytest.fixture
def words(flags) -> Callable[..., list[str]]:
    """words(epochs=3) -> the flags of the run in miniature, whose video the fleet names."""
    return lambda **changes: flags(**{"data": None, **changes})


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    """benchmarks/fleet.py as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fleet as module

    yield module
    sys.modules.pop("fleet", None)


@pytest.fixture
def when() -> Iterator[Callable]:
    """when(condition, action) does it in the background, once, as soon as the condition holds."""
    threads, ended = [], threading.Event()

    def start(condition: Callable[[], object], action: Callable[[object], None]) -> None:
        def watch() -> None:
            while not ended.is_set():
                if found := condition():
                    return action(found)
                time.sleep(0.02)

        threads.append(threading.Thread(target=watch, daemon=True))
        threads[-1].start()

    yield start
    ended.set()
    for thread in threads:
        thread.join()
