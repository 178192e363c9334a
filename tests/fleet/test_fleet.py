"""A whole fleet on a Ray of this machine: what its runs are worth, and what a fault costs."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hnerv.fleet import driving, engine, table
from hnerv.fleet.ledger import read_marks
from hnerv.fleet.parcels import LATEST

ROOT = Path(__file__).resolve().parents[2]


def manifest(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def begun(output: Path):
    """A condition: a checkpoint has been handed over."""
    return lambda: any(output.glob("*/" + LATEST))


def test_its_runs_are_those_of_the_single_command(fleet, films, words, train, tmp_path, bench, capsys, snapshot):
    rows = [
        {"data": "films/film0"},
        {"data": "films/film1", "name": "other/one", "epochs": 3},
        {"data": "films/gone"},
    ]
    source, output = manifest(tmp_path / "fleet.jsonl", *rows), tmp_path / "fleet"
    assert fleet(source, output, *words()) == 1
    out, err = capsys.readouterr()
    assert "1 of 3 videos failed, for example gone: " in err and len(err.splitlines()) == 1
    for name, film, epochs in (("film0", "film0", 5), ("other/one", "film1", 3)):
        assert train(tmp_path / "single", words(data=films / film, epochs=epochs), name) == 0
        assert bench.equal_runs(output / name, tmp_path / "single" / name)
    found = {row.name: row for row in table.read_rows(output)}
    assert [row.state for row in found.values()] == ["finished", "finished", "failed"]
    assert "is not a file, a folder or one of the clips" in found["gone"].cause
    with (output / "fleet.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    values = [json.loads(line) for line in (output / "film0" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in values if line["kind"] == "eval"][-1]
    assert float(cells[0]["psnr"]) == last["Eval/Frame/train_psnr_frame"]
    assert float(cells[0]["clip_sim"]) == last["Eval/Frame/val_clip_sim"] and cells[0]["retries"] == "0"
    assert all(name in out for name in found)

    before = snapshot(output)
    assert fleet(source, output, *words()) == 1  # tries the failed one again, and nothing else
    after = snapshot(output)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {"fleet.jsonl", "fleet.csv"}
    lines = (output / "fleet.jsonl").read_text().splitlines()
    assert sum('"finished"' in line for line in lines) == 2 and sum('"failed"' in line for line in lines) == 2

    capsys.readouterr()
    assert fleet(source, output, *words(lr=0.5)) == 2  # other settings: refused, not trained over
    assert "no run in" in (err := capsys.readouterr().err) and "another configuration" in err
    assert "--exp-id" not in err and len(err.splitlines()) == 1
    assert snapshot(output) == after


def test_segments_are_tasks_and_end_as_those_of_the_single_command(fleet, films, words, train, tmp_path, bench):
    flags = [*words(data_split="2_3_4", clip_targets=None, clip_weights="none", epochs=2), "--segment-frames", "4"]
    flags += ["--segment-init", "previous"]
    source = manifest(tmp_path / "fleet.jsonl", {"data": "films/film0"})
    assert fleet(source, tmp_path / "fleet", *flags) == 0
    assert train(tmp_path / "single", ["--data", films / "film0", *flags]) == 0
    ours, theirs = tmp_path / "fleet" / "film0", tmp_path / "single" / "run"
    assert (ours / "segments.json").read_bytes() == (theirs / "segments.json").read_bytes()
    for number in range(3):
        one, other = (run / "segments" / f"{number:05d}" for run in (ours, theirs))
        states = [torch.load(run / LATEST) for run in (one, other)]  # their records know the file that they began with
        assert bench.same(*(state["model"] for state in states)) and bench.timeless(one) == bench.timeless(other)
    assert bench.timeless(ours) == bench.timeless(theirs)
    assert table.read_rows(tmp_path / "fleet")[0].state == "finished"


@pytest.fixture
def long(films, words, tmp_path) -> tuple[Path, list[str]]:
    """A fleet of one video, and flags that let it train for a while."""
    return manifest(tmp_path / "fleet.jsonl", {"data": "films/film1"}), words(epochs=80, eval_freq=40, params_freq=40)


@pytest.mark.parametrize("victim", ["worker", "box"])
def test_a_killed_process_costs_the_steps_since_the_checkpoint(
    fleet, cluster, films, long, train, tmp_path, bench, when, capsys, victim
):
    """Be it the worker, or the actor through which it hands over."""
    (source, flags), output, killed = long, tmp_path / "fleet", []
    ready = begun(output)

    def kill(found) -> None:
        killed.append(found[1])
        os.kill(found[0], signal.SIGKILL)

    title, names = ("ray::hnerv ", ["film1"]) if victim == "worker" else ("ray::Box", ["ray::Box"])
    when(lambda: ready() and bench.a_worker(cluster.raylets, names, title), kill)
    assert fleet(source, output, *flags) == 0
    assert len(killed) == 1
    (row,) = table.read_rows(output)
    assert row.retries == 1 and 0 <= row.repeated_steps < 3 * 80
    assert f"1 retry, {row.repeated_steps} steps repeated" in capsys.readouterr().out
    assert train(tmp_path / "single", [*flags, "--data", films / "film1"]) == 0
    assert bench.equal_runs(output / "film1", tmp_path / "single" / "run")


def test_a_stopped_driver_keeps_all_that_was_trained(fleet, films, long, train, tmp_path, bench, when, capsys):
    (source, flags), output = long, tmp_path / "fleet"
    when(begun(output), lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert fleet(source, output, *flags) == 143
    assert "0 of 1 videos are done; run the same command to resume" in capsys.readouterr().err
    assert read_marks(output / "running.json") == {} and not (output / ".lock").exists()
    stopped = torch.load(output / "film1" / LATEST)["progress"]["step"]
    assert 0 < stopped < 3 * 80 and table.read_rows(output)[0].progress == stopped / (3 * 80)
    assert fleet(source, output, *flags) == 0
    assert table.read_rows(output)[0].repeated_steps == 0
    assert train(tmp_path / "single", [*flags, "--data", films / "film1"]) == 0
    assert bench.equal_runs(output / "film1", tmp_path / "single" / "run")


def test_a_video_that_the_worker_does_not_see_is_sent(
    fleet, cluster, films, words, train, tmp_path, bench, monkeypatch
):
    """By way of ray://, where the driver is no part of the cluster."""
    seen, real = [], driving.place_of

    def elsewhere(data: str):
        seen.append(data)
        return real(data)._replace(mark="what is there is not this")

    monkeypatch.setattr(driving, "place_of", elsewhere)
    flags = words(epochs=2)
    source = manifest(tmp_path / "fleet.jsonl", {"data": str(films / "film1")})
    assert fleet(source, tmp_path / "fleet", *flags, address=cluster.for_clients) == 0 and len(seen) == 3
    assert train(tmp_path / "single", [*flags, "--data", films / "film1"], "film1") == 0
    assert bench.equal_runs(tmp_path / "fleet" / "film1", tmp_path / "single" / "film1")
    record = json.loads((tmp_path / "fleet" / "film1" / "config.json").read_text())
    assert record["video"]["source"] == str(films / "film1")


