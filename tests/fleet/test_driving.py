"""What the driver makes of what a cluster tells it: each test says when and how tasks end."""

from __future__ import annotations

import json
import os
import signal

import pytest

from hnerv.config import LogConfig
from hnerv.errors import Interrupted, RunError, UserError
from hnerv.fleet import driving, running
from hnerv.fleet.driving import Driver, Orders
from hnerv.fleet.engine import Fault, News
from hnerv.fleet.jobs import Job
from hnerv.fleet.ledger import Ledger, Mark
from hnerv.fleet.manifest import Defaults, read_videos
from hnerv.fleet.parcels import LATEST, Parcel, Piece
from hnerv.fleet.work import Outcome, Task


class Told:
    """A cluster of `slots` tasks. `results` and `heard` are what the next look at it finds."""

    def __init__(self) -> None:
        self.tasks: dict[int, tuple[Task, tuple]] = {}
        self.results: dict[int, Outcome | Fault] = {}
        self.heard: dict[tuple[str, int], News] = {}
        self.cancelled: list[int] = []
        self.puts: list[bytes] = []

    def submit(self, entry: str, task: Task, *given) -> int:
        self.tasks[len(self.tasks)] = task, given
        return len(self.tasks) - 1

    def put(self, data: bytes) -> str:
        self.puts.append(data)
        return f"object {len(self.puts)}"

    def ended(self, refs: list[int], seconds: float) -> list:
        return [(ref, self.results.pop(ref)) for ref in refs if ref in self.results]

    def news(self) -> dict[tuple[str, int], News]:
        heard, self.heard = self.heard, {}
        return heard

    def cancel(self, refs: list[int]) -> None:
        self.cancelled += refs
        self.results |= {ref: Outcome("stopped") for ref in refs}

    def slots(self) -> int:
        return 8


@pytest.fixture
def begin(tmp_path):
    """begin(segments=2, ...) -> a driver of one video `v`, in as many runs, which are at work."""

    def start(segments: int = 1, retries: int = 3, submitted: bool = True) -> Driver:
        (tmp_path / "v.mp4").write_bytes(b"video")
        (tmp_path / "m.jsonl").write_text(json.dumps({"data": "v.mp4"}) + "\n")
        output = tmp_path / "fleet"
        output.mkdir(exist_ok=True)
        videos = read_videos(tmp_path / "m.jsonl", Defaults())
        driver = Driver(Told(), output, videos, Orders(LogConfig(), "cpu", 1, retries, []))
        names = ["v"] if segments == 1 else [f"v/segments/{number:05}" for number in range(segments)]
        if submitted:
            driver.add(videos[0], [Job(name, videos[0], videos[0].choice) for name in names])
            driver.submit_some()
        return driver

    return start


def checkpoint(saved: int, name: str = LATEST) -> News:
    return News(Parcel({name: Piece(0, b"x")}), saved, 100, saved)


def finish_on_disk(driver: Driver, name: str = "v") -> None:
    """As if the run had been trained by an earlier driver."""
    (driver.output / name / "checkpoints").mkdir(parents=True)
    (driver.output / name / LATEST).write_bytes(b"x")
    driver.ledger.note(name, "finished", values={"psnr": 30.0})


def test_what_a_killed_driver_had_finished_is_not_lost(begin):
    driver = begin(submitted=False)
    driver.ledger.mark({"v": Mark(90, 80, 100), "w": Mark(9, 8, 10)}, 0)
    finish_on_disk(driver)
    again = begin(submitted=False)
    again.tell_lost_by_the_last_driver()
    assert again.ledger.standing["v"].state == "finished" and again.ledger.standing["w"].repeated == 1
    assert Ledger(again.output).left() == {}


def test_a_video_that_several_tasks_do_not_see_is_sent_once(begin):
    driver = begin(segments=2)
    driver.cluster.results = {0: Outcome("absent", "no"), 1: Outcome("absent", "no")}
    driver.look(0)
    driver.submit_some()
    assert not driver.failed and len(driver.cluster.puts) == 1
    assert [given[-1] for _, given in driver.cluster.tasks.values()] == [None, None, "object 1", "object 1"]
    driver.cluster.results = {2: Outcome("absent", "no")}
    driver.look(0)
    assert driver.failed == {"v": "no, even though it was sent"}


