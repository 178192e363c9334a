"""A hub that is slow, cut short or answers garbage, by a real server: never a wrong embedding, never a long silence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from hnerv.data.clip import clip_targets, hub
from hnerv.errors import UserError
from hnerv.geometry import PatchGrid

ROOT = Path(__file__).resolve().parents[3]
GRID = PatchGrid(64, 96, 2, 3)
FRAMES = torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PAGE = b"<html><title>Log in to this network</title></html>"


class Handler(BaseHTTPRequestHandler):
    """Answers with the server's `body`; `deliver` writes it."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.body)))
        if self.server.of_a_hub:
            self.send_header("ETag", '"0123456789abcdef0123456789abcdef01234567"')
            self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.server.deliver(self.wfile, self.server.body, self.server.over)

    def log_message(self, *args: object) -> None:
        pass


def at_once(file, body: bytes, over: threading.Event) -> None:
    file.write(body)


def half(file, body: bytes, over: threading.Event) -> None:
    file.write(body[: len(body) // 2])


def in_drops(file, body: bytes, over: threading.Event) -> None:
    """In twelve parts, a second in all."""
    for i in range(12):
        file.write(body[i * len(body) // 12 : (i + 1) * len(body) // 12])
        file.flush()
        over.wait(0.08)


def standing_still(file, body: bytes, over: threading.Event) -> None:
    file.write(body[:100])
    file.flush()
    over.wait(60)


@pytest.fixture
def serve(use_hub):
    """serve(body, deliver=at_once, of_a_hub=True) -> the address of a hub that answers each question with `body`."""
    servers = []

    def start(body: bytes, deliver=at_once, of_a_hub: bool = True) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.body, server.deliver, server.of_a_hub, server.over = body, deliver, of_a_hub, threading.Event()
        server.handle_error = lambda *_: None  # the client hangs up
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        use_hub(f"http://127.0.0.1:{server.server_port}")
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def compute(weights: str):
    return clip_targets(FRAMES, GRID, weights=weights, model="hnerv-tiny", digest="video")


def test_a_slow_hub_is_waited_for_with_a_word(serve, weights_bytes, reference, monkeypatch, warned):
    monkeypatch.setattr(hub, "NOTICE_SECONDS", 0.2)
    serve(weights_bytes, in_drops)
    found = compute("openai")
    assert found.kind == "clip" and found.weights == "openai"
    said = [text for text in warned() if "still downloading someone/tiny/open_clip_model.safetensors" in text]
    assert len(said) >= 2


def test_words_come_within_ten_seconds():
    assert hub.NOTICE_SECONDS < 10


@pytest.mark.parametrize("weights", ["auto", "openai"])
@pytest.mark.parametrize("answer", ["half a file", "the page of a network"])
def test_what_is_no_file_of_the_hub_gives_no_clip(serve, weights_bytes, monkeypatch, warned, answer, weights):
    """`auto` says so and takes the random encoder; a tag that was asked for is an error. Neither takes long."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    if answer == "half a file":
        serve(weights_bytes, half)
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


@pytest.mark.parametrize("weights", ["auto", "openai"])
@pytest.mark.parametrize("body", [PAGE, bytes(5000), b"", b"\x10" + bytes(7) + b'{"a": nonsense}'], ids=len)
def test_garbage_of_a_hub_is_no_embedding(serve, weights, body):
    """The client keeps it as a file, which is found out where it is read, each time, until it is deleted."""
    serve(body)
    for _ in range(2):
        with pytest.raises(UserError, match="cannot be read as safetensors .* delete it to download it again"):
            compute(weights)


def test_half_a_file_in_the_cache_of_the_hub_is_no_embedding(in_hf_cache, weights_bytes):
    in_hf_cache(data=weights_bytes[: len(weights_bytes) // 2])
    with pytest.raises(UserError, match="cannot be read as safetensors .* delete it to download it again"):
        compute("auto")


@pytest.mark.campaign
def test_a_download_that_stands_still_is_given_up(serve, weights_bytes, monkeypatch, warned):
    """The client tries six times, a second apart."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(hub, "NOTICE_SECONDS", 2)
    serve(weights_bytes, standing_still)
    start = time.perf_counter()
    assert compute("auto").kind == "random"
    assert time.perf_counter() - start < 40
    assert any("still downloading" in text for text in warned()) and "NOT CLIP" in warned()[-1]


def test_the_command_where_the_network_answers_everything_with_a_page(serve, tmp_path, flags):
    """By HF_ENDPOINT, in a process of its own, without any cache."""
    endpoint = serve(PAGE, of_a_hub=False)
    run = ["--output", tmp_path, "--exp-id", "run", "--device", "cpu"]
    words = flags(clip_targets=None, clip_weights="auto", epochs=1)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HNERV_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, ROOT / "train_patch_dual.py", *run, *words],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "NOT CLIP: the weights openai of ViT-B-32-quickgelu are not in the Hugging Face cache" in done.stderr
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["targets"]["kind"] == "random" and "not CLIP" in record["targets"]["source"]
