"""benchmarks/codec.py from its first line to its last, on a small run. No time is judged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def codec(monkeypatch, hnerv_main):
    """The script as a module; the commands that it times run in this process, and only their success counts."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import codec

    def run(command: list[str], **_: object) -> None:
        assert hnerv_main(*command[3:]) == 0, command

    monkeypatch.setattr(subprocess, "run", run)
    yield codec
    sys.modules.pop("codec", None)


def test_it_runs_to_its_end(codec, run_of, monkeypatch, capsys):
    run = run_of("grid")
    monkeypatch.setattr(sys, "argv", ["codec.py", str(run), "--finetune-epochs", "1", "--threads", "1"])
    codec.main()
    out = capsys.readouterr().out
    assert all(f"| {name} | " in out for name in codec.variants(1))
    assert "Huffman (HNeRV)" in out and "symbols/s" in out
    assert "above the empirical entropy of their symbols, plus tables and steps" in out
    assert out.splitlines()[-1].startswith("commands: encode --no-measure ")
