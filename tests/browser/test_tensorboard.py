"""TensorBoard itself, started on a finished run and opened in Chromium: what was logged is to be seen in the page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest


class View(NamedTuple):
    """A dashboard: its plugin, what is to be read there, what is drawn there, and what it is asked for."""

    plugin: str
    words: tuple[str, ...]
    drawn: str = ""
    ask: str = ""


VIEWS = [
    View("scalars", ("Train/PSNR", "Train_Batch/PSNR"), "svg, canvas", "&tagFilter=Train.*PSNR"),
    View("scalars", ("Eval/Frame/val_psnr",), "svg, canvas", "&tagFilter=Frame.val_psnr"),
    View("custom_scalars", ("Overview", "Gradients", "Embedding health")),
    View("images", ("Eval/Images/",), "img"),
    View("histograms", ("Eval/Histogram/train_psnr_distribution",), "svg"),
    View("hparams", ("lr", "modelsize")),
    View("projector", ("patch embeddings", "split"), "canvas"),
    View("text", ("Model/Info/run", "targets.safetensors")),
]
FLOOR = {"scalars", "histograms", "text"}
"""Without these a run cannot be watched at all."""


@pytest.fixture(scope="module")
def board(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of TensorBoard on a finished run."""
    words = ["--logdir", finished / "tensorboard", "--host", "127.0.0.1", "--port", "0", "--load_fast", "false"]
    log = tmp_path_factory.mktemp("board") / "log"
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with (
        log.open("w") as file,
        subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", *map(str, words)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process,
    ):
        try:
            for line in process.stderr:
                file.write(line)
                if found := re.search(r"http://\S+:\d+/", line):
                    break
            else:
                pytest.fail(f"tensorboard did not start: {log.read_text()}")
            yield found[0]
        finally:
            process.terminate()
            process.stderr.close()


@pytest.fixture(scope="module")
def active(board: str, finished: Path) -> set[str]:
    """Plugins that found data. The projector looks for it in a thread, so it is asked until it has had its time."""
    slow = {"projector"} if (finished / "tensorboard" / "projector_config.pbtxt").exists() else set()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    found, end = set(), time.monotonic() + 10
    while not found or (not slow <= found and time.monotonic() < end):
        with opener.open(f"{board}data/plugins_listing") as answer:
            found = {name for name, plugin in json.load(answer).items() if plugin["enabled"]}
    return found


def test_the_floor_is_there(active):
    assert active >= FLOOR


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.plugin + view.ask)
def test_what_was_logged_is_to_be_seen(page, board, active, tmp_path, view):
    if view.plugin not in active:
        pytest.skip(f"this run logs nothing for {view.plugin}")
    page.open(f"{board}#{view.plugin}{view.ask}")
    for words in view.words:
        page.wait_for_text(words)
    if view.drawn:
        page.wait(f"{DEEP} return all({json.dumps(view.drawn)}).some((e) => e.getBoundingClientRect().width > 20)")
    kept = Path(os.environ.get("HNERV_SCREENSHOTS") or tmp_path)
    kept.mkdir(parents=True, exist_ok=True)
    assert len(page.screenshot(kept / f"tensorboard_{view.plugin}_{len(view.words)}.png")) > 10_000
    assert all(url.startswith(board) for url in page.requests())


DEEP = """
const all = (css, root = document) => [...root.querySelectorAll(css)].concat(
  [...root.querySelectorAll("*")].flatMap((e) => (e.shadowRoot ? all(css, e.shadowRoot) : [])),
  [...root.querySelectorAll("iframe")].flatMap((f) => (f.contentDocument ? all(css, f.contentDocument) : [])));
"""
"""Elements by a selector, in the shadow trees of components and in frames too."""
