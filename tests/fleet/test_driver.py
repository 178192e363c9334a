"""The driver with a simulated cluster: each test decides when and how tasks end."""

from __future__ import annotations

import contextlib
import json
import os
import signal

import pytest

from hnerv.config import LogConfig
from hnerv.errors import Interrupted, RunError, UserError
from hnerv.fleet import driver as driver_module
from hnerv.fleet import lifecycle
from hnerv.fleet.driver import Driver, TaskOptions
from hnerv.fleet.engine import LostTask, WorkerReport
from hnerv.fleet.jobs import Job
from hnerv.fleet.ledger import JobProgress, Ledger
from hnerv.fleet.manifest import FleetDefaults, read_videos
from hnerv.fleet.transfers import LATEST, FilePart, FolderUpdate
from hnerv.fleet.worker import Outcome, Task


class SimulatedCluster:
    """A cluster of 8 slots. The next poll returns `results` and `reports`."""

    def __init__(self) -> None:
        self.tasks: dict[int, tuple[Task, tuple]] = {}
        self.results: dict[int, Outcome | LostTask] = {}
        self.reports: dict[tuple[str, int], WorkerReport] = {}
        self.cancelled: list[int] = []
        self.puts: list[bytes] = []

    def submit(self, entry: str, task: Task, *inputs) -> int:
        self.tasks[len(self.tasks)] = task, inputs
        return len(self.tasks) - 1

    def put(self, data: bytes) -> str:
        self.puts.append(data)
        return f"object {len(self.puts)}"

    def ended(self, refs: list[int], seconds: float) -> list:
        return [(ref, self.results.pop(ref)) for ref in refs if ref in self.results]

    def fetch_reports(self) -> dict[tuple[str, int], WorkerReport]:
        reports, self.reports = self.reports, {}
        return reports

    def cancel(self, refs: list[int]) -> None:
        self.cancelled += refs
        self.results |= {ref: Outcome("stopped") for ref in refs}

    def slots(self) -> int:
        return 8


@pytest.fixture
def begin(tmp_path):
    """begin(segments=2, ...) -> a driver of one video `v`, divided into as many runs, which are running."""

    def start(segments: int = 1, retries: int = 3, submitted: bool = True) -> Driver:
        (tmp_path / "v.mp4").write_bytes(b"video")
        (tmp_path / "m.jsonl").write_text(json.dumps({"data": "v.mp4"}) + "\n")
        output = tmp_path / "fleet"
        output.mkdir(exist_ok=True)
        videos = read_videos(tmp_path / "m.jsonl", FleetDefaults())
        driver = Driver(SimulatedCluster(), output, videos, TaskOptions(LogConfig(), "cpu", 1, retries, []))
        names = ["v"] if segments == 1 else [f"v/segments/{number:05}" for number in range(segments)]
        if submitted:
            driver.add(videos[0], [Job(name, videos[0], videos[0].choice) for name in names])
            driver.submit_waiting()
        return driver

    return start


def checkpoint(saved: int, name: str = LATEST) -> WorkerReport:
    return WorkerReport(FolderUpdate({name: FilePart(0, b"x")}), saved, 100, saved)


def finish_on_disk(driver: Driver, name: str = "v") -> None:
    """A run that an earlier driver has finished."""
    (driver.output / name / "checkpoints").mkdir(parents=True)
    (driver.output / name / LATEST).write_bytes(b"x")
    driver.ledger.record(name, "finished", values={"psnr": 30.0})


def test_runs_finished_by_a_killed_driver_stay_finished(begin):
    driver = begin(submitted=False)
    driver.ledger.write_progress({"v": JobProgress(90, 80, 100), "w": JobProgress(9, 8, 10)}, 0)
    finish_on_disk(driver)
    again = begin(submitted=False)
    again.record_lost_jobs()
    assert again.ledger.states["v"].state == "finished" and again.ledger.states["w"].repeated == 1
    assert Ledger(again.output).unfinished() == {}


def test_a_video_missing_on_several_workers_is_sent_once(begin):
    driver = begin(segments=2)
    driver.cluster.results = {0: Outcome("missing", "no"), 1: Outcome("missing", "no")}
    driver.poll(0)
    driver.submit_waiting()
    assert not driver.failed and len(driver.cluster.puts) == 1
    assert [inputs[-1] for _, inputs in driver.cluster.tasks.values()] == [None, None, "object 1", "object 1"]


