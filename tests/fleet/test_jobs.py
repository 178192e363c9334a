"""What is looked at before a cluster is started: the runs that are there, and the list of before."""

from __future__ import annotations

import json

import pytest

from hnerv.errors import UserError
from hnerv.fleet import jobs
from hnerv.fleet.jobs import check_runs
from hnerv.fleet.manifest import Defaults, read_videos, write_manifest
from hnerv.fleet.running import tell_dropped
from hnerv.segments import Wishes


@pytest.fixture
def videos(tmp_path):
    """videos("a", "b", lr=0.1) -> these videos, with such settings."""

    def read(*names: str, wishes: Wishes = Wishes(), **settings) -> list:  # noqa: B008 (frozen)
        path = tmp_path / "list.jsonl"
        path.write_text("\n".join(json.dumps({"data": f"{name}.mp4"}) for name in names))
        return read_videos(path, Defaults("", settings, wishes))

    return read


def test_other_settings_than_those_of_all_runs_are_another_fleet(videos, tmp_path, monkeypatch):
    def refuse(job, _):
        if job.choice.config.train.lr != 0.1:
            raise UserError(f"{job.name} has lr 0.1")

    monkeypatch.setattr(jobs, "run_folder", refuse)
    ours, theirs = videos("a", "b", "c", lr=0.1), videos("a", "b", "c", lr=0.2)
    check_runs(theirs, tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    check_runs(ours, tmp_path)
    with pytest.raises(UserError, match=r"no run in .* goes on with these settings: a has lr 0.1"):
        check_runs(theirs, tmp_path)
    check_runs([ours[0], *theirs[1:]], tmp_path)  # one of two goes on: the other fails alone


def test_other_segments_are_another_fleet(videos, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "segments.json").write_text("{}")
    with pytest.raises(UserError, match="segments.json"):
        check_runs(videos("a", "b", wishes=Wishes(10)), tmp_path)


def test_videos_that_are_no_longer_in_the_list_are_named(videos, tmp_path, capsys):
    tell_dropped(tmp_path, videos("a"))
    write_manifest(tmp_path / "manifest.jsonl", videos("a", "b", "c"))
    tell_dropped(tmp_path, videos("c", "a", "d", "b"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.jsonl").write_text("torn")
    tell_dropped(tmp_path / "other", videos("a"))
    assert capsys.readouterr().out == ""
    tell_dropped(tmp_path, videos("a", "d"))
    assert "2 of the 3 videos that were in" in (out := capsys.readouterr().out) and "such as b:" in out
