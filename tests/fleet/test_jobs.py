"""What is looked at before a cluster is started: the runs that are there, and the list of before."""

from __future__ import annotations

import json

import pytest

from hnerv.errors import UserError
from hnerv.fleet.jobs import check_runs, first_jobs
from hnerv.fleet.manifest import Defaults, read_videos, write_manifest
from hnerv.fleet.running import held, tell_dropped
from hnerv.runs import ChunkOptions, ChunkPlan, PlannedChunk, write_plan


@pytest.fixture
def videos(tmp_path):
    """videos("a", "b", lr=0.1) -> these videos, with such settings."""

    def read(*names: str, wishes: ChunkOptions = ChunkOptions(), **settings) -> list:  # noqa: B008 (frozen)
        path = tmp_path / "list.jsonl"
        path.write_text("\n".join(json.dumps({"data": f"{name}.mp4"}) for name in names))
        return read_videos(path, Defaults("", settings, wishes))

    return read


@pytest.fixture
def begin(tmp_path, finished):
    """begin(video) -> its run is there."""

    def write(video) -> None:
        record = json.loads((finished / "config.json").read_text())
        record["config"] = video.choice.config.to_dict()
        (tmp_path / video.name).mkdir(parents=True)
        (tmp_path / video.name / "config.json").write_text(json.dumps(record))

    return write


REFUSED = "no run in .* can be resumed with these settings: .*, or choose another -o$"


def test_other_settings_than_those_of_all_runs_are_another_fleet(videos, begin, tmp_path):
    ours, theirs = videos("a", "b", "c", lr=0.1), videos("a", "b", "c", lr=0.2)
    check_runs(theirs, tmp_path)
    begin(ours[0])
    begin(ours[1])
    check_runs(ours, tmp_path)
    with pytest.raises(UserError, match=REFUSED) as error:
        check_runs(theirs, tmp_path)
    assert "lr" in str(error.value) and "--exp-id" not in str(error.value)
    check_runs([*theirs[:1], ours[1], *theirs[2:]], tmp_path)  # one of two goes on: the other fails alone


@pytest.mark.parametrize("name, wishes", [("config.json", 0), ("segments.json", 10), ("mine.txt", 0), ("mine.txt", 10)])
def test_a_video_that_fails_for_another_reason_fails_alone(videos, tmp_path, name, wishes):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_text("{torn")
    check_runs(videos("a", "b", wishes=ChunkOptions(wishes)), tmp_path)


def test_other_segments_are_another_fleet(videos, begin, tmp_path):
    (tmp_path / "a").mkdir()
    write_plan(tmp_path / "a" / "segments.json", ChunkPlan(ChunkOptions(8), "", 8, (PlannedChunk(0, "0:8", 0, 8),)))
    check_runs(videos("a", "b", wishes=ChunkOptions(8)), tmp_path)
    for wishes in (ChunkOptions(4), ChunkOptions()):
        with pytest.raises(UserError, match=REFUSED):
            check_runs(videos("a", "b", wishes=wishes), tmp_path)
    begin(videos("b", lr=0.1)[0])
    check_runs(videos("a", "b", wishes=ChunkOptions(8), lr=0.2), tmp_path)


def test_a_video_under_another_path_is_another_fleet(videos, begin, tmp_path):
    """The driver need not see a video, and decodes none."""
    begin(videos("a")[0])
    with pytest.raises(UserError, match=r"\(data is .*/a.mp4, this command has .*/moved/a.mp4\)"):
        check_runs(videos("moved/a"), tmp_path)


def test_a_run_becomes_no_run_in_segments(videos, begin, tmp_path):
    begin(videos("a")[0])
    with pytest.raises(UserError, match=REFUSED):
        check_runs(videos("a", "b", wishes=ChunkOptions(8)), tmp_path)


def test_what_a_killed_driver_left_of_a_plan_is_nothing(videos, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".segments.json.123.tmp").write_text("{")
    assert [job.entry for job in first_jobs(*videos("a", wishes=ChunkOptions(8)), tmp_path)] == ["plan"]


@pytest.mark.parametrize("name", ["config.json", "segments.json"])
def test_a_fleet_is_not_put_into_a_run(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="is a run folder, not a fleet folder: choose another -o"), held(tmp_path):
        pytest.fail("it was held")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_in_which_nothing_began_is_gone_again(tmp_path):
    with pytest.raises(UserError), held(tmp_path / "fleet"):
        raise UserError("no Ray")
    assert not (tmp_path / "fleet").exists()
    with held(tmp_path / "fleet"):
        (tmp_path / "fleet" / "manifest.jsonl").write_text("")
    assert (tmp_path / "fleet" / "manifest.jsonl").exists()


def test_videos_that_are_no_longer_in_the_list_are_named(videos, tmp_path, capsys):
    tell_dropped(tmp_path, videos("a"))
    write_manifest(tmp_path / "manifest.jsonl", videos("a", "b", "c"))
    tell_dropped(tmp_path, videos("c", "a", "d", "b"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.jsonl").write_text("torn")
    tell_dropped(tmp_path / "other", videos("a"))
    assert capsys.readouterr().out == ""
    tell_dropped(tmp_path, videos("a", "d"))
    assert capsys.readouterr().out == f"no longer in the list of videos of {tmp_path}; their runs are kept: b, c\n"
