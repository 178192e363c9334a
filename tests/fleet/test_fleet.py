"""Complete fleets on a Ray of this machine: runs equal those of the single command, also after faults."""

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

from hnerv.fleet import driver as driver_module
from hnerv.fleet import engine, table
from hnerv.fleet.ledger import read_progress
from hnerv.fleet.transfers import LATEST

ROOT = Path(__file__).resolve().parents[2]


def manifest(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def begun(output: Path):
    """A condition: the driver has received a checkpoint."""
    return lambda: any(output.glob("*/" + LATEST))


def test_runs_equal_those_of_the_single_command(fleet, clips, words, train, tmp_path, bench, capsys, snapshot):
    rows = [
        {"data": "clips/clip0"},
        {"data": "clips/clip1", "name": "other/one", "epochs": 3},
        {"data": "clips/gone"},
    ]
    source, output = manifest(tmp_path / "fleet.jsonl", *rows), tmp_path / "fleet"
    assert fleet(source, output, *words()) == 1
    out, err = capsys.readouterr()
    assert "1 of 3 videos failed, for example gone: " in err and len(err.splitlines()) == 1
    for name, film, epochs in (("clip0", "clip0", 5), ("other/one", "clip1", 3)):
        assert train(tmp_path / "single", words(data=clips / film, epochs=epochs), name) == 0
        assert bench.equal_runs(output / name, tmp_path / "single" / name)
    found = {row.name: row for row in table.read_rows(output)}
    assert [row.state for row in found.values()] == ["finished", "finished", "failed"]
    assert "is not a file, a folder or one of the clips" in found["gone"].cause
    with (output / "fleet.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    values = [json.loads(line) for line in (output / "clip0" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in values if line["kind"] == "eval"][-1]
    assert float(cells[0]["psnr"]) == last["Eval/Frame/train_psnr_frame"]
    assert float(cells[0]["clip_sim"]) == last["Eval/Frame/val_clip_sim"] and cells[0]["retries"] == "0"
    assert all(name in out for name in found)

    before = snapshot(output)
    assert fleet(source, output, *words()) == 1  # retries only the failed one
    after = snapshot(output)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {"fleet.jsonl", "fleet.csv"}
    lines = (output / "fleet.jsonl").read_text().splitlines()
    assert sum('"finished"' in line for line in lines) == 2 and sum('"failed"' in line for line in lines) == 2

    capsys.readouterr()
    assert fleet(source, output, *words(lr=0.5)) == 2  # other settings
    assert "no run in" in (err := capsys.readouterr().err) and "another configuration" in err
    assert "--exp-id" not in err and len(err.splitlines()) == 1
    assert snapshot(output) == after


def test_segments_equal_those_of_the_single_command(fleet, clips, words, train, tmp_path, bench):
    flags = [*words(data_split="2_3_4", clip_targets=None, clip_weights="none", epochs=2), "--segment-frames", "4"]
    flags += ["--segment-init", "previous"]
    source = manifest(tmp_path / "fleet.jsonl", {"data": "clips/clip0"})
    assert fleet(source, tmp_path / "fleet", *flags) == 0
    assert train(tmp_path / "single", ["--data", clips / "clip0", *flags]) == 0
    ours, theirs = tmp_path / "fleet" / "clip0", tmp_path / "single" / "run"
    assert (ours / "segments.json").read_bytes() == (theirs / "segments.json").read_bytes()
    for number in range(3):
        one, other = (run / "segments" / f"{number:05d}" for run in (ours, theirs))
        states = [torch.load(run / LATEST) for run in (one, other)]  # records differ: they name the initial checkpoint
        assert bench.same(*(state["model"] for state in states)) and bench.timeless(one) == bench.timeless(other)
    assert bench.timeless(ours) == bench.timeless(theirs)
    assert table.read_rows(tmp_path / "fleet")[0].state == "finished"


@pytest.fixture
def long(clips, words, tmp_path) -> tuple[Path, list[str]]:
    """A fleet of one video, and flags with which it trains for a while."""
    return manifest(tmp_path / "fleet.jsonl", {"data": "clips/clip1"}), words(epochs=80, eval_freq=40, params_freq=40)


@pytest.mark.parametrize("victim", ["worker", "mailbox"])
def test_a_killed_process_costs_the_steps_since_the_checkpoint(
    fleet, cluster, clips, long, train, tmp_path, bench, when, capsys, victim
):
    (source, flags), output, killed = long, tmp_path / "fleet", []
    ready = begun(output)

    def kill(found) -> None:
        killed.append(found[1])
        os.kill(found[0], signal.SIGKILL)

    title, names = ("ray::hnerv ", ["clip1"]) if victim == "worker" else ("ray::Mailbox", ["ray::Mailbox"])
    when(lambda: ready() and bench.a_worker(cluster.raylets, names, title), kill)
    assert fleet(source, output, *flags) == 0
    assert len(killed) == 1
    (row,) = table.read_rows(output)
    assert row.retries == 1 and 0 <= row.repeated_steps < 3 * 80
    assert f"1 retry, {row.repeated_steps} steps repeated" in capsys.readouterr().out
    assert train(tmp_path / "single", [*flags, "--data", clips / "clip1"]) == 0
    assert bench.equal_runs(output / "clip1", tmp_path / "single" / "run")


def test_a_stopped_driver_repeats_no_steps(fleet, clips, long, train, tmp_path, bench, when, capsys):
    (source, flags), output = long, tmp_path / "fleet"
    when(begun(output), lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert fleet(source, output, *flags) == 143
    assert "0 of 1 videos are done; run the same command to resume" in capsys.readouterr().err
    assert read_progress(output / "running.json") == {} and not (output / ".lock").exists()
    stopped = torch.load(output / "clip1" / LATEST)["progress"]["step"]
    assert 0 < stopped < 3 * 80 and table.read_rows(output)[0].progress == stopped / (3 * 80)
    assert fleet(source, output, *flags) == 0
    assert table.read_rows(output)[0].repeated_steps == 0
    assert train(tmp_path / "single", [*flags, "--data", clips / "clip1"]) == 0
    assert bench.equal_runs(output / "clip1", tmp_path / "single" / "run")


def test_a_video_missing_on_the_worker_is_sent(fleet, cluster, clips, words, train, tmp_path, bench, monkeypatch):
    """Through ray://, where the driver is not part of the cluster."""
    seen, real = [], driver_module.driver_location

    def elsewhere(data: str):
        seen.append(data)
        return real(data)._replace(fingerprint="other content")

    monkeypatch.setattr(driver_module, "driver_location", elsewhere)
    flags = words(epochs=2)
    source = manifest(tmp_path / "fleet.jsonl", {"data": str(clips / "clip1")})
    assert fleet(source, tmp_path / "fleet", *flags, address=cluster.for_clients) == 0 and len(seen) == 3
    assert train(tmp_path / "single", [*flags, "--data", clips / "clip1"], "clip1") == 0
    assert bench.equal_runs(tmp_path / "fleet" / "clip1", tmp_path / "single" / "clip1")
    record = json.loads((tmp_path / "fleet" / "clip1" / "config.json").read_text())
    assert record["video"]["source"] == str(clips / "clip1")


def test_a_second_fleet_in_the_folder_is_refused(fleet, clips, words, tmp_path, capsys):
    from hnerv.runs.lock import locked

    (tmp_path / "fleet").mkdir()
    with locked(tmp_path / "fleet"):
        assert fleet(clips, tmp_path / "fleet", *words()) == 2
    assert "another fleet is running" in capsys.readouterr().err
    assert not list((tmp_path / "fleet").iterdir())


def test_a_missing_ray_is_one_line(clips, words, tmp_path, hnerv_main, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert hnerv_main("fleet", clips, "-o", tmp_path / "fleet", *words()) == 2
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
def test_invalid_flags(clips, hnerv_main, tmp_path, monkeypatch, capsys, flags, match):
    monkeypatch.chdir(tmp_path)
    assert hnerv_main("fleet", clips, *flags) == 2
    assert match in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_too_many_threads(clips, tmp_path, capsys):
    from hnerv.cli import main

    with pytest.raises(SystemExit, match="2"):
        main(["fleet", str(clips), "-o", str(tmp_path / "x"), "--threads", "99999999999"])
    assert "--threads 99999999999 is above" in capsys.readouterr().err and not (tmp_path / "x").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="Ray ignores TMPDIR there, and sockets have other limits")
@pytest.mark.parametrize(("name", "other"), [("TMPDIR", "RAY_TMPDIR"), ("RAY_TMPDIR", "TMPDIR")])
def test_a_temporary_folder_too_long_for_sockets(monkeypatch, caplog, name, other):
    """Paths of sockets must fit into the 108 bytes of a sockaddr_un with a final 0."""
    monkeypatch.delenv(other, raising=False)
    ours = "/ray/session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store"
    monkeypatch.setenv(name, "/" + "x" * (106 - len(ours)))
    with socket.socket(socket.AF_UNIX) as one, pytest.raises(FileNotFoundError):
        one.bind(os.environ[name] + ours)
    assert engine.ray_folder() == {} and not caplog.records
    monkeypatch.setenv(name, os.environ[name] + "x")
    with socket.socket(socket.AF_UNIX) as one, pytest.raises(OSError, match="too long"):
        one.bind(os.environ[name] + ours)
    assert engine.ray_folder() == {"_temp_dir": "/tmp/ray"}
    assert f"{name} has 40 bytes, too long for Ray's sockets (at most 39)" in caplog.text


def test_a_local_ray_is_started_and_stopped(clips, words, tmp_path):
    """In a separate process, as a user runs it: no output of Ray."""
    shutil.rmtree(clips / "clip0")
    code = "from hnerv.cli import main; main()"
    command = [sys.executable, "-c", code, "fleet", clips, "-o", tmp_path / "fleet", *words(epochs=1)]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=300, start_new_session=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "1 video: 1 finished" in done.stdout


def test_the_rehearsal_benchmark(tmp_path):
    """The command of docs/results.md with fewer tasks."""
    pytest.importorskip("ray")
    command = [sys.executable, ROOT / "benchmarks" / "fleet.py", "rehearsal", tmp_path / "fleet", "--tasks", "5"]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=300, start_new_session=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["tasks"] == 5


@pytest.mark.campaign
def test_three_nodes_twelve_clips_and_three_faults(tmp_path, bench):
    pytest.importorskip("ray")
    found = bench.faults(tmp_path / "fleet")
    assert found["clips"] == found["equal"] == 12 and len(found["faults"]) == 3
    assert found["retries"] >= 3 and found["steps_repeated"] < found["steps"] / 4