def test_a_second_fleet_in_the_folder_is_refused(fleet, films, words, tmp_path, capsys):
    from hnerv.runs.lock import locked

    (tmp_path / "fleet").mkdir()
    with locked(tmp_path / "fleet"):
        assert fleet(films, tmp_path / "fleet", *words()) == 2
    assert "another fleet is running" in capsys.readouterr().err
    assert not list((tmp_path / "fleet").iterdir())


def test_without_ray_it_is_one_line(films, words, tmp_path, hnerv_main, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert hnerv_main("fleet", films, "-o", tmp_path / "fleet", *words()) == 2
    assert "pip install -e '.[fleet]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ([], "-o is missing"),
        (["-o", "x", "--retries", "-1"], "must be at least 0"),
        (["-o", "x", "--cpus-per-task", "0"], "--cpus-per-task 0 would run all tasks at once"),
        (["-o", "x", "--gpus-per-task", "1.5"], "--gpus-per-task 1.5 must be an integer or a fraction below 1"),
        (["-o", "x", "--cpus-per-task", "nan"], "must be finite"),
        (["-o", "x", "--gpus-per-task", "inf"], "must be finite"),
        (["-o", "x", "--memory-per-task", "much"], "'much' is not a size"),
        (["-o", "x", "--segment-init", "previous"], "--segment-init needs"),
        (["-o", "x", "--epochs", "0"], "--epochs 0 must be at least 1"),
        (["-o", "x", "--preset", "none"], "none"),
        (["-o", "x", "--compile"], "--compile is not a flag of hnerv fleet: remove it; each worker"),
        (
            ["-o", "x", "--exp-id", "a"],
            "--exp-id is not a flag of hnerv fleet: remove it; each run is named after its video",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(films, hnerv_main, tmp_path, monkeypatch, capsys, flags, match):
    monkeypatch.chdir(tmp_path)
    assert hnerv_main("fleet", films, *flags) == 2
    assert match in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_more_threads_than_any_machine_has_are_refused(films, tmp_path, capsys):
    from hnerv.cli import main

    with pytest.raises(SystemExit, match="2"):
        main(["fleet", str(films), "-o", str(tmp_path / "x"), "--threads", "99999999999"])
    assert "--threads 99999999999 is above" in capsys.readouterr().err and not (tmp_path / "x").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="Ray ignores TMPDIR there, and sockets have other limits")
@pytest.mark.parametrize(("name", "other"), [("TMPDIR", "RAY_TMPDIR"), ("RAY_TMPDIR", "TMPDIR")])
def test_where_ray_puts_its_sockets(monkeypatch, caplog, name, other):
    """Where Ray would, as long as they fit into the 108 bytes of a sockaddr_un, the last of which is 0."""
    monkeypatch.delenv(other, raising=False)
    ours = "/ray/session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store"
    monkeypatch.setenv(name, "/" + "x" * (106 - len(ours)))
    with socket.socket(socket.AF_UNIX) as one, pytest.raises(FileNotFoundError):
        one.bind(os.environ[name] + ours)
    assert engine.short_folder() == {} and not caplog.records
    monkeypatch.setenv(name, os.environ[name] + "x")
    with socket.socket(socket.AF_UNIX) as one, pytest.raises(OSError, match="too long"):
        one.bind(os.environ[name] + ours)
    assert engine.short_folder() == {"_temp_dir": "/tmp/ray"}
    assert f"{name} has 40 bytes, too long for Ray's sockets (at most 39)" in caplog.text


def test_a_ray_of_its_own_is_started_and_stopped(films, words, tmp_path):
    """In a process of its own, as a user runs it: nothing but our lines, and no process is left."""
    shutil.rmtree(films / "film0")
    code = "from hnerv.cli import main; main()"
    command = [sys.executable, "-c", code, "fleet", films, "-o", tmp_path / "fleet", *words(epochs=1)]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=300, start_new_session=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "1 video: 1 finished" in done.stdout


def test_the_rehearsal_ends(tmp_path):
    """The command of the results, with fewer tasks."""
    pytest.importorskip("ray")
    command = [sys.executable, ROOT / "benchmarks" / "fleet.py", "rehearsal", tmp_path / "fleet", "--tasks", "5"]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=300, start_new_session=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["tasks"] == 5


@pytest.mark.campaign
def test_three_nodes_twelve_clips_and_three_faults(tmp_path, bench):
    pytest.importorskip("ray")
    found = bench.faults(tmp_path / "fleet")
    assert found["clips"] == found["equal"] == 12 and len(found["faults"]) == 3
    assert found["retries"] >= 3 and found["steps_repeated"] < found["steps"] / 4
