"""benchmarks/gpu.py: its rehearsal as a command, and its schedule, results and table without one. No time is judged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hnerv.errors import UserError

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
WRITES = "import json, sys, time; json.dump({'x': 1}, open(sys.argv[1], 'w')); print('wrote', flush=True); "


@pytest.fixture
def gpu(monkeypatch):
    """The script as a module. A process is stopped half a second before its limit."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu

    monkeypatch.setattr(gpu, "LEAST", 0.0)
    for module in (gpu, sys.modules["processes"]):
        monkeypatch.setattr(module, "GRACE", 0.5)
    yield gpu
    for name in ("gpu", "gpu_plan", "gpu_table", "gpu_results", "processes", "common"):
        sys.modules.pop(name, None)


@pytest.fixture
def run_parts(gpu, tmp_path, monkeypatch):
    """run_parts([(name, code, need)], results, minutes=1) -> failed names. Each part writes {'x': 1}, runs its code."""
    work = tmp_path / "work"
    work.mkdir()

    def run(parts: list[tuple[str, str, float]], results: dict, minutes: float = 1) -> list[str]:
        for name, code, _ in parts:
            (work / f"{name}.py").write_text(WRITES + code)
        made = {
            name: sys.modules["gpu_plan"].Part(need, (f"python {{work}}/{name}.py {{json}}",))
            for name, _, need in parts
        }
        monkeypatch.setattr(gpu, "PARTS", made)
        args = gpu.parse(["--out", str(tmp_path / "out"), "--minutes", str(minutes), "--commit", "abc"])
        return gpu.run_parts([*made], work, args, results)

    return run


def rows_of(table: str) -> dict[str, tuple[str, str]]:
    """{quantity: (value, conditions)} of the first table."""
    lines = table.split("\n\n")[1].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {quantity: (value, conditions) for quantity, value, conditions in cells}


def entry(result: dict, **changes: object) -> dict:
    return {"state": "done", "error": "", "commit": "0123456789", "gpu": "H100", "result": result, **changes}


def table_of(gpu, **parts: dict) -> str:
    return gpu.table({"rehearsal": False, "parts": parts})


