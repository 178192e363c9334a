"""benchmarks/codec.py from start to end, on a small run. No time is judged."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


def test_it_runs_to_its_end(run_of, hnerv_main, monkeypatch, capsys):
    """The commands that it times run in this process."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import codec

    executed = []
    monkeypatch.setattr(codec, "execute", lambda command: executed.append(hnerv_main(*command[3:])))
    monkeypatch.setattr(codec.coder_speed, "__defaults__", ((128, 48),))
    monkeypatch.setattr(codec.process_times, "__defaults__", (1,))
    monkeypatch.setattr(sys, "argv", ["codec.py", str(run_of("grid")), "--finetune-epochs", "1", "--threads", "1"])
    codec.main()
    out = capsys.readouterr().out
    assert all(f"| {name} | " in out for name in codec.variants(1)) and executed == [0, 0, 0, 0]
    assert "Huffman (HNeRV)" in out and "symbols in" in out
    assert "above the empirical entropy of their symbols, all included" in out
    assert out.splitlines()[-1].startswith("commands: encode --no-measure ")


def test_huffman_bits(monkeypatch):
    """Against code lengths by hand: 1, 2, 3, 3 bits for 4, 2, 1, 1 symbols."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import codec

    assert codec.huffman_bits([4, 2, 0, 1, 1]) == 4 * 1 + 2 * 2 + 3 + 3
