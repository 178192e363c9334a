"""`hnerv compare`: its flags, and what is refused before anything is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from hnerv.cli import compare
from hnerv.flags import Parser


@pytest.fixture
def parser() -> Parser:
    parser = Parser(prog="hnerv compare")
    compare.add_arguments(parser)
    return parser


def test_the_defaults(parser):
    ask = parser.parse_args(["a.hnerv"])
    assert ask.files == [Path("a.hnerv")]
    assert (ask.data, ask.against, ask.output, ask.device, ask.json) == ("", "x264,x265,svt-av1", None, "auto", False)


def test_all_flags(parser):
    words = [
        "a.hnerv",
        "b.hnerv",
        "--data",
        "v.mp4",
        "--against",
        "x264:slow",
        "-o",
        "out",
        "--device",
        "cpu",
        "--json",
    ]
    ask = parser.parse_args(words)
    assert ask.files == [Path("a.hnerv"), Path("b.hnerv")]
    assert (ask.data, ask.against, ask.output, ask.device, ask.json) == ("v.mp4", "x264:slow", Path("out"), "cpu", True)


def test_a_file_is_asked_for(parser, capsys):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([])
    assert stop.value.code == 2 and "FILE.hnerv" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["here.hnerv", "--against", "x266"], "is not a known codec"),
        (["here.hnerv", "--against", "x264:quick"], "has an unknown preset of x264"),
        (["gone.hnerv"], "gone.hnerv is not a file"),
        (["here.hnerv", "gone.hnerv"], "gone.hnerv is not a file"),
        (["here.hnerv", "-o", "here.hnerv"], "is a file: pass a folder"),
        (["here.hnerv", "--device", "abacus"], "'abacus' is not a device"),
    ],
)
def test_what_cannot_be_is_refused_at_once(parser, tmp_path, monkeypatch, words, match):
    from hnerv.errors import UserError

    monkeypatch.chdir(tmp_path)
    Path("here.hnerv").write_bytes(b"not looked at")
    with pytest.raises(UserError, match=match):
        compare.run(parser.parse_args(words))
    assert [path.name for path in tmp_path.iterdir()] == ["here.hnerv"]
