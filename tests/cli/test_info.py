"""`hnerv info`: the parts of a file, which sum to it."""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_parts_and_rates_sum_to_the_file(coded, hnerv_main, capsys, embedding):
    path = coded(embedding)
    assert hnerv_main("info", path) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = [line.split() for line in out[out.index("part ") :].splitlines()]
    sizes = {row[0]: int(row[3].replace(",", "")) for row in rows[1:]}
    whole = sizes.pop("file")
    assert whole == path.stat().st_size == sum(sizes.values())
    assert list(sizes)[:2] == ["header", "embedding"] and list(sizes)[-2:] == ["rgb_head", "clip_head"]
    rates = [float(row[4]) for row in rows[1:]]
    assert rates[-1] == pytest.approx(8 * whole / (12 * 32 * 64), abs=1e-5)
    assert sum(rates[:-1]) == pytest.approx(rates[-1], abs=1e-4)
    numbers = [int(row[1].replace(",", "")) for row in rows[2:]]
    assert sum(numbers[:-1]) == numbers[-1]
    assert float(rows[-1][2]) == pytest.approx(8 * whole / numbers[-1], abs=1e-3)
    assert f"{whole:,} bytes, {8 * whole / (12 * 32 * 64):.5f} bpp" in out and f"model    {embedding}" in out


def test_json_says_everything(coded, hnerv_main, capsys):
    path = coded("encoder")
    assert hnerv_main("info", path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == path.stat().st_size == sum(part["size"] for part in told["parts"])
    assert told["bpp"] == 8 * told["bytes"] / (12 * 32 * 64)
    assert told["record"]["config"]["model"]["embedding"] == "encoder" and told["encoder"]["weight_bits"] == 8
    assert told["record"]["scene"]["frames"] == 12


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
