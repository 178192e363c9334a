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
    """The script as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu

    yield gpu
    for name in ("gpu", "gpu_table", "processes"):
        sys.modules.pop(name, None)


@pytest.fixture
def setting(gpu, tmp_path):
    (tmp_path / "work").mkdir()
    return gpu.Setting(tmp_path / "work", True, "", [])


@pytest.fixture
def part(gpu, setting):
    """part(name, code) -> a part that writes {'x': 1} for its result, then runs `code`."""

    def build(name: str, code: str, need: float = 30):
        words = [sys.executable, "-c", WRITES + code, str(setting.work / f"{name}.json")]
        return gpu.Part(name, need, lambda setting: [words], gpu.written(name))

    return build


def rows_of(table: str) -> dict[str, tuple[str, str]]:
    """{quantity: (value, conditions)} of the first table."""
    lines = table.split("\n\n")[1].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {quantity: (value, how) for quantity, value, how in cells}


def test_the_rehearsal_measures_every_part(tmp_path):
    """Quantities that only CUDA has say so; everything else has a value."""
    words = [sys.executable, str(FOLDER / "gpu.py"), "--rehearse", "--out", str(tmp_path / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "out" / "log.txt").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "full.hnerv", "log.txt", "results.json", "table.md"
    ]  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {name: entry["state"] for name, entry in results["parts"].items()} == dict.fromkeys(
        ("env", "full", "codec", "tests", "profile", "speed", "split"), "done"
    )
    text = (tmp_path / "out" / "table.md").read_text()
    assert text in done.stdout and "no measurements" in text
    rows = rows_of(text)
    lacking = {quantity: how for quantity, (value, how) in rows.items() if value == "not measured"}
    assert lacking.pop("GPU") == "the CPU was used instead"
    assert set(lacking.values()) == {"steps are captured only on CUDA"} and len(lacking) == 3
    assert rows["tests marked `cuda`"][0].startswith("0 passed, 0 failed")
    assert text.count("\n| 10 | `") == 1, "ten kernels of each variant"


def test_a_machine_without_a_gpu_is_one_line(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "no CUDA device: pass --rehearse" in line


def test_a_part_that_fails_crashes_or_runs_over_its_limit_takes_no_other_part(
    gpu, setting, part, tmp_path, monkeypatch
):
    """Each reports the result it had written; a child of a stopped part does not outlive it."""
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    monkeypatch.setattr(gpu, "LEAST", 0.0)
    monkeypatch.setattr(sys.modules["processes"], "GRACE", 0.5)
    os.mkfifo(tmp_path / "alive")
    alive = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    child = f"import time; file = open({str(tmp_path / 'alive')!r}, 'wb', 0); file.write(b'x'); time.sleep(60)"
    slow = f"import subprocess; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    parts = [
        part("raises", "raise SystemExit('no such thing')", 1),
        part("slow", slow, 3),
        part("killed", "import os; os.kill(os.getpid(), 9)", 1),
        part("fine", "", 1),
    ]
    args = gpu.parse(["--out", str(tmp_path / "out"), "--minutes", str(6 / 60), "--commit", "abc"])
    results = {"rehearsal": False, "parts": {}}
    start = time.monotonic()
    failed = gpu.run_parts(parts, setting, args, results)
    assert failed == ["raises", "killed"] and time.monotonic() - start < 30
    assert results == json.loads((tmp_path / "out" / "results.json").read_text())
    entries = results["parts"]
    assert [entry["state"] for entry in entries.values()] == ["failed", "cut short", "failed", "done"]
    assert all(entry["result"] == {"x": 1} and entry["commit"] == "abc" for entry in entries.values())
    errors = [entry["error"] for entry in entries.values()]
    assert re.fullmatch(r"exceeded its limit of \d+ s: wrote", errors.pop(1))
    assert errors == ["no such thing", "killed by signal 9: wrote", ""]
    assert (tmp_path / "out" / "log.txt").read_text().count("\nwrote\n") == 4
    assert os.read(alive, 2) == b"x" and os.read(alive, 1) == b"", "a child would still hold it open"
    os.close(alive)


def test_a_part_takes_what_the_later_ones_do_not_need(gpu, part):
    first, *later = part("a", "", 30), part("b", "", 50), part("c", "", 20)
    assert gpu.time_limit(first, later, 200) == 130
    assert gpu.time_limit(first, later, 90) == 30, "its own need, though a later one comes short"
    assert gpu.time_limit(first, later, 20) == 20
    assert gpu.time_limit(later[-1], [], 90) == 90
    assert sum(p.need for p in gpu.PARTS.values()) < 9 * 60 - 15, "every part fits into the nine minutes"


def test_no_time_left_is_said_and_keeps_an_earlier_result(gpu, setting, part, tmp_path):
    args = gpu.parse(["--out", str(tmp_path), "--minutes", "0.01"])
    old = {"state": "done", "result": {"x": 2}, "error": "", "commit": "", "gpu": ""}
    results = {"rehearsal": False, "parts": {"a": old}}
    assert gpu.run_parts([part("a", ""), part("b", "")], setting, args, results) == []
    assert results["parts"]["a"] == old and results["parts"]["b"]["state"] == "no time was left"


def test_a_second_command_fills_in_and_replaces(gpu, setting, part, tmp_path):
    args = gpu.parse(["--out", str(tmp_path)])
    for name in ("a", "b", "a"):
        results = gpu.earlier(tmp_path / "results.json", rehearse=False)
        assert gpu.run_parts([part(name, "")], setting, args, results) == []
    again = gpu.earlier(tmp_path / "results.json", rehearse=False)
    assert list(again["parts"]) == ["a", "b"] and all(e["result"] == {"x": 1} for e in again["parts"].values())
    with pytest.raises(UserError, match="holds measurements: pass another --out"):
        gpu.earlier(tmp_path / "results.json", rehearse=True)


def test_a_result_that_cannot_be_read_is_a_failure_of_its_part(gpu, setting, part, tmp_path):
    broken = part("a", "open(sys.argv[1], 'w').write('{')")
    entry = gpu.run_part(broken, setting, 60, tmp_path / "log.txt")
    assert entry["state"] == "failed" and entry["result"] == {} and "cannot be read" in entry["error"]


def test_without_results_every_row_says_why(gpu):
    empty = rows_of(gpu.table({"rehearsal": False, "parts": {}}))
    assert len(empty) == len(sys.modules["gpu_table"].ROWS) and set(empty.values()) == {
        ("not measured", "this part was not run")
    }
    entry = {"state": "failed", "result": {}, "error": "out of GPU memory", "commit": "0123456789", "gpu": "H100"}
    rows = rows_of(gpu.table({"rehearsal": False, "parts": {"speed": entry}}))
    assert rows["decoding"] == ("not measured", "out of GPU memory")
    assert gpu.table({"rehearsal": False, "parts": {"speed": entry}}).startswith(
        "`python benchmarks/gpu.py`, commit 0123456, H100, seed 0.\n"
    )
    assert rows["GPU"] == ("not measured", "this part was not run")


def test_a_part_of_another_machine_says_so(gpu):
    entry = {"state": "done", "error": "", "commit": "0123456789", "gpu": "H100", "result": {"cuda": None, "cores": 4}}
    tests = {**entry, "state": "cut short", "gpu": "H200", "result": gpu.result_of_tests("a.py::b PASSED [ 1%]")}
    rows = rows_of(gpu.table({"rehearsal": False, "parts": {"env": entry, "tests": tests}}))
    assert rows["tests marked `cuda`"] == ("1 passed, 0 failed, 0 skipped", "cut short; on H200 at commit 0123456")


def test_outcomes_of_tests(gpu):
    """As pytest prints them, torn in the middle of a line."""
    log = """collected 4 items
