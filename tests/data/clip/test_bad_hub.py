"""The hub, by a real server: slow, silent, cut short or garbage. Never a wrong embedding, never a long wait."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants

from hnerv.data.clip import clip_targets, hub
from hnerv.errors import UserError
from hnerv.geometry import PatchGrid

FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
FRAMES = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PAGE = b"<html><title>Log in to this network</title></html>"
HASH = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """Serves the server's `files`, {name: bytes} or bytes for every name, in the parts of `deliver`; b"" is a stall."""

    def do_HEAD(self) -> bytes:
        self.server.asked.append(self.path)
        files = self.server.files
        body = files.get(self.path.rpartition("/")[2]) if isinstance(files, dict) else files
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        if self.server.of_a_hub:
            self.send_header("ETag", f'"{HASH}"')
            self.send_header("X-Repo-Commit", HASH)
        self.end_headers()
        return body or b""

    def do_GET(self) -> None:
        body = self.do_HEAD()
        for part in self.server.deliver(body):
            self.wfile.write(part)
            self.wfile.flush()
            self.server.over.wait(0.08 if part else 60)

    def log_message(self, *args: object) -> None:
        pass


def in_sixths(body: bytes) -> list[bytes]:
    """About half a second in all."""
    return [body[i * len(body) // 6 : (i + 1) * len(body) // 6] for i in range(6)]


@pytest.fixture
def serve(use_hub):
    """serve(files) starts a hub -> the paths that it was asked for."""
    servers = []

    def start(files: dict[str, bytes] | bytes, deliver=lambda body: [body], of_a_hub: bool = True) -> list[str]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.files, server.deliver, server.of_a_hub = files, deliver, of_a_hub
        server.asked, server.over = [], threading.Event()
        server.handle_error = lambda *_: None  # the client hangs up
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        use_hub(f"http://127.0.0.1:{server.server_port}")
        return server.asked

    yield start
    for server, thread in servers:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def compute(weights: str):
    return clip_targets(FRAMES, PatchGrid(64, 96, 2, 3), weights=weights, model="hnerv-tiny", digest="video")


def test_a_file_is_downloaded_once_and_then_found_in_the_cache(serve):
    asked = serve({FILES[1]: b"weights"})
    assert hub.cached("someone/tiny", FILES) == ""
    path = hub.fetch("someone/tiny", FILES)
    before = len(asked)
    assert hub.cached("someone/tiny", FILES) == path and len(asked) == before
    with open(path, "rb") as file:
        assert file.read() == b"weights"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("not served", r"the hub does not serve someone/tiny \(HTTP 404\)"),
        ("dead port", "the hub cannot be reached"),
        ("silent", "the hub cannot be reached"),
        ("the look-up of its name hangs", "the hub did not answer within 0.3 s"),
        ("offline", "HF_HUB_OFFLINE is set"),
    ],
)
def test_a_hub_that_does_not_serve_is_given_up_quickly(serve, use_hub, monkeypatch, fault, message):
    release, start = threading.Event(), time.perf_counter()
    with socket.socket() as silent:
        if fault == "not served":
            serve({})
        elif fault == "silent":
            monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.2)
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            use_hub(f"http://127.0.0.1:{silent.getsockname()[1]}")
        elif fault == "the look-up of its name hangs":
            monkeypatch.setattr(hub, "DEADLINE_SECONDS", 0.3)
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(10))
        elif fault == "offline":
            asked = serve({FILES[0]: b"weights"})
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(hub.HubUnavailable, match=message):
            hub.fetch("someone/tiny", FILES)
        release.set()
    assert time.perf_counter() - start < 3 and (fault != "offline" or asked == [])


def test_a_silent_hub_costs_less_than_ten_seconds_and_a_slow_one_is_mentioned_within_ten():
    assert hub.ANSWER_SECONDS < hub.DEADLINE_SECONDS < 10 and hub.NOTICE_SECONDS < 10


def test_a_slow_hub_is_waited_for_with_a_notice(serve, weights_bytes, monkeypatch, warned):
    monkeypatch.setattr(hub, "NOTICE_SECONDS", 0.1)
    serve(weights_bytes, in_sixths)
    found = compute("openai")
    assert found.kind == "clip" and found.weights == "openai"
    assert warned() == ["still downloading someone/tiny/open_clip_model.safetensors from the hub"]


@pytest.mark.parametrize("weights", ["auto", "openai"])
@pytest.mark.parametrize("answer", ["half a file", "the page of a network"])
def test_an_answer_that_is_no_file_of_the_hub_gives_no_clip(serve, weights_bytes, monkeypatch, warned, answer, weights):
    """`auto` warns and uses the random encoder; a tag is refused. Neither takes long."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    if answer == "half a file":
        serve(weights_bytes, lambda body: [body[: len(body) // 2]])
    else:
        serve(PAGE, of_a_hub=False)
    start = time.perf_counter()
    if weights == "openai":
        with pytest.raises(UserError, match="make the hub reachable, or pass --clip-weights FILE") as caught:
            compute(weights)
        assert "\n" not in str(caught.value)
    else:
        assert compute(weights).kind == "random"
        assert [text.split(":")[0] for text in warned()] == ["NOT CLIP"]
    assert time.perf_counter() - start < 10


GARBAGE = [PAGE, bytes(5000), b"", b"\x10" + bytes(7) + b'{"a": nonsense}', None]


@pytest.mark.parametrize("body", GARBAGE, ids=lambda body: f"{len(body or HASH)} bytes")
def test_garbage_of_a_hub_is_no_embedding(serve, in_hf_cache, weights_bytes, body):
    """The client keeps it as a file (None: half of the weights); it is refused at every reading, until deleted."""
    if body is None:
        in_hf_cache(weights_bytes[: len(weights_bytes) // 2])
    else:
        serve(body)
    for weights in ("auto", "openai"):
        with pytest.raises(UserError, match="cannot be read as safetensors .* delete it to download it again"):
            compute(weights)


@pytest.mark.campaign
def test_a_download_that_stands_still_is_given_up(serve, weights_bytes, monkeypatch, warned):
    """The client tries six times, a second apart."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    serve(weights_bytes, lambda body: [body[:100], b""])
    start = time.perf_counter()
    assert compute("auto").kind == "random"
    assert time.perf_counter() - start < 40 and "NOT CLIP" in warned()[-1]


def test_training_where_the_network_answers_everything_with_a_page(serve, tmp_path, train, flags, warned):
    serve(PAGE, of_a_hub=False)
    assert train(tmp_path, flags(clip_targets=None, clip_weights="auto", epochs=1)) == 0
    assert "NOT CLIP: the weights openai of ViT-B-32-quickgelu are not in the Hugging Face cache" in warned()[0]
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["targets"]["kind"] == "random" and "not CLIP" in record["targets"]["source"]
