"""How a worker gets a video: from its path, its address, or the driver."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hnerv.data.video import frame_count, load_video
from hnerv.data.video.sources import download, is_remote
from hnerv.errors import UserError
from hnerv.fleet import locations
from hnerv.fleet.locations import (
    VideoLocation,
    VideoMissing,
    archive_video,
    content_fingerprint,
    driver_location,
    extract_video,
    scratch_folder,
    worker_path,
)


def test_a_path_with_the_same_content_is_read(film):
    location = driver_location(str(film))
    assert location.source == str(film.resolve()) and worker_path(location, None) == film.resolve()


def test_other_content_at_the_path_is_a_missing_video(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    location = driver_location(str(path))
    path.write_bytes(b"two")
    with pytest.raises(VideoMissing):
        worker_path(location, None)
    path.unlink()
    with pytest.raises(VideoMissing):
        worker_path(location, None)


def test_a_video_may_exist_on_workers_only(tmp_path):
    location = driver_location(str(tmp_path / "later.mp4"))
    assert location.fingerprint == "" and worker_path(location, None) == tmp_path / "later.mp4"


@pytest.mark.parametrize(
    ("data", "match"), [(b"caf\xe9.mp4", "not valid UTF-8: rename it"), (b"a\0b", "not a valid path")]
)
def test_an_invalid_path_is_one_sentence(tmp_path, data, match):
    with pytest.raises(UserError, match=match) as error:
        driver_location(os.fsdecode(os.fsencode(tmp_path) + b"/" + data))
    assert str(error.value).isprintable()


def test_fingerprint_of_a_folder_of_images(tmp_path, make_film):
    ours, theirs = (content_fingerprint(make_film(tmp_path / name, count=3)) for name in "ab")
    assert ours == theirs != content_fingerprint(make_film(tmp_path / "c", count=4))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_sent_video_has_the_same_frames(tmp_path, make_film, kind):
    film = make_film(tmp_path / "film", count=2)
    path = film if kind == "folder" else film / "0.png"
    location = driver_location(str(path))
    there = extract_video(archive_video(location), location, tmp_path / "there")
    assert there.name == path.name and load_video(str(there)).digest == load_video(str(path)).digest
    assert worker_path(location, archive_video(location)).name == path.name


def test_a_folder_of_linked_images_is_sent_as_images(tmp_path, make_film):
    film = make_film(tmp_path / "film", count=2)
    (tmp_path / "links").mkdir()
    for image in film.iterdir():
        (tmp_path / "links" / image.name).symlink_to(image)
    location = driver_location(str(tmp_path / "links"))
    there = extract_video(archive_video(location), location, tmp_path / "there")
    assert load_video(str(there)).digest == load_video(str(film)).digest
    assert not any(image.is_symlink() for image in there.iterdir())


def test_a_video_too_large_to_send(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"12345")
    monkeypatch.setattr(locations, "MAX_SENT_BYTES", 4)
    with pytest.raises(UserError, match="too large to send.*same path on all workers, or pass an address"):
        archive_video(driver_location(str(tmp_path / "a.mp4")))


@pytest.mark.parametrize(
    ("data", "remote"),
    [("s3://b/k https://x/y.mp4 zip://a.mp4::s3://b/c.zip", True), ("a.mp4 /a/b c:\\x bunny a://x", False)],
)
def test_an_address_has_a_scheme(data, remote):
    assert {is_remote(one) for one in data.split()} == {remote}


def test_an_address_is_downloaded_by_a_worker_and_by_load_video(tmp_path, film):
    pytest.importorskip("fsspec")
    address = (film / "0.png").as_uri()
    location = driver_location(address)
    assert location == VideoLocation(address, address)
    path = worker_path(location, None)
    assert path.read_bytes() == (film / "0.png").read_bytes() and worker_path(location, None) == path
    video = load_video(address)
    assert video.source == address and video.digest == load_video(str(film / "0.png")).digest
    with pytest.raises(UserError, match="is an address"):
        frame_count(address)


@pytest.mark.parametrize("address", ["file:///nowhere/at/all.mp4", "nosuchthing://x/y.mp4"])
def test_an_unreachable_address_is_one_sentence(tmp_path, address):
    pytest.importorskip("fsspec")
    with pytest.raises(UserError, match="cannot be fetched") as error:
        download(address, tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_scratch_folders_of_killed_processes_are_removed(tmp_path, monkeypatch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f"hnerv-fleet-{dead.pid}-abc", f"hnerv-fleet-{os.getpid()}-abc", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(locations.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(locations.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(locations, "_scratch", [])
    assert scratch_folder() == scratch_folder() and scratch_folder().parent == tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"hnerv-fleet-{os.getpid()}-abc", "other", scratch_folder().name]
    )
