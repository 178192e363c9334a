"""`hnerv search`: flags, refusals before anything is loaded, and the output for one video."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hnerv.cli import build_parser, main, search
from hnerv.errors import UserError


def parse(*words: str):
    return build_parser().parse_args(["search", *words])


def test_the_defaults():
    args = parse("a.hnerv")
    assert (args.path, args.query, args.unwanted, args.image, args.embedding) == (Path("a.hnerv"), [], [], [], [])
    assert (args.top, args.prompts, args.clip_weights, args.json, args.per_patch) == (5, "plain", "", False, False)
    assert (args.save, args.heatmap, args.device) == (None, None, "auto")


def test_all_flags():
    args = parse(
        *("a.hnerv", "a dog", "grass", "--not", "a cat", "--not", "water", "--image", "x.png", "--image", "y.png"),
        *("--embedding", "e:0,1", "--top", "3", "--prompts", "ensemble", "--clip-weights", "w", "--json"),
        *("--save", "s.png", "--heatmap", "h.png", "--device", "cpu"),
    )
    assert (args.query, args.unwanted) == (["a dog", "grass"], ["a cat", "water"])
    assert (args.image, args.embedding) == ([Path("x.png"), Path("y.png")], ["e:0,1"])
    assert (args.top, args.prompts, args.clip_weights, args.json) == (3, "ensemble", "w", True)
    assert (args.save, args.heatmap, args.device) == (Path("s.png"), Path("h.png"), "cpu")


def test_a_query_may_follow_flags():
    assert parse("--json", "--top", "3", "a.hnerv", "a dog", "grass").query == ["a dog", "grass"]


def test_two_calls_share_no_list():
    parse("a.hnerv", "--not", "a cat", "--image", "x.png")
    assert (parse("a.hnerv").unwanted, parse("a.hnerv").image) == ([], [])


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["a dog", "--top", "0"], "--top 0 must be at least 1"),
        (["  "], "a query is empty"),
        (["a dog", "--not", ""], "a query is empty"),
        (["--save", "s.png"], "--save draws a single query"),
        (["--heatmap", "s.png"], "--heatmap draws a single query"),
        (["a dog", "--save", "s.jpg"], "--save s.jpg does not end in .png"),
        (["a dog", "--heatmap", "folder.png"], "--heatmap folder.png is a folder"),
        (["a dog", "--device", "abacus"], "'abacus' is not a device"),
        (["a dog"], "gone.hnerv cannot be read"),
    ],
)
def test_refusals(words, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    with pytest.raises(UserError, match=match):
        search.run(parse("gone.hnerv", *words))
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_run_is_searched_and_drawn(finished, targets_file, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    words = [str(run), "--embedding", f"{targets_file}:3,2", "--top", "2"]
    drawn = ["--save", str(tmp_path / "sheet.png"), "--heatmap", str(tmp_path / "heat.png")]
    main(["search", *words, *drawn])
    out = capsys.readouterr().out.splitlines()
    drawn_lines = [
        f"hits drawn to {tmp_path / 'sheet.png'}",
        f"scores of the best frame drawn to {tmp_path / 'heat.png'}",
    ]
    assert out[-2:] == drawn_lines
    del out[-2:]
    assert out[0] == "targets.safetensors:3,2"
    assert out[-1] == "targets: file targets.safetensors"
    assert all(np.array(Image.open(tmp_path / name)).std() > 5 for name in ("sheet.png", "heat.png"))
    main(["search", *words, "--json", *drawn, "--overwrite"])
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-2:] == drawn_lines
    hits = json.loads(printed.out)["hits"]
    assert [str(hit["frame"]) for hit in hits] == [line.split()[2] for line in out[2:-1]]
    main(["search", *words, "--json", "--per-patch", "--top", "100"])
    peaks = json.loads(capsys.readouterr().out)["hits"]
    assert len(peaks) > len(hits) and hits[0] | {"also": []} == peaks[0]


def test_the_terminal_is_prompted(finished, tmp_path, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("\n a dog \n"))
    assert list(search._lines()) == ["a dog"]
    out, err = capsys.readouterr()
    assert out == "" and err.count("query") == 3
