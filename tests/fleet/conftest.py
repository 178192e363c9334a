"""A Ray of one node and a local S3 for tests of complete fleets, each in processes of its own."""

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
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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


SERVER = """
import random
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

app, dice, refused = DomainDispatcherApplication(create_backend_app), random.Random(0), []

def flaky(environ, start_response):
    bucket, _, key = environ["PATH_INFO"][1:].partition("/")
    if bucket == "refused":
        start_response("200 OK", [])
        return [str(len(refused)).encode()]
    if bucket == "flaky" and key and environ["REQUEST_METHOD"] in ("PUT", "POST") and (roll := dice.random()) < 0.25:
        refused.append(key)
        if roll < 0.1:  # the answer to a write gets lost
            list(app(environ, lambda *_: None))
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("403 Forbidden", [("Content-Type", "application/xml")])
        return [b"<Error><Code>AccessDenied</Code><Message>the write was refused</Message></Error>"]
    return app(environ, start_response)

server = make_server("127.0.0.1", 0, flaky, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""
"""An S3 of moto. A quarter of the writes to its bucket `flaky` is answered by an error."""


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of an S3 with the buckets `calm` and `flaky`, empty without moto. The environment names it."""
    if not (importlib.util.find_spec("moto") and importlib.util.find_spec("s3fs")):
        yield ""
        return
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", SERVER], **streams) as process, pytest.MonkeyPatch.context() as patch:
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        words = {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}
        for name, value in words.items():
            patch.setenv(f"AWS_{name}", value)
        for bucket in ("calm", "flaky"):
            urllib.request.urlopen(urllib.request.Request(f"{url}/{bucket}", method="PUT")).close()
        yield url
        process.kill()


@pytest.fixture
def s3(server: str, tmp_path: Path) -> Callable[[str], str]:
    """s3('calm') -> the address of a folder of this test in that bucket."""
    if not server:
        pytest.skip("moto or s3fs is not installed")
    return lambda bucket: f"s3://{bucket}/{tmp_path.name}"


@pytest.fixture(scope="session")
def cluster(server: str) -> Iterator[Ray]:
    """One node with two CPUs, which knows the S3. Its processes end with the tests."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    pipe = subprocess.PIPE
    for _ in range(3):  # another process may take the port before Ray does
        port = free_port()
        command = [sys.executable, "-c", NODE, str(port)]
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
            if line := next((line for line in process.stdout if line.startswith(b"[")), b""):
                address, raylets = json.loads(line)
                yield Ray(address, f"ray://127.0.0.1:{port}", raylets)
                process.stdin.close()
                return
    pytest.fail("Ray did not start")


@pytest.fixture
def fleet(cluster, hnerv_main, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """fleet(source, output, *flags) runs the command on `cluster` -> exit status. Signal handlers are restored."""

    def run(source: Path, output: Path | str, *flags: str, address: str = "") -> int:
        monkeypatch.setattr(sys, "argv", [*map(str, ["hnerv", "fleet", source, "-o", output, *flags])])
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        hooks = threading.excepthook, sys.excepthook
        with warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning, ResourceWarning):  # of Ray
                warnings.filterwarnings("ignore", category=category)
            try:
                return hnerv_main("fleet", source, "-o", output, "--address", address or cluster.address, *flags)
            finally:
                gc.collect()  # Ray leaves sockets to it
                threading.excepthook, sys.excepthook = hooks
                for number, handler in before.items():
                    signal.signal(number, handler)

    return run


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory, make_film) -> Path:
    """A folder of two videos. Not to be changed."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(2):
        make_film(folder / f"clip{number}", shift=number)
    return folder


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., Path]:
    """manifest(row, row, ...) -> a file of these rows; a string is written as it is."""

    def write(*rows: dict | str) -> Path:
        path = tmp_path / "manifest.jsonl"
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
        return path

    return write


@pytest.fixture(scope="session")
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
    ended = threading.Event()

    def watch(condition: Callable[[], object], action: Callable[[object], None]) -> None:
        while not (found := condition()):
            if ended.wait(0.02):
                return
        action(found)

    with ThreadPoolExecutor() as threads:
        yield lambda *calls: threads.submit(watch, *calls)
        ended.set()


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """at_step(9, action) calls action(hand-over) once, in place of the hand-over at this step."""
    from hnerv.fleet.task import HandOver

    def arrange(step: int, action: Callable[[HandOver], None]) -> None:
        real, left = HandOver.on_save, [action]

        def on_save(self, trainer) -> None:
            call = left.pop() if trainer.global_step == step and left else lambda _: real(self, trainer)
            call(self)

        monkeypatch.setattr(HandOver, "on_save", on_save)

    return arrange
