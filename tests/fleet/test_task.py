"""Training one video in this process: hand-overs, attempts that were cut off or replaced, errors."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time

import pytest

from hnerv.config import LogConfig
from hnerv.errors import Interrupted
from hnerv.flags import parse_train
from hnerv.fleet import task as task_module
from hnerv.fleet.manifest import FleetVideo, manifest_text
from hnerv.fleet.status import Status, read_status, write_status
from hnerv.fleet.task import HandOver, TaskOptions, train_video
from hnerv.runs import ChunkOptions
from hnerv.storage import Storage, StorageError

LATEST = "x/checkpoints/latest.pt"
OPTIONS = TaskOptions(LogConfig(), "cpu", 1, ["hnerv", "fleet"])


@pytest.fixture
def storage(tmp_path, monkeypatch) -> Storage:
    monkeypatch.setattr(sys, "argv", ["pytest"])
    return Storage(str(tmp_path / "fleet"))


@pytest.fixture
def attempt(storage, words, film):
    """attempt(epochs=3) trains the run in miniature as the video `x` of a fleet in `storage` -> its status."""

    def train(**changes) -> Status:
        choice = parse_train(["--exp-id", "x", *words(**{"data": film, **changes})]).resolve(cuda=False)
        video = FleetVideo("x", choice.config.video.data, choice, ChunkOptions())
        storage.write("manifest.jsonl", manifest_text([video]))
        return train_video(video, storage.address, OPTIONS)

    return train


@pytest.fixture(scope="module")
def single(tmp_path_factory, train, flags):
    """The same run by the single command."""
    output = tmp_path_factory.mktemp("single")
    assert train(output, flags()) == 0
    return output / "run"


@pytest.fixture
def writes(monkeypatch) -> list[str]:
    """The names of all files that are written to storage."""
    names, real = [], Storage.write
    monkeypatch.setattr(Storage, "write", lambda self, name, data: names.append(name) or real(self, name, data))
    return names


def test_hand_overs_end_with_checkpoint_and_status(attempt, storage, writes, single, bench, snapshot):
    status = attempt()
    assert status == read_status(storage, "x") and status.state == "finished" and status.progress == 1.0
    assert (status.trained, status.kept, status.retries, status.repeated_steps) == (15, 15, 0, 0)
    assert bench.equal_runs(storage.path / "x", single)
    last = [json.loads(line) for line in (single / "metrics.jsonl").read_text().splitlines() if '"eval"' in line][-1]
    assert status.values["psnr"] == last["Eval/Frame/train_psnr_frame"]
    checkpoints = [number for number, name in enumerate(writes) if name == LATEST]
    assert len(checkpoints) == 5 and {writes[number + 1] for number in checkpoints} == {"x/status.json"}
    assert {*os.listdir(storage.path / "x")} == {*os.listdir(single), "status.json"}
    before = snapshot(storage.path / "x")
    assert attempt() == status and snapshot(storage.path / "x") == before


def test_hand_overs_take_a_bounded_share_of_the_time(attempt, storage, monkeypatch, writes, single, bench):
    monkeypatch.setattr(task_module, "FREE_SECONDS", -1.0)
    assert attempt().kept == 15 and writes.count(LATEST) == 1 and bench.equal_runs(storage.path / "x", single)


@pytest.fixture
def often(monkeypatch) -> None:
    """Statuses are written every 10 ms."""
    monkeypatch.setattr(task_module, "REPORT_SECONDS", 0.01)


def test_a_cut_off_attempt_is_resumed(attempt, storage, often, at_step, single, bench):
    """Its last hand-over was at step 6, its last report at step 9."""

    def cut(_: HandOver) -> None:
        while read_status(storage, "x").trained < 9:
            time.sleep(0.01)
        raise StorageError("the node is gone")

    at_step(9, cut)
    with pytest.raises(StorageError):
        attempt()
    lost = read_status(storage, "x")
    assert (lost.state, lost.trained, lost.kept, lost.progress) == ("running", 9, 6, 9 / 15)
    status = attempt()
    assert (status.retries, status.repeated_steps, status.trained) == (1, 3, 9)
    assert bench.equal_runs(storage.path / "x", single)


def test_a_failing_storage_does_not_stop_the_training(attempt, storage, monkeypatch, single, bench, caplog):
    real = Storage.write

    def write(self, name, data):
        if name == LATEST and storage.exists(LATEST) and len(caplog.records) < 2:
            raise StorageError("cannot write")
        real(self, name, data)

    monkeypatch.setattr(Storage, "write", write)
    assert attempt().state == "finished" and bench.equal_runs(storage.path / "x", single)
    assert ["training continues" in record.message for record in caplog.records] == [True, True]


@pytest.mark.parametrize("fails", [1, 2, 4, 7, 11, 16, 22, 29, 37, 46])
def test_any_operation_of_the_storage_may_fail(attempt, storage, monkeypatch, single, bench, fails):
    count, real = 0, Storage._tried

    def tried(self, *arguments):
        nonlocal count
        count += 1
        if count == fails:
            raise StorageError("the storage is gone")
        return real(self, *arguments)

    storage.write("manifest.jsonl", b"")
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "_tried", tried)
        with contextlib.suppress(StorageError):
            attempt()
    assert count >= fails and attempt().state == "finished" and bench.equal_runs(storage.path / "x", single)


def test_a_checkpoint_that_is_not_found_is_not_replaced_by_a_fresh_run(attempt, storage, monkeypatch):
    write_status(storage, "x", Status("running", owner="another", trained=9, kept=6))
    with pytest.raises(StorageError, match="no checkpoint in .*restore it, or remove that folder"):
        attempt()


def test_a_paused_attempt_does_not_replace_a_checkpoint(attempt, storage, monkeypatch, single, bench):
    """It goes on between the logs of a hand-over and its checkpoint, when another attempt has finished the run."""
    real, paused = Storage.write, []

    def write(self, name, data):
        if name == "x/metrics.jsonl" and storage.exists(LATEST) and not paused:
            paused.append(name)
            assert attempt().state == "finished"
            return
        real(self, name, data)

    monkeypatch.setattr(Storage, "write", write)
    assert attempt().state == "finished"
    assert paused and attempt().state == "finished" and bench.equal_runs(storage.path / "x", single)


def test_a_stop_is_not_lost_with_the_ownership(attempt, storage, at_step, monkeypatch):
    real = HandOver.push

    def push(self, **changes):
        if changes.get("state") == "stopped":
            write_status(storage, "x", Status("running", owner="another"))
        return real(self, **changes)

    monkeypatch.setattr(HandOver, "push", push)
    at_step(6, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        attempt()
    assert read_status(storage, "x").owner == "another"


def test_a_stop_is_not_lost_with_the_storage(attempt, at_step, monkeypatch):
    def stop(_: HandOver) -> None:
        monkeypatch.setattr(Storage, "write", lambda *_: exec("raise StorageError('gone')", globals()))
        os.kill(os.getpid(), signal.SIGTERM)

    at_step(6, stop)
    with pytest.raises(Interrupted):
        attempt()


def test_a_stopped_attempt_repeats_nothing(attempt, storage, at_step, single, bench):
    at_step(6, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        attempt()
    stopped = read_status(storage, "x")
    assert stopped.state == "stopped" and stopped.trained == stopped.kept < 15
    status = attempt()
    assert (status.retries, status.repeated_steps, status.trained) == (0, 0, 15 - stopped.kept)
    assert bench.equal_runs(storage.path / "x", single)


def test_a_replaced_attempt_ends_and_overwrites_nothing(attempt, storage, often, at_step, snapshot):
    kept = {}

    def replace(hand_over: HandOver) -> None:
        with hand_over._lock:  # between two reports
            write_status(storage, "x", Status("running", owner="another"))
        kept.update(snapshot(storage.path))

    at_step(6, replace)
    assert attempt().owner == "another"
    assert snapshot(storage.path) == kept


def test_files_in_storage_follow_the_run_folder(storage, snapshot):
    """Logs that are rewound, files that are removed, and those that are no part of a run."""
    foreign = ("x/eval/summary.json", "x/report.html", "x/checkpoints/latest.pt.old", "x/tensorboard/deep/events.1")
    ours = ("x/metrics.jsonl", "x/tensorboard/events.1", "x/segments/00001/checkpoints/best.pt")
    for name in (*ours, *foreign, "x/checkpoints/.latest.pt.7.tmp"):
        storage.write(name, b"old")
    hand_over = HandOver(storage, "x", Status())
    hand_over.fetch(Status())
    assert {*snapshot(hand_over.scratch)} == {*ours}
    (hand_over.folder / "metrics.jsonl").write_bytes(b"ne")
    (hand_over.folder / ".metrics.jsonl.7.tmp").write_bytes(b"half")
    (hand_over.folder / "tensorboard" / "events.1").rename(hand_over.folder / "tensorboard" / "events.2")
    hand_over.push()
    hand_over.close()
    assert not hand_over.scratch.exists()
    assert {*storage.names("x")} == {*ours[::2], *foreign, "x/tensorboard/events.2", "x/status.json"}
    assert storage.read("x/metrics.jsonl") == b"ne" and storage.read("x/report.html") == b"old"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"crop": "31x64"}, "31x64 is not a multiple of 8x16"),
        ({"clip_targets": "/nowhere/none.safetensors"}, "/nowhere/none.safetensors"),
        ({"data": "/nowhere/gone.mp4"}, "is not a file, a folder or one of the clips"),
    ],
)
def test_an_error_of_the_video_is_one_sentence(attempt, storage, changes, match):
    status = attempt(**changes)
    assert status.state == "failed" and match in status.cause and "\n" not in status.cause
    assert read_status(storage, "x") == status


def test_other_errors_are_one_sentence(attempt, storage, tmp_path, monkeypatch, caplog):
    def broken(*_, **__):
        raise ZeroDivisionError("by zero\nand more")

    with monkeypatch.context() as patch:
        patch.setattr("hnerv.training.chunks.load_material", broken)
        assert attempt().cause == "ZeroDivisionError: by zero" and "Traceback" in caplog.text
    assert attempt(epochs=1).state == "finished"
    write_status(storage, "x", Status())
    cause = attempt(epochs=1, lr=0.5).cause
    assert cause.endswith("pass its settings, choose another name, or move it aside")
    assert "lr" in cause and f"{storage.address}/x" in cause and "scratch" not in cause
    monkeypatch.setattr(storage, "address", str(tmp_path / "elsewhere"))
    assert "elsewhere is not visible from this node: pass -o a shared folder or an address" in attempt().cause
    assert not (tmp_path / "elsewhere").exists()
