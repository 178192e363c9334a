"""States of videos, read from the fleet folder alone."""

from __future__ import annotations

import csv
import json

import pytest

from hnerv.errors import UserError
from hnerv.fleet import table
from hnerv.fleet.ledger import JobProgress, Ledger, end_last_line, read_states
from hnerv.runs import ChunkedFolder, ChunkOptions, ChunkPlan, divide, write_plan


@pytest.fixture
def folder(tmp_path):
    """Folder of a fleet of four videos: one finished after two lost attempts, one failed, one running, one waiting."""
    names = ("one", "two", "three", "four")
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps({"name": name}) + "\n" for name in names))
    ledger = Ledger(tmp_path)
    ledger.record("one", "lost", cause="WorkerCrashedError", repeated=4)
    ledger.record("one/segments/00000", "lost", cause="NodeDiedError", repeated=3)
    ledger.record("one/segments/00000", "finished")
    ledger.record("one", "finished", values={"psnr": 30.5, "clip_sim": 0.9, "bpp_estimate_8bit": 0.1, "seconds": 12.0})
    ledger.record("two", "failed", cause="--data 'x' is neither")
    ledger.write_progress({"three": JobProgress(30, 20, 120)})
    return tmp_path


def test_the_table_is_read_from_the_folder(folder):
    one, two, three, four = table.read_rows(folder)
    assert (one.state, one.psnr, one.psnr_unseen, one.retries, one.repeated_steps) == ("finished", 30.5, None, 2, 7)
    assert (two.state, two.cause) == ("failed", "--data 'x' is neither") and two.psnr is None
    assert (three.state, three.progress) == ("begun", 0.25)
    assert (four.state, four.progress) == ("waiting", 0.0)
    text = table.format_rows([one, two, three, four])
    assert "4 videos: 1 finished, 1 failed, 1 begun, 1 waiting; 2 retries, 7 steps repeated" in text
    assert " 25% done" in text and "--data 'x'" in text


def test_the_csv_has_a_cell_for_each_number(folder):
    rows = table.read_rows(folder)
    with table.write_table(folder, rows).open(newline="") as file:
        found = list(csv.DictReader(file))
    assert found[0]["psnr"] == "30.5" and found[0]["psnr_unseen"] == "" and found[0]["retries"] == "2"
    assert [row["state"] for row in found] == ["finished", "failed", "begun", "waiting"]


def test_failed_videos_of_a_large_fleet_are_shown_first():
    rows = [table.Row(f"v{i}", "finished", psnr=30.0) for i in range(100)] + [table.Row("bad", "failed", cause="why")]
    text = table.format_rows(rows, most=5).splitlines()
    assert text[1].startswith("bad") and "… and 96 more, all in fleet.csv" in text


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_ignored(folder, cut):
    path = folder / "fleet.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    standing = read_states(path)
    assert standing["one"].state == "finished" and ("two" in standing) == (cut <= 1)
    end_last_line(path)
    Ledger(folder).record("four", "finished")
    assert read_states(path)["four"].state == "finished"


@pytest.mark.parametrize(
    ("fields", "progress"),
    [
        ('"saved": 40, "steps": 100', 0.4),
        ('"saved": 400, "steps": 100', 0),
        ('"saved": NaN, "steps": 1', 0),
        (f'"saved": {"9" * 400}, "steps": 7', None),
        ('"repeated": 1e999', None),
        ('"saved": "x", "steps": 1', None),
    ],
)
def test_invalid_numbers_in_an_event(folder, fields, progress):
    path = folder / "fleet.jsonl"
    path.write_text(path.read_text() + f'{{"job": "five", "what": "stopped", {fields}}}\n')
    five = read_states(path).get("five")
    assert (five and five.progress) == progress


def test_progress_survives_a_driver_and_is_cleared(folder):
    assert Ledger(folder).unfinished() == {"three": JobProgress(30, 20, 120)}
    ledger = Ledger(folder)
    ledger.write_progress({}, 0)
    assert ledger.unfinished() == {}


def test_a_retried_video_is_no_longer_failed(folder):
    ledger = Ledger(folder)
    ledger.record("two", "finished", values={"psnr": 1.0})
    two = table.read_rows(folder)[1]
    assert (two.state, two.cause, two.psnr) == ("finished", "", 1.0)


def test_progress_of_a_stopped_driver_is_shown(folder):
    """An attempt that ended before its first report does not reset the progress."""
    ledger = Ledger(folder)
    ledger.record("three", "stopped", **JobProgress(50, 48, 120).event_fields())
    ledger.write_progress({}, 0)
    ledger.record("three", "lost", cause="NodeDiedError", **JobProgress(0, 0, 0).event_fields())
    three = table.read_rows(folder)[2]
    assert (three.state, three.progress, three.repeated_steps) == ("begun", 0.4, 2)
    assert " 40% done" in table.format_video(three)


def test_segments_are_weighted_by_frames(folder):
    """The first, of ten frames, is finished, the second, of five, is half done, the third has not started."""
    plan = ChunkPlan(ChunkOptions(10, False, "none"), "", 20, divide(range(20), 10, [10, 15]))
    run = ChunkedFolder(folder / "four")
    run.path.mkdir()
    write_plan(run.plan, plan)
    ledger = Ledger(folder)
    ledger.record("four/segments/00000", "finished")
    ledger.record("four/segments/00001", "stopped", **JobProgress(30, 30, 60).event_fields())
    assert table.read_rows(folder)[3].progress == (10 + 5 / 2) / 20
    ledger.write_progress({"four/segments/00002": JobProgress(12, 0, 60)}, 0)
    assert table.read_rows(folder)[3].progress == (10 + 5 / 2 + 5 / 5) / 20
    run.plan.write_text("{")
    assert table.read_rows(folder)[3].progress == 0


def test_diagnose_names_a_run_of_the_fleet(folder, hnerv_main, capsys):
    assert hnerv_main("diagnose", folder) == 2
    message = f"{folder} is a fleet folder, not a run folder: pass one of its runs, such as {folder}"
    assert capsys.readouterr().err == f"hnerv diagnose: {message}/NAME\n"
    (folder / "two").mkdir()
    (folder / "two" / "config.json").write_text("{}")
    for command in ("diagnose", "report"):
        assert hnerv_main(command, folder, *[folder / "two"] * (command == "report")) == 2
        assert capsys.readouterr().err == f"hnerv {command}: {message}/two\n"


def test_a_folder_without_a_fleet(tmp_path, hnerv_main, capsys):
    with pytest.raises(UserError, match="is not a fleet folder"):
        table.read_rows(tmp_path)
    assert hnerv_main("fleet", tmp_path, "--status") == 2
    assert "is not a fleet folder" in capsys.readouterr().err


def test_status_needs_no_ray(folder, hnerv_main, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert hnerv_main("fleet", folder, "--status") == 0
    assert "1 finished, 1 failed" in capsys.readouterr().out


def test_the_page_contains_the_escaped_table(folder, hnerv_main, capsys):
    Ledger(folder).record("four", "failed", cause="<script>x</script> & more")
    assert hnerv_main("report", folder) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "4 videos: 1 finished, 2 failed" in page and "30.50" in page and "http" not in page.split("</style>")[1]
    assert "&lt;script&gt;x&lt;/script&gt; &amp; more" in page and "<script>x" not in page
