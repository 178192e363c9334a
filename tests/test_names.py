"""Names that strangers give: a run, its video, its file and what is made of them, from first command to last."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from hnerv.data.video import load_video

NAMES = {
    "spaces": " a film  of mine ",
    "unicode": "фильм 影片 🎞 é",
    "not normalised": "e\u0301\u202eabc",
    "hyphens": "--overwrite",
    "shell": "a\\b:c=d,e $(touch x); 'a' \"b\" *?[0] %s {} #&|<>",
    "255 bytes": "é" * 127 + "n",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that names stand in commands as they are."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_suffix(name: str, suffix: str) -> Path:
    """As long as a name may be, not longer."""
    room = 255 - len(suffix)
    return Path(name.encode()[:room].decode(errors="ignore") + suffix)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_from_training_to_the_report(
    place, name, make_film, targets_file, flags, run_script, hnerv_main, evaluate, capsys
):
    film, run, out = make_film(Path(name) / name), Path(f"o{name[1:]}") / name, Path("out", name)
    targets, coded, video, page = (with_suffix(name, s) for s in (".safetensors", ".hnerv", ".mkv", ".html"))
    shutil.copy(targets_file, targets)
    moved = [f"--data={film}", f"--clip-targets={targets}"]
    words = flags(epochs=2, data=None, clip_targets=None)
    commands = (
        *[lambda: run_script("train_patch_dual", [f"--output={run.parent}", f"--exp-id={name}", *moved, *words])] * 2,
        lambda: evaluate("--images", "--", run),
        lambda: hnerv_main("encode", f"--output={coded}", f"./{run}"),
        lambda: hnerv_main("info", f"./{coded}"),
        lambda: evaluate(f"./{coded}", *moved),
        lambda: hnerv_main("decode", f"./{coded}", f"--output={video}"),
        lambda: hnerv_main("decode", f"./{coded}", f"--output={out}"),
        lambda: hnerv_main("embed", f"./{coded}", f"--output=out/{targets}"),
        lambda: hnerv_main("search", f"./{coded}", f"--embedding=./{targets}:5,3"),
        lambda: hnerv_main("report", f"./{run}", f"--output={page}", *moved),
    )
    for number, command in enumerate(commands):
        assert command() == 0, (number, capsys.readouterr().err)
    assert page.read_text(encoding="utf-8").startswith("<!")
    frames = load_video(str(video)).frames
    assert len(frames) == 12 and torch.equal(frames, load_video(str(out)).frames)
    assert not list(place.rglob("*.tmp")) and not Path("x").exists()
