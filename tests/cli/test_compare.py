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


def test_flags(parser, capsys):
    args = parser.parse_args(["a.hnerv"])
    assert args.files == [Path("a.hnerv")]
    assert (args.data, args.output, args.device, args.json) == ("", None, "auto", False)
    assert args.against == "x264,x265,svt-av1"
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
def test_bad_flags_are_refused_at_once(parser, tmp_path, monkeypatch, words, match):
    from hnerv.errors import UserError

    monkeypatch.chdir(tmp_path)
    Path("here.hnerv").write_bytes(b"not looked at")
    with pytest.raises(UserError, match=match):
        compare.run(parser.parse_args(words))
    assert [path.name for path in tmp_path.iterdir()] == ["here.hnerv"]
