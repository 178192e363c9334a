"""The hub's client against a loopback server, a dead port, a silent port and a cache on disk."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from hnerv.data.clip import hub

FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@pytest.fixture
def serve(use_hub):
    """A hub that serves the given files of someone/tiny, and counts its requests."""
    servers = []

    def start(files: dict[str, bytes]) -> list[str]:
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                asked.append(self.path)
                data = files.get(self.path.rpartition("/")[2])
                self.send_response(404 if data is None else 200)
                self.send_header("Content-Length", str(len(data or b"")))
                self.send_header("ETag", '"0123456789abcdef0123456789abcdef01234567"')
                self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
                self.end_headers()
                return data

            def do_GET(self):
                self.wfile.write(self.do_HEAD() or b"")

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        use_hub(f"http://127.0.0.1:{server.server_port}")
        return asked

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_file_is_downloaded_once_and_then_found_in_the_cache(serve):
    asked = serve({FILES[1]: b"weights"})
    path = hub.fetch("someone/tiny", FILES)
    with open(path, "rb") as file:
        assert file.read() == b"weights"
    before = len(asked)
    assert hub.cached("someone/tiny", FILES) == path
    assert len(asked) == before


def test_what_the_hub_does_not_serve_is_unavailable(serve):
    serve({})
    with pytest.raises(hub.HubUnavailable, match=r"the hub does not serve someone/tiny \(HTTP 404\)"):
        hub.fetch("someone/tiny", FILES)


def test_the_cache_is_read_without_network_and_prefers_the_first_name(in_hf_cache):
    assert hub.cached("someone/tiny", FILES) == ""
    path = in_hf_cache()
    assert hub.cached("someone/tiny", FILES) == str(path)
    assert hub.cached("someone/tiny", FILES[1:]) == ""


def test_a_dead_port_is_given_up_at_once():
    start = time.perf_counter()
    with pytest.raises(hub.HubUnavailable, match="the hub cannot be reached"):
        hub.fetch("someone/tiny", FILES)
    assert time.perf_counter() - start < 3


def test_a_silent_hub_is_given_up_after_the_probe(use_hub, monkeypatch):
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        use_hub(f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.perf_counter()
        with pytest.raises(hub.HubUnavailable, match="the hub cannot be reached"):
            hub.fetch("someone/tiny", FILES)
        assert time.perf_counter() - start < 3


def test_a_name_lookup_that_hangs_is_given_up():
    release = threading.Event()
    with pytest.raises(hub.HubUnavailable, match=r"did not answer within 0\.05 s"):
        hub._within(0.05, lambda: str(release.wait(10)))
    release.set()


def test_the_promise_of_about_ten_seconds():
    assert hub.ANSWER_SECONDS < hub.DEADLINE_SECONDS <= 10


def test_offline_mode_asks_nobody(serve, monkeypatch):
    asked = serve({FILES[0]: b"weights"})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(hub.HubUnavailable, match="HF_HUB_OFFLINE is set"):
        hub.fetch("someone/tiny", FILES)
    assert asked == []
