"""A Ray of one node for tests of complete fleets; each command connects to it as to any cluster."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


NODE = """
import json, sys
from ray.cluster_utils import Cluster
words = {"num_cpus": 2, "object_store_memory": 100 << 20, "include_dashboard": False}
nodes = Cluster(initialize_head=True, head_node_args=words | {"ray_client_server_port": int(sys.argv[1])})
print(json.dumps([nodes.address, [one.process.pid for one in nodes.head_node.all_processes["raylet"]]]), flush=True)
sys.stdin.read()
nodes.shutdown()
"""
"""Runs in a separate process, so that resources left open by Ray cause no warnings here."""


class Ray(NamedTuple):
    """Address for a driver on a node of the cluster, address for clients, process ids of the raylets."""

    address: str
    for_clients: str
    raylets: list[int]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Ray]:
    """One node with two CPUs. Its processes end with the tests."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    pipe, environment = subprocess.PIPE, os.environ
    for _ in range(3):  # another process may take the port before Ray does
        port = free_port()
        command = [sys.executable, "-c", NODE, str(port)]
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment) as process:
            if line := next((line for line in process.stdout if line.startswith(b"[")), b""):
                address, raylets = json.loads(line)
                yield Ray(address, f"ray://127.0.0.1:{port}", raylets)
                process.stdin.close()
                return
    pytest.fail("Ray did not start")


@pytest.fixture
def fleet(cluster, hnerv_main, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """fleet(source, output, *flags) runs the command on `cluster` -> exit status. Signal handlers are restored."""

    def run(source: Path, output: Path, *flags: str, address: str = "") -> int:
        command = ["hnerv", "fleet", source, "-o", output, *flags]
        monkeypatch.setattr(sys, "argv", [*map(str, command)])
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        hook = threading.excepthook, sys.excepthook
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
                # Ray leaves sockets to the garbage collector
                warnings.filterwarnings("ignore", category=ResourceWarning)
                warnings.filterwarnings("ignore", category=DeprecationWarning, module="ray")
                try:
                    return hnerv_main("fleet", source, "-o", output, "--address", address or cluster.address, *flags)
                finally:
                    gc.collect()  # while warnings of Ray are ignored
        finally:
            threading.excepthook, sys.excepthook = hook
            for number, handler in before.items():
                signal.signal(number, handler)

    return run


@pytest.fixture
def clips(tmp_path: Path, make_film) -> Path:
    """A folder of two videos."""
    for number in range(2):
        make_film(tmp_path / "clips" / f"clip{number}", shift=number)
    return tmp_path / "clips"


@pytest.fixture
def words(flags) -> Callable[..., list[str]]:
    """words(epochs=3) -> the flags of the miniature run without --data."""
    return lambda **changes: flags(**{"data": None, **changes})


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    """benchmarks/fleet.py as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import fleet as module

    yield module
    sys.modules.pop("fleet", None)


@pytest.fixture
def when() -> Iterator[Callable]:
    """when(condition, action) calls the action once, in the background, as soon as the condition holds."""
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