def test_the_rehearsal_measures_every_part(gpu, tmp_path):
    """Only quantities of CUDA have no value."""
    command = [sys.executable, str(FOLDER / "gpu.py"), "--rehearse", "--out", str(tmp_path / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "out" / "log.txt").read_text()
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["full.hnerv", "log.txt", "rate.hnerv", "results.json", "table.md"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {name: part["state"] for name, part in results["parts"].items()} == dict.fromkeys(gpu.PARTS, "done")
    text = (tmp_path / "out" / "table.md").read_text()
    assert text in done.stdout and "no measurements" in text
    rows = rows_of(text)
    lacking = {quantity: why for quantity, (value, why) in rows.items() if value == "not measured"}
    assert lacking.pop("GPU") == "the CPU was used instead"
    assert set(lacking.values()) == {"steps are captured only on CUDA"} and len(lacking) == 6
    assert re.fullmatch(r"0 passed, 0 failed, (\d+) skipped of \1", rows["tests marked `cuda`"][0])
    assert text.count("\n| 10 | `") == 2, "ten kernels of each variant, for both decoders"


def test_a_machine_without_a_gpu_is_one_line(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "no CUDA device: pass --rehearse" in line


def test_parts_that_fail_crash_or_exceed_their_limit_report_what_they_have(run_parts, tmp_path):
    """The others run all the same; a child of a stopped part does not outlive it."""
    os.mkfifo(tmp_path / "alive")
    alive = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    child = f"import time; file = open({str(tmp_path / 'alive')!r}, 'wb', 0); file.write(b'x'); time.sleep(60)"
    slow = f"import subprocess; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    results, start = {"rehearsal": False, "parts": {}}, time.monotonic()
    parts = [
        ("raises", "raise SystemExit('no such thing')", 1),
        ("slow", slow, 2),
        ("killed", "import os; os.kill(os.getpid(), 9)", 1),
        ("torn", "open(sys.argv[1], 'w').write('{')", 1),
        ("fine", "", 1),
    ]
    assert run_parts(parts, results, minutes=6 / 60) == ["raises", "killed", "torn"]
    assert time.monotonic() - start < 30
    assert results == json.loads((tmp_path / "out" / "results.json").read_text())
    entries = results["parts"]
    assert [part["state"] for part in entries.values()] == ["failed", "cut short", "failed", "failed", "done"]
    assert entries["torn"]["result"] == {} and "cannot be read" in entries.pop("torn")["error"]
    assert all(part["result"] == {"x": 1} and part["commit"] == "abc" for part in entries.values())
    errors = [part["error"] for part in entries.values()]
    assert re.fullmatch(r"exceeded its limit of \d+ s: wrote", errors.pop(1))
    assert errors == ["no such thing", "killed by signal 9: wrote", ""]
    assert (tmp_path / "out" / "log.txt").read_text().count("\nwrote\n") == 5
    assert os.read(alive, 2) == b"x" and os.read(alive, 1) == b"", "a child would still hold it open"
    os.close(alive)


def test_a_part_takes_what_the_later_ones_do_not_need(gpu):
    """The second case gives a part its own need, though a later one then lacks time."""
    for left, limit in ((200, 130), (90, 30), (20, 20)):
        assert gpu.time_limit(30, [50, 20], left) == limit
    assert gpu.time_limit(20, [], 90) == 90
    for names in (gpu.FIRST, *([name] for name in gpu.PARTS)):
        assert sum(gpu.PARTS[name].need for name in names) < 9 * 60 - 15, "it fits into the nine minutes"


def test_a_second_command_fills_in_and_replaces(gpu, run_parts, tmp_path):
    path = tmp_path / "out" / "results.json"
    for name in ("a", "b", "a"):
        results = gpu.earlier(path, rehearse=False)
        assert run_parts([(name, "", 1)], results) == []
    again = gpu.earlier(path, rehearse=False)
    assert list(again["parts"]) == ["a", "b"] and all(part["result"] == {"x": 1} for part in again["parts"].values())
    assert run_parts([("a", "", 1), ("c", "", 1)], results, minutes=0.001) == []
    assert results["parts"]["a"]["state"] == "done" and results["parts"]["c"]["state"] == "no time was left"
    with pytest.raises(UserError, match="holds measurements: pass another --out"):
        gpu.earlier(path, rehearse=True)


def test_rows_without_a_value_give_the_reason(gpu):
    empty = rows_of(table_of(gpu))
    assert len(empty) == len(sys.modules["gpu_table"].ROWS)
    assert set(empty.values()) == {("not measured", "this part was not run")}
    text = table_of(gpu, speed=entry({}, state="failed", error="out of GPU memory"))
    assert rows_of(text)["decoding"] == ("not measured", "out of GPU memory")
    assert text.startswith("`python benchmarks/gpu.py`, commit 0123456, H100, seed 0.\n")


def test_tests_that_were_cut_short_are_counted(gpu, tmp_path):
    """By pytest with the plugin, killed in the third test: passed ones, and the last error line of the failed one."""
    (tmp_path / "test_a.py").write_text(
        "import os, pytest\n"
        "def test_one(): pass\n"
        "@pytest.mark.skip\ndef test_two(): pass\n"
        "def test_three():\n    print('@result {')\n    assert 1 == len('ab'), 'not one'\n"
        "@pytest.fixture\ndef broken(): raise ValueError('bro|ken')\ndef test_four(broken): pass\n"
        "def test_five(): os.kill(os.getpid(), 9)\n"
        "def test_six(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "-p", "gpu_tests", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(FOLDER)}
    log = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
    found = gpu.result_of_tests(log + '\n@result {"te')
    failures = found.pop("failures")
    assert found == {"selected": 6, "passed": 1, "failed": 1, "error": 1, "skipped": 1}
    assert [failure["message"] for failure in failures] == ["assert 1 == 2", "ValueError: bro|ken"]
    cut = entry({**found, "failures": failures}, state="cut short", gpu="H200")
    text = table_of(gpu, env=entry({"cuda": None, "cores": 4}), tests=cut)
    row = ("1 passed, 2 failed, 1 skipped of 6", "cut short; on H200 at commit 0123456")
    assert rows_of(text)["tests marked `cuda`"] == row
    assert re.search(r"^- `.*test_a\.py::test_three`: assert 1 == 2$", text, re.M)
    assert gpu.result_of_tests("ImportError: no module named decord") == {}


def test_the_second_in_which_a_psnr_was_reached(gpu, tmp_path, train, flags, lines_of):
    """In a small run with an evaluation in every other epoch; then the same run with a torn last line."""
    started = time.time()
    assert train(tmp_path, flags(epochs=5, eval_freq=2)) == 0
    run = tmp_path / "run"
    lines = lines_of(run)
    seconds = [line["seconds"] for line in lines if line["kind"] == "train"]
    quality = [line["Eval/Frame/train_psnr_frame"] for line in lines if line["kind"] == "eval"]
    assert quality == sorted(quality)
    found = gpu.result_of_run(run, started, {"paper": quality[1], "aim": 99.0})
    assert [row[0] for row in found["curve"]] == [2, 4, 5] and [row[3] for row in found["curve"]] == quality
    epoch, trained, wall, psnr, unseen = found["reached"]["paper"]
    assert (epoch, psnr) == (4, quality[1]) and trained == pytest.approx(sum(seconds[:4])) and unseen is not None
    assert sum(seconds[:4]) < wall < time.time() - started
    assert found["reached"]["aim"] is None
    assert len(found["epochs"]) == 5 and found["train_seconds"] == pytest.approx(sum(seconds))
    metrics = run / "metrics.jsonl"
    metrics.write_text("\n".join(metrics.read_text().splitlines()[:3]) + '\n{"kind": "tra')
    assert len(gpu.result_of_run(run, started, {})["curve"]) == 1
    assert gpu.result_of_run(tmp_path / "none", started, {}) == {}


def test_the_loss_of_coding_is_read_from_the_output_of_encode(gpu, finished, tmp_path, hnerv_main, capsys):
    assert hnerv_main("encode", finished, "-o", tmp_path / "a.hnerv") == 0
    found = gpu.loss_of_coding(capsys.readouterr().out)
    assert set(found) == {"training", "unseen"} and all(-3 < value < 3 for value in found.values())
    assert gpu.loss_of_coding("killed") == {}


def test_only_files_with_the_mark_are_collected_and_processes_come_last(gpu):
    files = gpu.test_files()
    assert "tests/test_metrics.py" in files and not any("fleet" in file or "browser" in file for file in files)
    starts = ["subprocess" in (FOLDER.parent / file).read_text() for file in files]
    assert any(starts) and starts == sorted(starts)
