"""Runs on three kinds of targets, and their files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hnerv.cli import main


@pytest.fixture(scope="session")
def random_run(tmp_path_factory, train, flags) -> Path:
    """A run folder with targets of the random encoder. Read-only."""
    output = tmp_path_factory.mktemp("random_run")
    assert train(output, flags(clip_targets=None, clip_weights="random", epochs=2)) == 0
    return output / "run"


@pytest.fixture(scope="session")
def coded(clip_run, finished, random_run, tmp_path_factory) -> dict[str, Path]:
    """{kind of targets: .hnerv file}, each alone in a folder. Read-only."""
    files = {}
    for kind, run in (("clip", clip_run), ("file", finished), ("random", random_run)):
        files[kind] = tmp_path_factory.mktemp(kind) / f"{kind}.hnerv"
        main(["encode", str(run), "-o", str(files[kind]), "--no-measure"])
    return files


@pytest.fixture
def alone(coded, tmp_path):
    """alone(kind) -> a copy of that file, alone in a folder of the test."""

    def copy(kind: str = "clip") -> Path:
        folder = tmp_path / f"alone_{kind}"
        folder.mkdir(exist_ok=True)
        return Path(shutil.copy(coded[kind], folder / "clip.hnerv"))

    return copy


@pytest.fixture
def search(capsys):
    """search(*words) -> parsed output of `hnerv search --json`."""

    def call(*words):
        capsys.readouterr()
        main(["search", *map(str, words), "--json"])
        return json.loads(capsys.readouterr().out)

    return call
