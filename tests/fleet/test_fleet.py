"""Complete fleets on a Ray of this machine: runs equal those of the single command, also after faults."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hnerv.fleet import cluster as cluster_module
from hnerv.fleet.status import fleet_statuses
from hnerv.runs import RUN_FILES
from hnerv.storage import Storage

ROOT = Path(__file__).resolve().parents[2]


def begun(output: Path):
    """A condition: the first checkpoint is in storage."""
    return lambda: any(output.glob("*/checkpoints/latest.pt"))


def statuses(output: Path) -> list:
    return list(fleet_statuses(Storage(str(output))).values())


def test_runs_equal_those_of_the_single_command(
    fleet, hnerv_main, clips, words, train, manifest, tmp_path, bench, capsys, snapshot
):
    rows = [{"data": "clip0"}, {"data": "clip1", "name": "other/one", "epochs": 3}, {"data": "gone"}]
    rows = [row | {"data": str(clips / row["data"])} for row in rows]
    source, output = manifest(*rows), tmp_path / "fleet"
    assert fleet(source, output, *words()) == 1
    out, err = capsys.readouterr()
    assert "1 of 3 videos failed, for example gone: " in err and len(err.splitlines()) == 1
    for name, film, epochs in (("clip0", "clip0", 5), ("other/one", "clip1", 3)):
        assert train(tmp_path / "single", words(data=clips / film, epochs=epochs), name) == 0
        assert bench.equal_runs(output / name, tmp_path / "single" / name)
    with (output / "fleet.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    states = {row["name"]: row["state"] for row in cells}
    assert states == {"clip0": "finished", "other/one": "finished", "gone": "failed"}
    assert "is not a file, a folder or one of the clips" in cells[2]["cause"]
    values = [json.loads(line) for line in (output / "clip0" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in values if line["kind"] == "eval"][-1]
    assert float(cells[0]["psnr"]) == last["Eval/Frame/train_psnr_frame"]
    assert float(cells[0]["clip_sim"]) == last["Eval/Frame/val_clip_sim"] and cells[0]["retries"] == "0"
    assert all(row["name"] in out for row in cells) and not (output / "lease.json").exists()

    before = snapshot(output)
    assert hnerv_main("fleet", source, "-o", output, "--task", "1/1", *words()) == 1  # trains only the failed one
    after = snapshot(output)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {"gone/status.json", "fleet.csv"}

    capsys.readouterr()
    assert fleet(source, output, *words(lr=0.5)) == 2
    assert "clip0 in " in (err := capsys.readouterr().err) and len(err.splitlines()) == 1
    assert "was started with other settings (lr is 0.004, this command has 0.5): pass those, " in err
    assert snapshot(output) == after


def test_segments_equal_those_of_the_single_command(hnerv_main, clips, words, train, manifest, tmp_path, bench):
    flags = [*words(data_split="2_3_4", clip_targets=None, clip_weights="none", epochs=2), "--segment-frames", "4"]
    flags += ["--segment-init", "previous"]
    source = manifest({"data": str(clips / "clip0")})
    assert hnerv_main("fleet", source, "-o", tmp_path / "fleet", "--task", "1/1", *flags) == 0
    assert train(tmp_path / "single", ["--data", clips / "clip0", *flags]) == 0
    ours, theirs = tmp_path / "fleet" / "clip0", tmp_path / "single" / "run"
    assert (ours / "segments.json").read_bytes() == (theirs / "segments.json").read_bytes()
    for number in range(3):
        one, other = (run / "segments" / f"{number:05d}" for run in (ours, theirs))
        states = [torch.load(run / "checkpoints" / "latest.pt") for run in (one, other)]
        # Records differ: they name the initial checkpoint.
        assert bench.same(*(state["model"] for state in states)) and bench.timeless(one) == bench.timeless(other)
    assert bench.timeless(ours) == bench.timeless(theirs)
    (status,) = statuses(tmp_path / "fleet")
    assert (status.state, status.progress, status.trained) == ("finished", 1.0, 2 * 3)


@pytest.fixture
def long(manifest, clips, words) -> tuple[Path, list[str]]:
    """A fleet of one video, and flags with which it trains for a while."""
    return manifest({"data": str(clips / "clip1")}), words(epochs=80, eval_freq=40, params_freq=40)


@pytest.fixture(scope="module")
def long_single(tmp_path_factory, train, clips, words) -> Path:
    """The run of `long` by the single command."""
    output = tmp_path_factory.mktemp("single")
    assert train(output, words(epochs=80, eval_freq=40, params_freq=40, data=clips / "clip1")) == 0
    return output / "run"


def test_a_killed_worker_costs_the_steps_since_the_checkpoint(
    fleet, cluster, long, long_single, tmp_path, bench, when, capsys
):
    (source, flags), output, killed = long, tmp_path / "fleet", []
    ready = begun(output)

    def kill(found) -> None:
        killed.append(found[1])
        os.kill(found[0], signal.SIGKILL)

    when(lambda: ready() and bench.a_worker(cluster.raylets, ["clip1"]), kill)
    assert fleet(source, output, *flags) == 0
    assert killed == ["clip1"]
    (status,) = statuses(output)
    assert status.retries == 1 and 0 <= status.repeated_steps < 3 * 80
    assert f"1 retry, {status.repeated_steps} steps repeated" in capsys.readouterr().out
    assert bench.equal_runs(output / "clip1", long_single)


def test_a_stopped_driver_repeats_no_steps(fleet, hnerv_main, long, long_single, tmp_path, bench, when, capsys):
    (source, flags), output = long, tmp_path / "fleet"
    when(begun(output), lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert fleet(source, output, *flags) == 143
    assert capsys.readouterr().err == "hnerv fleet: stopped; run the same command to resume\n"
    stopped = torch.load(output / "clip1" / "checkpoints" / "latest.pt")["progress"]["step"]
    (status,) = statuses(output)
    assert status.state == "stopped" and status.progress == stopped / (3 * 80) < 1
    assert hnerv_main("fleet", source, "-o", output, "--task", "1/1", *flags) == 0
    (status,) = statuses(output)
    assert (status.retries, status.repeated_steps, status.trained) == (0, 0, 3 * 80 - stopped)
    assert bench.equal_runs(output / "clip1", long_single)


def test_a_fleet_in_s3_through_a_client(fleet, cluster, s3, manifest, clips, words, train, tmp_path, bench):
    """Through ray://, where the driver is not part of the cluster."""
    address, flags, data = s3("calm"), words(epochs=2), str(clips / "clip0")
    assert fleet(manifest({"data": data}), address, *flags, address=cluster.for_clients) == 0
    assert train(tmp_path / "single", [*flags, "--data", data], "clip0") == 0
    assert bench.equal_runs(
        Storage(address).fetch("clip0", RUN_FILES, tmp_path / "copy"), tmp_path / "single" / "clip0"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="Ray ignores TMPDIR there, and sockets have other limits")
