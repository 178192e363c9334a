"""Checks before a cluster is started: existing runs, and the previous list of videos."""

from __future__ import annotations

import json

import pytest

from hnerv.errors import UserError
from hnerv.fleet.jobs import check_runs, first_jobs
from hnerv.fleet.lifecycle import locked_output, print_dropped
from hnerv.fleet.manifest import FleetDefaults, read_videos, write_manifest
from hnerv.runs import ChunkOptions, ChunkPlan, PlannedChunk, write_plan


@pytest.fixture
def videos(tmp_path):
    """videos("a", "b", lr=0.1) -> these videos with these settings."""

    def read(*names: str, chunks: ChunkOptions = ChunkOptions(), **settings) -> list:  # noqa: B008 (frozen)
        path = tmp_path / "list.jsonl"
        path.write_text("\n".join(json.dumps({"data": f"{name}.mp4"}) for name in names))
        return read_videos(path, FleetDefaults("", settings, chunks))

    return read


@pytest.fixture
def begin(tmp_path, finished):
    """begin(video) writes the config.json of its run."""

    def write(video) -> None:
        record = json.loads((finished / "config.json").read_text())
        record["config"] = video.choice.config.to_dict()
        (tmp_path / video.name).mkdir(parents=True)
        (tmp_path / video.name / "config.json").write_text(json.dumps(record))

    return write


OTHER_FLEET = "no run in .* can be resumed with these settings: .*, or choose another -o$"


def test_settings_that_differ_from_all_runs_are_another_fleet(videos, begin, tmp_path):
    ours, theirs = videos("a", "b", "c", lr=0.1), videos("a", "b", "c", lr=0.2)
    check_runs(theirs, tmp_path)
    begin(ours[0])
    begin(ours[1])
    check_runs(ours, tmp_path)
    with pytest.raises(UserError, match=OTHER_FLEET) as error:
        check_runs(theirs, tmp_path)
    assert "lr" in str(error.value) and "--exp-id" not in str(error.value)
    check_runs([*theirs[:1], ours[1], *theirs[2:]], tmp_path)  # one of two can be resumed: the other fails alone


@pytest.mark.parametrize("name, chunks", [("config.json", 0), ("segments.json", 10), ("mine.txt", 0), ("mine.txt", 10)])
def test_a_video_that_fails_for_another_reason_fails_alone(videos, tmp_path, name, chunks):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_text("{torn")
    check_runs(videos("a", "b", chunks=ChunkOptions(chunks)), tmp_path)


def test_other_segments_are_another_fleet(videos, begin, tmp_path):
    (tmp_path / "a").mkdir()
    write_plan(tmp_path / "a" / "segments.json", ChunkPlan(ChunkOptions(8), "", 8, (PlannedChunk(0, "0:8", 0, 8),)))
    check_runs(videos("a", "b", chunks=ChunkOptions(8)), tmp_path)
    for chunks in (ChunkOptions(4), ChunkOptions()):
        with pytest.raises(UserError, match=OTHER_FLEET):
            check_runs(videos("a", "b", chunks=chunks), tmp_path)
    begin(videos("b", lr=0.1)[0])
    check_runs(videos("a", "b", chunks=ChunkOptions(8), lr=0.2), tmp_path)


@pytest.mark.parametrize(
    ("name", "frames", "match"),
    [("moved/a", 0, r"\(data is .*/a.mp4, this command has .*/moved/a.mp4\)"), ("a", 8, OTHER_FLEET)],
)
def test_another_path_or_a_division_is_another_fleet(videos, begin, tmp_path, name, frames, match):
    """The driver does not need access to the videos."""
    begin(videos("a")[0])
    with pytest.raises(UserError, match=match):
        check_runs(videos(name, chunks=ChunkOptions(frames)), tmp_path)


def test_a_half_written_plan_is_ignored(videos, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".segments.json.123.tmp").write_text("{")
    assert [job.entry for job in first_jobs(*videos("a", chunks=ChunkOptions(8)), tmp_path)] == ["plan"]


@pytest.mark.parametrize("name", ["config.json", "segments.json"])
def test_a_run_folder_is_not_a_fleet_folder(tmp_path, name):
    (tmp_path / name).write_text("{}")
    message = "is a run folder, not a fleet folder: choose another -o"
    with pytest.raises(UserError, match=message), locked_output(tmp_path):
        pytest.fail("the folder was locked")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_unused_new_folder_is_removed(tmp_path):
    with pytest.raises(UserError), locked_output(tmp_path / "fleet"):
        raise UserError("no Ray")
    assert not (tmp_path / "fleet").exists()
    with locked_output(tmp_path / "fleet"):
        (tmp_path / "fleet" / "manifest.jsonl").write_text("")
    assert (tmp_path / "fleet" / "manifest.jsonl").exists()


def test_videos_that_are_no_longer_in_the_list_are_named(videos, tmp_path, capsys):
    print_dropped(tmp_path, videos("a"))
    write_manifest(tmp_path / "manifest.jsonl", videos("a", "b", "c"))
    print_dropped(tmp_path, videos("c", "a", "d", "b"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.jsonl").write_text("torn")
    print_dropped(tmp_path / "other", videos("a"))
    assert capsys.readouterr().out == ""
    print_dropped(tmp_path, videos("a", "d"))
    assert capsys.readouterr().out == f"no longer in the list of videos of {tmp_path}; their runs are kept: b, c\n"
