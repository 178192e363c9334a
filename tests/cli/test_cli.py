"""The console script: help without heavy imports, and one line for a malformed command."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hnerv import __version__
from hnerv.cli import VERBS, build_parser, main

HEAVY = "torch torchvision numpy open_clip matplotlib av decord PIL tensorboard tqdm constriction ray fsspec"


@pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys\nfrom hnerv.cli import main\n"
        f"try: main({words!r})\n"
        "except SystemExit as stop: assert not stop.code\n"
        f"sys.exit(' '.join({set(HEAVY.split())!r} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {' '.join(['hnerv', *words[:-1]])} ")


def test_the_help_names_every_verb(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"{verb} {line}" in text for verb, line in VERBS.items())


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_has_a_help_text(verb):
    verbs = next(action for action in build_parser()._actions if action.dest == "verb").choices
    helps = {action.dest: action.help for action in verbs[verb]._actions}
    assert all(len(text) > 10 for text in helps.values()), helps
    assert ("--cpus-per-task" in helps["threads"]) == (verb == "fleet")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "VERB"),
        (["play"], "unknown verb 'play', choose from encode, info, decode"),
        (["serach"], "unknown verb 'serach', did you mean search?"),
        (["--frames", "1:2"], "unknown verb '1:2'"),
        (["info"], "FILE.hnerv"),
        (["info", "a.hnerv", "b.hnerv"], "'b.hnerv'"),
        (["info", "a.hnerv", "--jsn"], "did you mean --json"),
        (["decode", "a.hnerv"], "-o"),
        (["decode", "a.hnerv", "-o", "b", "--frame", "1:2"], "did you mean --frames"),
        (["encode", "run"], "-o"),
        (["encode", "run", "-o", "a.hnerv", "--weight-bits", "six"], "invalid int value: 'six'"),
        (["encode", "run", "-o", "a.hnerv", "--steps", "huffman"], "invalid choice: 'huffman'"),
        (["encode", "run", "-o", "a.hnerv", "--weight-bit", "6"], "did you mean --weight-bits"),
        (["info", "a.hnerv", "--threads", "many"], "invalid int value: 'many'"),
        (["info", "a.hnerv", "--weight-bits", "6"], "hnerv info: error: unknown argument '--weight-bits' ("),
        (["fleet", "videos", "-o", "f", "--data", "x"], "hnerv fleet: error: --data is not a flag of hnerv fleet: "),
        (["fleet", "--data=x", "-o", "f"], "--data is not a flag of hnerv fleet: pass the videos as VIDEOS, "),
        (["fleet", "videos", "-o", "f", "--dat", "x"], "unknown argument '--dat' ("),
        (["fleet", "videos", "-o", "f", "--data-splt", "x"], "did you mean --data-split?"),
    ],
)
def test_a_malformed_command_is_one_line(words, match, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(words)
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert stop.value.code == 2 and out == "" and line.startswith("hnerv") and match in line
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(hnerv_main, tmp_path, capsys):
    gone = tmp_path / "gone.hnerv"
    assert hnerv_main("info", gone) == 2 and "Traceback" not in capsys.readouterr().err
    assert hnerv_main("info", gone, "--debug") == 2 and "Traceback" in capsys.readouterr().err


def test_the_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"hnerv {__version__}\n"
