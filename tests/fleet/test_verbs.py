"""The verbs on fleets without Ray: parts of an array, storage in a local S3, status, report, encode, invalid flags."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hnerv import storage as storage_module
from hnerv.data.video import open_writer
from hnerv.fleet import driver as driver_module
from hnerv.fleet.status import Status, fleet_statuses, write_status
from hnerv.fleet.table import fleet_table, write_table
from hnerv.runs import RUN_FILES
from hnerv.storage import Lease, Storage, StorageError
from hnerv.timeline import Timeline
from hnerv.training.trainer import Trainer


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(sys, "argv", ["hnerv"])
    monkeypatch.setattr(storage_module, "WAIT", 0.01)


@pytest.fixture
def many(manifest, clips) -> Path:
    """A manifest of five videos."""
    return manifest(*({"data": str(clips / f"clip{number % 2}"), "name": f"v{number}"} for number in range(5)))


# Parts of a job array


@pytest.fixture
def part(many, words, tmp_path, hnerv_main) -> Callable[..., int]:
    """part("1/3", lr=0.5) trains a part of `many` -> exit status."""
    return lambda text, **changes: hnerv_main(
        "fleet", many, "-o", tmp_path / "fleet", f"--task={text}", *words(**changes)
    )


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """The names of the videos whose tasks are called. They end at once; `v2` fails."""
    names = []

    def train(video, address, options) -> Status:
        names.append(video.name)
        status = Status("failed", "nothing") if video.name == "v2" else Status("finished", owner="me")
        write_status(Storage(address), video.name, status)
        return status

    defaults = driver_module.run_fleet.__defaults__
    monkeypatch.setattr(driver_module.run_fleet, "__defaults__", (*defaults[:-1], train))
    return names


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_are_disjoint_and_cover_the_fleet(part, tmp_path, trained, count, capsys):
    ends = []
    for number in range(1, count + 1):
        before = len(trained)
        ends.append(part(f"{number}/{count}"))
        assert ends[-1] == ("v2" in trained[before:])
    assert sorted(trained) == [f"v{number}" for number in range(5)] and sum(ends) == 1
    assert f"1 of {len(range(2 % count, 5, count))} videos failed, for example v2: nothing; " in capsys.readouterr().err
    assert len((tmp_path / "fleet" / "fleet.csv").read_text().splitlines()) == 6


@pytest.mark.parametrize("text", ["0/2", "3/2", "x", "1", "1/0", "-1/2", "1/2/3", "١/٢"])
def test_an_invalid_part(part, tmp_path, capsys, text):
    assert part(text) == 2
    assert f"--task {text!r} is not a part: write it as I/N, with I from 1 to N" in capsys.readouterr().err
    assert not (tmp_path / "fleet").exists()


def test_settings_of_a_started_video_stay(part, tmp_path, trained, capsys):
    assert (part("3/5"), part("1/5", lr=0.5), part("2/5", lr=0.1)) == (1, 0, 2)  # v2 fails, v0 is finished
    assert "v0 in " in capsys.readouterr().err and trained == ["v2", "v0"]
    rows = [json.loads(line) for line in (tmp_path / "fleet" / "manifest.jsonl").read_text().splitlines()]
    assert {row["lr"] for row in rows} == {0.5}


def test_a_replaced_part_leaves_the_status_of_the_other(part, tmp_path, at_step, capsys):
    storage, other = Storage(str(tmp_path / "fleet")), Status("running", owner="another")
    at_step(6, lambda _: write_status(storage, "v0", other))
    assert part("1/5") == 0 and fleet_statuses(storage)["v0"] == other
    assert "v0     lost" in capsys.readouterr().out


def test_a_stop_in_the_last_evaluation_starts_no_other_video(part, tmp_path, monkeypatch):
    real = Trainer.evaluate
    monkeypatch.setattr(Trainer, "evaluate", lambda self: (os.kill(os.getpid(), signal.SIGTERM), real(self)))
    assert part("1/2", epochs=1, eval_freq=1) == 143
    states = [status.state for status in fleet_statuses(Storage(str(tmp_path / "fleet"))).values()]
    assert states == ["finished", *["waiting"] * 4]


# A fleet in S3


@pytest.fixture
def film_in_s3(s3, film, targets_file, words) -> tuple[str, list[str], str]:
    """Addresses of a manifest with two videos, flags, and the address of the film, lossless; targets are there too."""
    import s3fs

    folder = s3("calm")
    files = s3fs.S3FileSystem()
    local = targets_file.parent / "film.mkv"
    if not local.exists():
        with open_writer(local, (32, 64), Timeline.at_rate(24)) as writer:
            for number in range(12):
                writer.write(np.asarray(Image.open(film / f"{number}.png")))
    files.put_file(str(local), f"{folder}/videos/film.mkv")
    files.put_file(str(targets_file), f"{folder}/videos/targets.safetensors")
    rows = [{"data": "film.mkv", "clip_targets": "targets.safetensors"}]
    rows += [{"data": f"{folder}/videos/film.mkv", "name": "deep/second", "clip_weights": "none", "epochs": 2}]
    files.pipe_file(f"{folder}/videos/list.jsonl", "\n".join(map(json.dumps, rows)).encode())
    return f"{folder}/videos/list.jsonl", words(clip_targets=None), str(local)


@pytest.mark.parametrize("bucket", ["calm", "flaky"])
def test_a_fleet_in_s3(
    server, s3, film_in_s3, hnerv_main, train, targets_file, tmp_path, bench, capsys, snapshot, bucket
):
    """Manifest, video, targets and runs are in S3; in `flaky`, a quarter of the writes fails."""
    (source, flags, local), address = film_in_s3, f"{s3(bucket)}/fleet"
    assert hnerv_main("fleet", source, "-o", address, "--task", "1/1", *flags) == 0
    out, err = capsys.readouterr()
    assert "2 videos: 2 finished; 0 retries, 0 steps repeated" in out and "Traceback" not in err
    assert bucket == "calm" or int(urllib.request.urlopen(f"{server}/refused").read()) > 5
    for name, words in {
        "film": ["--clip-targets", targets_file],
        "deep/second": ["--clip-weights", "none", "--epochs", 2],
    }.items():
        assert train(tmp_path / "single", [*flags, *words, "--data", local], name) == 0
        ours, theirs = Storage(address).fetch(name, RUN_FILES, tmp_path / "copy"), tmp_path / "single" / name
        states = [torch.load(run / "checkpoints" / "latest.pt") for run in (ours, theirs)]
        # Records differ: they name the video.
        assert all(bench.same(*(state[key] for state in states)) for key in ("model", "optimizer", "evaluation"))
        assert bench.timeless(ours) == bench.timeless(theirs)

    capsys.readouterr()
    assert hnerv_main("fleet", address, "--status") == 0
    assert "2 videos: 2 finished" in capsys.readouterr().out
    assert hnerv_main("report", address) == 0 and hnerv_main("report", address, "-o", tmp_path / "page.html") == 0
    assert f"report:    {address}/report.html (" in capsys.readouterr().out
    pages = [Storage(address).read("report.html"), (tmp_path / "page.html").read_bytes()]
    pages = [re.sub("Written .*? by", "", page.decode()) for page in pages]
    assert pages[0] == pages[1] and "deep/second" in pages[0]
    assert hnerv_main("encode", address, "--no-measure") == 0
    (tmp_path / "there.hnerv").write_bytes(Storage(address).read("deep/second.hnerv"))
    assert hnerv_main("encode", theirs, "-o", tmp_path / "here.hnerv", "--no-measure") == 0
    for name in ("here", "there"):
        assert hnerv_main("decode", tmp_path / f"{name}.hnerv", "-o", tmp_path / name) == 0
    assert snapshot(tmp_path / "here") == snapshot(tmp_path / "there")


@pytest.mark.parametrize("task", ["1/1", ""])
def test_a_storage_that_cannot_be_written_is_one_sentence(many, words, s3, hnerv_main, monkeypatch, capsys, task):
    sleep, waits = time.sleep, []
    monkeypatch.setattr(time, "sleep", lambda seconds: waits.append(seconds) or sleep(seconds))
    assert hnerv_main("fleet", many, "-o", s3("missing"), f"--task={task}", *words()) == 1
    err = capsys.readouterr().err
    assert err.startswith("hnerv fleet: cannot write s3://missing/") and len(err.splitlines()) == 1
    assert sum(waits) < 1  # not for the time of a lease


def test_a_second_fleet_in_the_folder_is_refused(many, words, tmp_path, hnerv_main, monkeypatch, capsys):
    storage, real = Storage(str(tmp_path / "fleet")), Storage.read
    monkeypatch.setattr(storage_module, "LEASE_SECONDS", 1.5)
    with Lease(storage) as first:
        renewing = lambda self, name: (self is not storage and first.renew(), real(self, name))[1]  # noqa: E731
        monkeypatch.setattr(Storage, "read", renewing)
        assert hnerv_main("fleet", many, "-o", storage.address, *words()) == 2
        assert os.listdir(tmp_path / "fleet") == ["lease.json"]
    assert f"{storage.address} is in use by process {os.getpid()} on " in capsys.readouterr().err


# Status, report, encode


@pytest.fixture
def folder(tmp_path, finished, divided) -> Path:
    """A fleet: `one` and `two` (divided) are finished, `gone` lost its files, `bad` failed; others have not ended."""
    storage, now = Storage(str(tmp_path / "fleet")), time.time()
    values = {"psnr": 30.5, "clip_sim": 0.9, "bpp_estimate_8bit": 0.1, "seconds": 12.0, "targets": "file <a>"}
    found = {
        "one": Status("finished", "", values, retries=2, repeated_steps=7, progress=1.0),
        "two": Status("finished", progress=1.0),
        "gone": Status("finished", progress=1.0),
        "bad": Status("failed", "<script>x</script> & more"),
        "new": Status("running", time=now - 5, progress=0.25),
        "silent": Status("running", time=now - 600, progress=0.5),
        "stopped": Status("stopped", time=now - 600, progress=0.75),
    }
    names = [*found, "torn", "waiting"]
    storage.write("manifest.jsonl", "".join(json.dumps({"name": name}) + "\n" for name in names).encode())
    for name, run in {"one": finished, "two": divided}.items():
        shutil.copytree(run, storage.path / name)
    for name, status in found.items():
        write_status(storage, name, status)
    storage.write("torn/status.json", b'{"state": "fin')
    return storage.path


def test_the_table_of_a_fleet(folder, hnerv_main, capsys, snapshot):
    before = snapshot(folder)
    assert hnerv_main("fleet", folder, "--status") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "video state PSNR unseen bpp* sim seconds retries"
    assert lines[1:10] == [
        "one finished 30.50 – 0.1000 0.900 12 2",
        "two finished – – – – – 0",
        "gone finished – – – – – 0",
        "bad failed – – – – – 0 <script>x</script> & more",
        "new running 25% – – – – – 0",
        "silent lost 50% – – – – – 0",
        "stopped stopped 75% – – – – – 0",
        "torn waiting – – – – – 0",
        "waiting waiting – – – – – 0",
    ]
    assert lines[10].endswith("measured against the targets: file <a>")
    counts = "1 failed, 2 running, 1 stopped, 3 finished, 2 waiting"
    assert lines[11] == f"9 videos: {counts}; 2 retries, 7 steps repeated" and snapshot(folder) == before


def test_failed_videos_of_a_large_fleet_are_shown_first(tmp_path):
    statuses = {f"v{i}": Status("finished") for i in range(100)} | {"bad": Status("failed", "why")}
    lines = fleet_table(statuses, most=5).splitlines()
    assert lines[1].startswith("bad") and lines[6] == "… and 96 more, all in fleet.csv"
    write_table(Storage(str(tmp_path)), statuses)
    with (tmp_path / "fleet.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 101 and (rows[0]["psnr"], rows[100]["state"], rows[100]["cause"]) == ("", "failed", "why")


def test_the_page_is_one_file_with_escaped_texts(folder, hnerv_main, tmp_path, capsys):
    assert hnerv_main("report", folder) == 0
    assert capsys.readouterr().out.startswith(f"report:    {folder}/report.html (")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "9 videos: 1 failed, " in page and "30.50" in page and "lost  50%" in page and "file &lt;a&gt;" in page
    assert "&lt;script&gt;x&lt;/script&gt; &amp; more" in page and "<script" not in page
    assert not re.search(r"https?:|\ssrc=|url\((?!.?data:)", page)
    assert hnerv_main("report", folder, "--output", folder / "report.html") == 2
    assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["fleet", "--status"], ["diagnose"], ["report"], ["report", "ONE"], ["encode"]])
def test_a_folder_that_is_none_of_a_fleet_or_a_run(folder, tmp_path, hnerv_main, capsys, words):
    """A fleet folder is not a run folder either."""
    place = folder if words[0] == "diagnose" or "ONE" in words else tmp_path / "empty"
    place.mkdir(exist_ok=True)
    flags = [str(folder / "one") if word == "ONE" else word for word in words[1:]]
    output = ["-o", tmp_path / "x.hnerv"] if words[0] == "encode" else []
    assert hnerv_main(words[0], place, *flags, *output) == 2
    assert str(place) in (err := capsys.readouterr().err) and len(err.splitlines()) == 1


def test_all_finished_runs_are_encoded(folder, tmp_path, hnerv_main, capsys):
    assert hnerv_main("encode", folder) == 1
    out, err = capsys.readouterr()
    assert "1 of 3 runs could not be encoded, for example gone: " in err and len(err.splitlines()) == 1
    assert [line.split()[0] for line in out.splitlines()] == ["one.hnerv", "two.hnerv", "gone.hnerv"]
    assert "gone.hnerv  failed: " in out and not (folder / "gone.hnerv").exists()
    for name in ("one", "two"):
        assert hnerv_main("encode", folder / name, "-o", tmp_path / f"{name}.hnerv") == 0
        assert (folder / f"{name}.hnerv").read_bytes() == (tmp_path / f"{name}.hnerv").read_bytes()
        line = next(line for line in out.splitlines() if line.startswith(name))
        size, change = (tmp_path / f"{name}.hnerv").stat().st_size, capsys.readouterr().out.split("\n")
        assert line.startswith(f"{name}.hnerv  {size} bytes  ") and line.split("  ")[2] in change

    (folder / "gone" / "status.json").unlink()
    (folder / "one.hnerv").write_bytes(b"old")
    assert hnerv_main("encode", folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{name}.hnerv  exists: --overwrite replaces it" for name in ("one", "two")]
    assert hnerv_main("encode", folder, "--overwrite", "--no-measure") == 0
    assert (folder / "one.hnerv").read_bytes() == (tmp_path / "one.hnerv").read_bytes()
    assert hnerv_main("encode", folder, "-o", tmp_path / "x.hnerv") == 2
    assert "-o is for a single run: remove it, " in capsys.readouterr().err


# Invalid flags


def test_a_missing_ray_is_one_sentence(clips, words, tmp_path, hnerv_main, capsys):
    assert hnerv_main("fleet", clips, "-o", tmp_path / "fleet", *words()) == 2
    assert "pip install -e '.[fleet]', or pass --task" in capsys.readouterr().err and not (tmp_path / "fleet").exists()


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ([], "-o is missing"),
        (["-o", "x", "--retries", "-1"], "must be at least 0"),
        (["-o", "x", "--cpus-per-task", "0"], "--cpus-per-task 0 would run all tasks at once"),
        (["-o", "x", "--gpus-per-task", "1.5"], "--gpus-per-task 1.5 must be an integer or a fraction below 1"),
        (["-o", "x", "--cpus-per-task", "nan"], "must be finite"),
        (["-o", "x", "--gpus-per-task", "inf"], "must be finite"),
        (["-o", "x", "--memory-per-task", "much"], "'much' is not a size"),
        (["-o", "x", "--segment-init", "previous"], "--segment-init needs"),
        (["-o", "x", "--epochs", "0"], "--epochs 0 must be at least 1"),
        (["-o", "x", "--preset", "none"], "none"),
        (["-o", "nosuch://x"], "nosuch://x cannot be opened"),
        (["-o", "x", "--compile"], "--compile is not a flag of hnerv fleet: remove it; each worker"),
        (
            ["-o", "x", "--exp-id", "a"],
            "--exp-id is not a flag of hnerv fleet: remove it; each run is named after its video",
        ),
    ],
)
def test_invalid_flags(clips, hnerv_main, tmp_path, monkeypatch, capsys, flags, match):
    monkeypatch.chdir(tmp_path)
    assert hnerv_main("fleet", clips, *flags) == 2
    assert match in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_too_many_threads(clips, tmp_path, capsys):
    from hnerv.cli import main

    with pytest.raises(SystemExit, match="2"):
        main(["fleet", str(clips), "-o", str(tmp_path / "x"), "--threads", "99999999999"])
    assert "--threads 99999999999 is above" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_a_lost_task_may_have_finished_and_the_storage_may_fail(many, words, tmp_path, hnerv_main, monkeypatch, capsys):
    """Tasks are lost after `v0` has finished, and the status of `v1` cannot be written."""
    storage, real = Storage(str(tmp_path / "fleet")), Storage.write

    class Lost:
        def submit(self, video) -> str:
            if video.name == "v0":
                write_status(storage, "v0", Status("finished", owner="gone"))
            return video.name

        def ended(self, handles: list[str]) -> list[tuple[str, Status]]:
            return [(handle, Status("failed", "WorkerCrashedError: the worker died")) for handle in handles]

    def write(self, name, data):
        if name == "v1/status.json":
            raise StorageError("cannot write")
        real(self, name, data)

    monkeypatch.setattr(driver_module, "connected", lambda *_: contextlib.nullcontext(Lost()))
    monkeypatch.setattr(Storage, "write", write)
    assert hnerv_main("fleet", many, "-o", storage.address, *words()) == 1
    assert "4 of 5 videos failed, for example v1: WorkerCrashedError: the worker died" in capsys.readouterr().err
    assert [one.state for one in fleet_statuses(storage).values()] == ["finished", "waiting", *["failed"] * 3]
