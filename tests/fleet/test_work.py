"""What a worker does, in this process: no Ray."""

from __future__ import annotations

import sys

import pytest

from hnerv.config import LogConfig
from hnerv.flags import parse_train
from hnerv.fleet import work
from hnerv.fleet.parcels import LATEST, Parcel, unpack
from hnerv.fleet.places import place_of
from hnerv.fleet.work import Task
from hnerv.fleet.work import train as train_task


class Here:
    """A courier to a folder of this machine."""

    def __init__(self, folder) -> None:
        self.folder, self.parcels, self.told = folder, [], []

    def hand(self, parcel: Parcel, saved: int) -> None:
        unpack(parcel, self.folder)
        self.parcels.append((parcel, saved))

    def tell(self, step: int, steps: int, saved: int) -> None:
        self.told.append((step, steps, saved))


@pytest.fixture
def task(film, words, tmp_path, monkeypatch):
    """task(epochs=3) -> the task of the run in miniature."""
    monkeypatch.setattr(sys, "argv", ["pytest"])

    def build(**changes) -> Task:
        choice = parse_train(["--exp-id", "x", *words(data=film, **changes)]).resolve(cuda=False)
        place = place_of(choice.config.video.data)
        return Task("x", 1, choice, LogConfig(), "cpu", 1, place, "output/fleet/x", ["hnerv", "fleet"])

    return build


@pytest.fixture(scope="module")
def single(tmp_path_factory, train, flags):
    """The same run by the single command."""
    output = tmp_path_factory.mktemp("single")
    assert train(output, flags()) == 0
    return output / "run"


def test_each_checkpoint_is_handed_over_and_the_last_one_twice_at_most(task, tmp_path, single, bench):
    courier = Here(tmp_path / "there")
    outcome = train_task(task(), Parcel(), None, courier)
    assert outcome.state == "finished" and outcome.effort.times == len(courier.parcels) == 6
    assert [saved for _, saved in courier.parcels] == [3, 6, 9, 12, 15, 15]
    assert not courier.parcels[-1][0].pieces or LATEST not in courier.parcels[-1][0].pieces
    assert courier.told[0] == (0, 15, 0) and courier.told[-1] == (15, 15, 15)
    assert bench.equal_runs(tmp_path / "there", single)


def test_handing_over_takes_a_bounded_share_of_the_time(task, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "ALLOWANCE", -1.0)
    courier = Here(tmp_path / "there")
    assert train_task(task(), Parcel(), None, courier).effort.times == 1
    assert [saved for _, saved in courier.parcels] == [15]


def test_it_goes_on_from_what_it_is_given(task, tmp_path, single, bench):
    from hnerv.fleet.parcels import pack

    class Broken(Here):
        def hand(self, parcel: Parcel, saved: int) -> None:
            if saved == 9:
                raise ConnectionResetError("the way is cut")
            super().hand(parcel, saved)

    courier = Broken(tmp_path / "there")
    assert train_task(task(), Parcel(), None, courier).state == "failed"
    courier = Here(tmp_path / "there")
    assert train_task(task(), pack(tmp_path / "there"), None, courier).state == "finished"
    assert courier.told[0] == (6, 15, 6)
    assert bench.equal_runs(tmp_path / "there", single)
    courier = Here(tmp_path / "there")
    assert train_task(task(), pack(tmp_path / "there"), None, courier).state == "finished"
    assert courier.parcels == [(Parcel(), 15)]


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"crop": "31x64"}, "31x64 is not a multiple of 8x16"), ({"clip_targets": "none.safetensors"}, "no such file")],
)
def test_a_fault_of_the_video_is_a_line(task, tmp_path, changes, match):
    outcome = train_task(task(**changes), Parcel(), None, Here(tmp_path / "there"))
    assert outcome.state == "failed" and match in outcome.cause and "\n" not in outcome.cause


def test_another_version_is_refused(task, tmp_path):
    outcome = train_task(task()._replace(version="9.9"), Parcel(), None, Here(tmp_path / "there"))
    assert outcome.state == "failed" and "install the same version on both" in outcome.cause


def test_a_video_that_is_not_there_is_asked_for(task, tmp_path):
    ours = task()
    outcome = train_task(
        ours._replace(place=ours.place._replace(mark="other")), Parcel(), None, Here(tmp_path / "there")
    )
    assert outcome.state == "absent"