@pytest.mark.parametrize(("name", "other"), [("TMPDIR", "RAY_TMPDIR"), ("RAY_TMPDIR", "TMPDIR")])
def test_a_temporary_folder_too_long_for_sockets(monkeypatch, name, other):
    """Paths of sockets must fit into the 108 bytes of a sockaddr_un with a final 0."""
    monkeypatch.delenv(other, raising=False)
    ours = "/ray/session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store"
    monkeypatch.setenv(name, "/" + "x" * (106 - len(ours)))
    with socket.socket(socket.AF_UNIX) as one, pytest.raises(FileNotFoundError):
        one.bind(os.environ[name] + ours)
    assert cluster_module._folder() == {}
    monkeypatch.setenv(name, os.environ[name] + "x")
    with socket.socket(socket.AF_UNIX) as one, pytest.raises(OSError, match="too long"):
        one.bind(os.environ[name] + ours)
    assert cluster_module._folder() == {"_temp_dir": "/tmp/ray"}


def test_a_local_ray_is_started_and_stopped(manifest, clips, words, tmp_path):
    """In a separate process, as a user runs it: no output of Ray."""
    pytest.importorskip("ray")
    source = manifest({"data": str(clips / "clip0")})
    code = "from hnerv.cli import main; main()"
    command = [sys.executable, "-c", code, "fleet", source, "-o", tmp_path / "fleet", *words(epochs=1)]
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
@pytest.mark.parametrize("flags", [[], ["--storage", "s3", "--failing-writes", "0.2"]], ids=["folder", "failing S3"])
def test_three_nodes_twelve_clips_and_three_faults(tmp_path, flags):
    for module in ("ray", "moto", "s3fs"):
        pytest.importorskip(module)
    command = [sys.executable, ROOT / "benchmarks" / "fleet.py", "faults", tmp_path / "fleet", *flags]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["clips"] == found["equal"] == 12 and len(found["faults"]) == 3
    assert found["retries"] >= 3 and found["steps_repeated"] < found["steps"] / 4
    assert (found["writes_refused"] > 0) == bool(flags)