def test_a_stop_after_a_segment_failed(begin):
    """The other one, which was cancelled then, ends as if it had heard of nothing."""
    driver = begin(segments=3)
    driver.cluster.results = {0: Outcome("failed", "why")}
    driver.cluster.heard = {("v/segments/00001", 1): checkpoint(100)}
    driver.look(0)
    driver.cluster.results = {1: Outcome("finished"), 2: Outcome("stopped")}
    driver.cluster.cancelled.clear()
    with driving.StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted, match="0 of 1 videos are done"):
            driver.stop(stop)
    assert driver.cluster.cancelled == [] and driver.ledger.standing["v"].cause == "why"


def test_a_stop_keeps_how_far_it_came(begin, capsys):
    driver = begin()
    driver.cluster.heard = {("v", 1): News(None, 45, 100, 40)}
    with driving.StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            driver.stop(stop)
    row = driver.row(driver.videos[0])
    assert (row.state, row.progress, row.repeated_steps) == ("begun", 0.4, 5)
    assert driver.ledger.left() == {}
    assert "stopping 1 task; it saves its run and sends it back\n" in capsys.readouterr().out


def test_a_refusal_is_no_event(begin, monkeypatch):
    """Other flags than those of a finished run: it is finished all the same once these are right."""
    driver = begin(submitted=False)
    finish_on_disk(driver)
    before = driver.ledger.path.read_bytes()

    def refuse(*_):
        raise UserError("v holds another run: give its settings")

    monkeypatch.setattr(driving, "run_folder", refuse)
    driver.run()
    row = driver.row(driver.videos[0])
    assert (row.state, row.cause, row.psnr) == ("failed", "v holds another run: give its settings", None)
    assert driver.ledger.path.read_bytes() == before
    with pytest.raises(UserError, match="1 of 1 videos failed"):
        running.check_failures(driver.videos, driver)


@pytest.mark.parametrize("name", ["../../x", "a\0b", "\ud800"])
def test_a_parcel_that_leads_elsewhere_fails_its_video_alone(begin, name):
    driver = begin()
    driver.cluster.heard = {("v", 1): checkpoint(10, name)}
    driver.look(0)
    assert "v" in driver.failed and driver.cluster.cancelled == [0]
    driver.look(0)
    assert not driver.at_work


def test_a_lost_cluster_is_no_fault_of_a_video(begin, monkeypatch):
    driver = begin(submitted=False)

    def lost():
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        driver.guarded(driver.videos[0], lost)
    assert not driver.failed


def test_half_written_files_are_removed_before_a_run_begins(begin):
    half = begin(submitted=False).output / "v" / ".metrics.jsonl.7.tmp"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"x")
    above = half.parents[1] / ".fleet.csv.7.tmp"
    above.write_bytes(b"x")
    driver = begin()
    assert not driver.failed and not half.exists()
    with running.held(driver.output):
        assert not above.exists()


def test_what_is_saved_does_not_go_back(begin):
    driver = begin()
    driver.cluster.heard = {("v", 1): checkpoint(50)}
    driver.look(0)
    driver.cluster.heard = {("v", 1): News(None, 60, 100, 40)}
    driver.look(0)
    assert driver.at_work["v"].mark == Mark(60, 50, 100)


def test_only_a_newer_checkpoint_makes_an_attempt_fruitful(begin):
    driver = begin(retries=1)
    for number, news in enumerate([checkpoint(50), checkpoint(50)], start=1):
        driver.cluster.heard = {("v", number): news}
        driver.cluster.results = {number - 1: Fault("killed")}
        driver.look(0)
        driver.submit_some()
    assert driver.failed["v"].startswith("ended 2 times without a new checkpoint")
    kept = [json.loads(line)["what"] for line in driver.ledger.path.read_text().splitlines()]
    assert kept == ["lost", "failed"]


def test_a_table_that_cannot_be_written_hides_no_other_error(begin, monkeypatch, tmp_path):
    driver = begin(submitted=False)

    def broken(self):
        raise RunError("the disk")

    def unwritten(*_):
        raise UserError("no table")

    class Connected:
        def __enter__(self):
            return driver.cluster

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(running, "connected", lambda *_: Connected())
    monkeypatch.setattr(Driver, "run", broken)
    monkeypatch.setattr(running, "write_table", unwritten)
    with pytest.raises(RunError, match="the disk"):
        running.run_fleet(tmp_path / "m.jsonl", driver.output, Defaults(), driver.orders, running.Where("", None))