def test_stop_after_a_failed_segment(begin):
    """The other segments were cancelled; one of them finishes before the request reaches it."""
    driver = begin(segments=3)
    driver.cluster.results = {0: Outcome("failed", "why")}
    driver.cluster.reports = {("v/segments/00001", 1): checkpoint(100)}
    driver.poll(0)
    driver.cluster.results = {1: Outcome("finished"), 2: Outcome("stopped")}
    driver.cluster.cancelled.clear()
    with driver_module.StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted, match="0 of 1 videos are done"):
            driver.stop(stop)
    assert driver.cluster.cancelled == [] and driver.ledger.states["v"].cause == "why"


def test_stop_keeps_the_progress(begin, capsys):
    driver = begin()
    driver.cluster.reports = {("v", 1): WorkerReport(None, 45, 100, 40)}
    with driver_module.StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            driver.stop(stop)
    row = driver.row(driver.videos[0])
    assert (row.state, row.progress, row.repeated_steps) == ("begun", 0.4, 5)
    assert driver.ledger.unfinished() == {}
    assert "stopping 1 task; it saves its run and sends it back\n" in capsys.readouterr().out


def test_a_run_with_other_settings_is_not_recorded_as_failed(begin, monkeypatch):
    """A finished run stays finished once the flags are right again."""
    driver = begin(submitted=False)
    finish_on_disk(driver)
    before = driver.ledger.path.read_bytes()

    def refuse(*_):
        raise UserError("v holds another run: give its settings")

    monkeypatch.setattr(driver_module, "run_folder", refuse)
    driver.run()
    row = driver.row(driver.videos[0])
    assert (row.state, row.cause, row.psnr) == ("failed", "v holds another run: give its settings", None)
    assert driver.ledger.path.read_bytes() == before
    with pytest.raises(UserError, match="1 of 1 videos failed"):
        lifecycle.check_failures(driver.videos, driver)


@pytest.mark.parametrize("name", ["../../x", "a\0b", "\ud800"])
def test_an_update_outside_the_run_folder_fails_only_its_video(begin, name):
    driver = begin()
    driver.cluster.reports = {("v", 1): checkpoint(10, name)}
    driver.poll(0)
    assert "v" in driver.failed and driver.cluster.cancelled == [0]
    driver.poll(0)
    assert not driver.running


def test_a_lost_cluster_does_not_fail_a_video(begin, monkeypatch):
    driver = begin(submitted=False)

    def lost():
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        driver.guarded(driver.videos[0], lost)
    assert not driver.failed


def test_half_written_files_are_removed_before_a_run_starts(begin):
    half = begin(submitted=False).output / "v" / ".metrics.jsonl.7.tmp"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"x")
    above = half.parents[1] / ".fleet.csv.7.tmp"
    above.write_bytes(b"x")
    driver = begin()
    assert not driver.failed and not half.exists()
    with lifecycle.locked_output(driver.output):
        assert not above.exists()


def test_the_saved_step_never_decreases(begin):
    driver = begin()
    for report in (checkpoint(50), WorkerReport(None, 60, 100, 40)):
        driver.cluster.reports = {("v", 1): report}
        driver.poll(0)
    assert driver.running["v"].progress == JobProgress(60, 50, 100)


def test_only_a_newer_checkpoint_resets_the_retries(begin):
    driver = begin(retries=1)
    for number, news in enumerate([checkpoint(50), checkpoint(50)], start=1):
        driver.cluster.reports = {("v", number): news}
        driver.cluster.results = {number - 1: LostTask("killed")}
        driver.poll(0)
        driver.submit_waiting()
    assert driver.failed["v"].startswith("ended 2 times without a new checkpoint")
    kept = [json.loads(line)["what"] for line in driver.ledger.path.read_text().splitlines()]
    assert kept == ["lost", "failed"]


def test_an_unwritable_table_does_not_hide_the_first_error(begin, monkeypatch, tmp_path):
    driver = begin(submitted=False)

    def broken(self):
        raise RunError("the disk")

    def unwritten(*_):
        raise UserError("no table")

    monkeypatch.setattr(lifecycle, "connected", lambda *_: contextlib.nullcontext(driver.cluster))
    monkeypatch.setattr(Driver, "run", broken)
    monkeypatch.setattr(lifecycle, "finish_table", unwritten)
    with pytest.raises(RunError, match="the disk"):
        ray_options = lifecycle.RayOptions("", None)
        lifecycle.run_fleet(tmp_path / "m.jsonl", driver.output, FleetDefaults(), driver.options, ray_options)
