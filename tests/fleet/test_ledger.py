"""What became of each video, from the fleet's folder alone."""

from __future__ import annotations

import csv
import json

import pytest

from hnerv.errors import UserError
from hnerv.fleet import table
from hnerv.fleet.ledger import Ledger, Mark, mend_end, read_standing
from hnerv.runs import ChunkedFolder, ChunkOptions, ChunkPlan, divide, write_plan


@pytest.fixture
def folder(tmp_path):
    """Of a fleet of four videos: one finished after two faults, one failed, one at work, one waiting."""
    names = ("one", "two", "three", "four")
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps({"name": name}) + "\n" for name in names))
    ledger = Ledger(tmp_path)
    ledger.note("one", "lost", cause="WorkerCrashedError", repeated=4)
    ledger.note("one/segments/00000", "lost", cause="NodeDiedError", repeated=3)
    ledger.note("one/segments/00000", "finished")
    ledger.note("one", "finished", values={"psnr": 30.5, "clip_sim": 0.9, "bpp_estimate_8bit": 0.1, "seconds": 12.0})
    ledger.note("two", "failed", cause="--data 'x' is neither")
    ledger.mark({"three": Mark(30, 20, 120)})
    return tmp_path


def test_the_table_is_read_from_the_folder(folder):
    one, two, three, four = table.read_rows(folder)
    assert (one.state, one.psnr, one.psnr_unseen, one.retries, one.repeated_steps) == ("finished", 30.5, None, 2, 7)
    assert (two.state, two.cause) == ("failed", "--data 'x' is neither") and two.psnr is None
    assert (three.state, three.progress) == ("begun", 0.25)
    assert (four.state, four.progress) == ("waiting", 0.0)
    text = table.lines([one, two, three, four])
    assert "4 videos: 1 finished, 1 failed, 1 begun, 1 waiting; 2 retries, 7 steps repeated" in text
    assert " 25% done" in text and "--data 'x'" in text


def test_the_csv_has_a_cell_for_each_number(folder):
    rows = table.read_rows(folder)
    with table.write_table(folder, rows).open(newline="") as file:
        found = list(csv.DictReader(file))
    assert found[0]["psnr"] == "30.5" and found[0]["psnr_unseen"] == "" and found[0]["retries"] == "2"
    assert [row["state"] for row in found] == ["finished", "failed", "begun", "waiting"]


def test_of_many_videos_the_failed_are_shown_first():
    rows = [table.Row(f"v{i}", "finished", psnr=30.0) for i in range(100)] + [table.Row("bad", "failed", cause="why")]
    text = table.lines(rows, most=5).splitlines()
    assert text[1].startswith("bad") and "… and 96 more, all in fleet.csv" in text


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_a_killed_driver_left_torn_counts_for_nothing(folder, cut):
    path = folder / "fleet.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    standing = read_standing(path)
    assert standing["one"].state == "finished" and ("two" in standing) == (cut <= 1)
    mend_end(path)
    Ledger(folder).note("four", "finished")
    assert read_standing(path)["four"].state == "finished"


@pytest.mark.parametrize(
    ("facts", "progress"),
    [
        ('"saved": 40, "steps": 100', 0.4),
        ('"saved": 400, "steps": 100', 0),
        ('"saved": NaN, "steps": 1', 0),
        (f'"saved": {"9" * 400}, "steps": 7', None),
        ('"repeated": 1e999', None),
        ('"saved": "x", "steps": 1', None),
    ],
)
def test_numbers_that_no_driver_wrote(folder, facts, progress):
    path = folder / "fleet.jsonl"
    path.write_text(path.read_text() + f'{{"job": "five", "what": "stopped", {facts}}}\n')
    five = read_standing(path).get("five")
    assert (five and five.progress) == progress


def test_marks_survive_a_driver_and_are_cleared(folder):
    assert Ledger(folder).left() == {"three": Mark(30, 20, 120)}
    ledger = Ledger(folder)
    ledger.mark({}, 0)
    assert ledger.left() == {}


def test_a_video_that_is_tried_again_is_not_failed_any_more(folder):
    ledger = Ledger(folder)
    ledger.note("two", "finished", values={"psnr": 1.0})
    two = table.read_rows(folder)[1]
    assert (two.state, two.cause, two.psnr) == ("finished", "", 1.0)


def test_what_a_stopped_driver_had_trained_is_shown(folder):
    """An attempt that ended before its first word takes nothing back."""
    ledger = Ledger(folder)
    ledger.note("three", "stopped", **Mark(50, 48, 120).facts())
    ledger.mark({}, 0)
    ledger.note("three", "lost", cause="NodeDiedError", **Mark(0, 0, 0).facts())
    three = table.read_rows(folder)[2]
    assert (three.state, three.progress, three.repeated_steps) == ("begun", 0.4, 2)
    assert " 40% done" in table.line(three)


def test_segments_count_by_their_frames(folder):
    """The first, of ten frames, is finished, the second, of five, is half done, the third is not begun."""
    plan = ChunkPlan(ChunkOptions(10, False, "none"), "", 20, divide(range(20), 10, [10, 15]))
    run = ChunkedFolder(folder / "four")
    run.path.mkdir()
    write_plan(run.plan, plan)
    ledger = Ledger(folder)
    ledger.note("four/segments/00000", "finished")
    ledger.note("four/segments/00001", "stopped", **Mark(30, 30, 60).facts())
    assert table.read_rows(folder)[3].progress == (10 + 5 / 2) / 20
    ledger.mark({"four/segments/00002": Mark(12, 0, 60)}, 0)
    assert table.read_rows(folder)[3].progress == (10 + 5 / 2 + 5 / 5) / 20
    run.plan.write_text("{")
    assert table.read_rows(folder)[3].progress == 0


def test_diagnose_names_a_run_of_the_fleet(folder, hnerv_main, capsys):
    assert hnerv_main("diagnose", folder) == 2
    told = f"{folder} is a fleet folder, not a run folder: pass one of its runs, such as {folder}"
    assert capsys.readouterr().err == f"hnerv diagnose: {told}/NAME\n"
    (folder / "two").mkdir()
    (folder / "two" / "config.json").write_text("{}")
    for verb in ("diagnose", "report"):
        assert hnerv_main(verb, folder, *[folder / "two"] * (verb == "report")) == 2
        assert capsys.readouterr().err == f"hnerv {verb}: {told}/two\n"


def test_a_folder_without_a_fleet(tmp_path, hnerv_main, capsys):
    with pytest.raises(UserError, match="is not a fleet folder"):
        table.read_rows(tmp_path)
    assert hnerv_main("fleet", tmp_path, "--status") == 2
    assert "is not a fleet folder" in capsys.readouterr().err


def test_status_needs_no_ray(folder, hnerv_main, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert hnerv_main("fleet", folder, "--status") == 0
    assert "1 finished, 1 failed" in capsys.readouterr().out


def test_the_page_holds_the_table_and_escapes_it(folder, hnerv_main, capsys):
    Ledger(folder).note("four", "failed", cause="<script>x</script> & more")
    assert hnerv_main("report", folder) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "4 videos: 1 finished, 2 failed" in page and "30.50" in page and "http" not in page.split("</style>")[1]
    assert "&lt;script&gt;x&lt;/script&gt; &amp; more" in page and "<script>x" not in page
