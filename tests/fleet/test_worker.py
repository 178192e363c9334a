"""The worker in this process, without Ray."""

from __future__ import annotations

import sys

import pytest

from hnerv.config import LogConfig
from hnerv.flags import parse_train
from hnerv.fleet import worker
from hnerv.fleet.locations import driver_location
from hnerv.fleet.transfers import LATEST, FolderUpdate, apply_update
from hnerv.fleet.worker import Task, train_run


class FolderChannel:
    """A channel to a folder of this machine."""

    def __init__(self, folder) -> None:
        self.folder, self.updates, self.reports = folder, [], []

    def send(self, update: FolderUpdate, saved: int) -> None:
        apply_update(update, self.folder)
        self.updates.append((update, saved))

    def report(self, step: int, steps: int, saved: int) -> None:
        self.reports.append((step, steps, saved))


@pytest.fixture
def task(film, words, tmp_path, monkeypatch):
    """task(epochs=3) -> the task of the run in miniature."""
    monkeypatch.setattr(sys, "argv", ["pytest"])

    def build(**changes) -> Task:
        choice = parse_train(["--exp-id", "x", *words(data=film, **changes)]).resolve(cuda=False)
        location = driver_location(choice.config.video.data)
        return Task("x", 1, choice, LogConfig(), "cpu", 1, location, "output/fleet/x", ["hnerv", "fleet"])

    return build


@pytest.fixture(scope="module")
def single(tmp_path_factory, train, flags):
    """The same run by the single command."""
    output = tmp_path_factory.mktemp("single")
    assert train(output, flags()) == 0
    return output / "run"


def test_each_checkpoint_is_sent(task, tmp_path, single, bench):
    channel = FolderChannel(tmp_path / "there")
    outcome = train_run(task(), FolderUpdate(), None, channel)
    assert outcome.state == "finished" and outcome.cost.sends == len(channel.updates) == 6
    assert [saved for _, saved in channel.updates] == [3, 6, 9, 12, 15, 15]
    assert not channel.updates[-1][0].parts or LATEST not in channel.updates[-1][0].parts
    assert channel.reports[0] == (0, 15, 0) and channel.reports[-1] == (15, 15, 15)
    assert bench.equal_runs(tmp_path / "there", single)


def test_sending_takes_a_bounded_share_of_the_time(task, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "FREE_SECONDS", -1.0)
    channel = FolderChannel(tmp_path / "there")
    assert train_run(task(), FolderUpdate(), None, channel).cost.sends == 1
    assert [saved for _, saved in channel.updates] == [15]


def test_a_run_is_resumed_from_the_files_it_receives(task, tmp_path, single, bench):
    from hnerv.fleet.transfers import pack_run

    class Broken(FolderChannel):
        def send(self, update: FolderUpdate, saved: int) -> None:
            if saved == 9:
                raise ConnectionResetError("connection lost")
            super().send(update, saved)

    channel = Broken(tmp_path / "there")
    assert train_run(task(), FolderUpdate(), None, channel).state == "failed"
    channel = FolderChannel(tmp_path / "there")
    assert train_run(task(), pack_run(tmp_path / "there"), None, channel).state == "finished"
    assert channel.reports[0] == (6, 15, 6)
    assert bench.equal_runs(tmp_path / "there", single)
    channel = FolderChannel(tmp_path / "there")
    assert train_run(task(), pack_run(tmp_path / "there"), None, channel).state == "finished"
    assert channel.updates == [(FolderUpdate(), 15)]


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"crop": "31x64"}, "31x64 is not a multiple of 8x16"), ({"clip_targets": "none.safetensors"}, "no such file")],
)
def test_an_error_of_the_video_is_one_line(task, tmp_path, changes, match):
    outcome = train_run(task(**changes), FolderUpdate(), None, FolderChannel(tmp_path / "there"))
    assert outcome.state == "failed" and match in outcome.cause and "\n" not in outcome.cause


def test_another_version_of_the_worker_fails(task, tmp_path):
    outcome = train_run(task()._replace(version="9.9"), FolderUpdate(), None, FolderChannel(tmp_path / "there"))
    assert outcome.state == "failed" and "install the same version on both" in outcome.cause


def test_a_video_missing_on_the_worker_is_requested(task, tmp_path):
    ours = task()
    ours = ours._replace(location=ours.location._replace(fingerprint="other"))
    assert train_run(ours, FolderUpdate(), None, FolderChannel(tmp_path / "there")).state == "missing"
