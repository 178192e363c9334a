"""`hnerv info`: the parts of a file, which sum to it."""

from __future__ import annotations

import json

import pytest

from hnerv.codec import open_single_chunk

PARTS = "header embedding decoder.stem decoder.stages.0 decoder.stages.1 decoder.stages.2 rgb_head clip_head file"


@pytest.mark.parametrize("kind", ["grid", "encoder", "pe", "convnext"])
def test_parts_and_rates_sum_to_the_file(coded, hnerv_main, capsys, kind):
    path = coded(kind)
    assert hnerv_main("info", path) == 0
    out, err = capsys.readouterr()
    assert err == "" and "segment" not in out
    size, model = path.stat().st_size, open_single_chunk(path).model()
    rows = [line.split() for line in out[out.index("part ") :].splitlines()][1:]
    assert [row[0] for row in rows] == [part for part in PARTS.split() if (kind, part) != ("convnext", "decoder.stem")]
    for column, expected in ((1, sum(p.numel() for p in model.parameters())), (3, size)):
        *parts, total = (int(row[column].replace(",", "").replace("-", "0")) for row in rows)
        assert sum(parts) == total == expected
    assert float(rows[-1][4]) == pytest.approx(8 * size / (12 * 32 * 64), abs=1e-5)
    for words in (
        f"{size:,} bytes, {8 * size / (12 * 32 * 64):.5f} bpp",
        "model    grid, convnext, width 8" if kind == "convnext" else f"model    {kind}, hnerv, width 8",
        "film, crop 32x64 at 0,0 -> 32x64",
        "12 at 24 frames/s; 8 training, 2 unseen",
        "2x4 of 16x16",
    ):
        assert words in out


def test_json(coded, hnerv_main, capsys):
    path = coded("encoder")
    assert hnerv_main("info", path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["file", "bytes", "bpp", "frames", "parts", "encoder", "record"]
    assert found["bytes"] == path.stat().st_size == sum(part["size"] for part in found["parts"])
    assert found["record"]["config"]["model"]["embedding"] == "encoder" and found["encoder"]["weight_bits"] == 8


@pytest.mark.parametrize("case", ["gone", "folder", "other", "cut", "flipped"])
def test_bad_files_end_in_one_line(coded, hnerv_main, tmp_path, capsys, case):
    path, good = tmp_path / "a.hnerv", coded("grid").read_bytes()
    if case == "folder":
        path.mkdir()
    elif case != "gone":
        content = {"other": b"no such thing", "cut": good[:-1], "flipped": good[:100] + b"\0" + good[101:]}[case]
        path.write_bytes(content)
    assert hnerv_main("info", path) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == "" and line.startswith("hnerv info: ") and "a.hnerv" in line and ": " in line[15:]