tests/test_a.py::test_one[0.5] PASSED                       [ 25%]
tests/test_a.py::test_two[a b] FAILED                       [ 50%]
tests/test_a.py::test_three SKIPPED (needs a CUDA device)   [ 75%]
tests/test_a.py::test_four ERROR                            [100%]
=========== short test summary info ===========
FAILED tests/test_a.py::test_two[a b] - AssertionError: 1 != 2
ERROR tests/test_a.py::test_four
tests/test_a.py::test_fi"""
    found = gpu.result_of_tests(log)
    assert {name: found[name] for name in ("passed", "failed", "skipped", "error")} == {
        "passed": 1, "failed": 1, "skipped": 1, "error": 1
    }  # fmt: skip
    assert found["failures"] == [
        {"test": "tests/test_a.py::test_two[a b]", "message": "AssertionError: 1 != 2"},
        {"test": "tests/test_a.py::test_four", "message": ""},
    ]
    assert gpu.result_of_tests("ImportError: no module named decord") == {}


def test_the_second_in_which_a_psnr_was_reached(gpu, tmp_path, train, flags, lines_of):
    """Of a run in miniature that evaluates every other epoch; then of the same with a torn last line."""
    started = time.time()
    assert train(tmp_path, flags(epochs=5, eval_freq=2)) == 0
    run = tmp_path / "run"
    lines = lines_of(run)
    seconds = [line["seconds"] for line in lines if line["kind"] == "train"]
    quality = [line["Eval/Frame/train_psnr_frame"] for line in lines if line["kind"] == "eval"]
    assert quality == sorted(quality)
    found = gpu.result_of_run(run, started, quality[1])
    assert [row[0] for row in found["curve"]] == [2, 4, 5] and [row[3] for row in found["curve"]] == quality
    epoch, trained, clock, psnr, unseen = found["reached"]["evaluation"]
    assert (epoch, psnr) == (4, quality[1]) and trained == pytest.approx(sum(seconds[:4])) and unseen is not None
    assert sum(seconds[:4]) < clock < time.time() - started
    assert gpu.result_of_run(run, started, 99.0)["reached"] == {"evaluation": None, "epoch": None}
    assert len(found["epochs"]) == 5 and found["train_seconds"] == pytest.approx(sum(seconds))
    metrics = run / "metrics.jsonl"
    metrics.write_text("\n".join(metrics.read_text().splitlines()[:3]) + '\n{"kind": "tra')
    assert len(gpu.result_of_run(run, started, 1.0)["curve"]) == 1
    assert gpu.result_of_run(tmp_path / "none", started, 1.0) == {}


def test_the_loss_of_coding_is_read_from_what_encode_prints(gpu, finished, tmp_path, hnerv_main, capsys):
    assert hnerv_main("encode", finished, "-o", tmp_path / "a.hnerv") == 0
    found = gpu.loss_of_coding(capsys.readouterr().out)
    assert set(found) == {"training", "unseen"} and all(-3 < value < 3 for value in found.values())
    assert gpu.loss_of_coding("killed") == {}


def test_only_files_that_use_the_mark_are_collected(gpu, setting):
    (words,) = gpu.pytest_commands(setting)
    files = {word for word in words if word.endswith(".py")}
    assert "tests/test_cuda.py" in files and not any("fleet" in file or "browser" in file for file in files)
