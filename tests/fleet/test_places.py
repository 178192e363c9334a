"""How a worker gets at a video: at its path, by its address, or by post."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hnerv.data.video import frame_count, load_video
from hnerv.data.video.sources import download, is_remote
from hnerv.errors import UserError
from hnerv.fleet import places
from hnerv.fleet.places import Absent, Place, locate, mark_of, place_of, receive, scratch, send


def test_a_path_with_the_same_content_is_used_as_it_is(film):
    place = place_of(str(film))
    assert place.source == str(film.resolve()) and locate(place, None) == film.resolve()


def test_other_content_at_the_path_is_no_such_video(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    place = place_of(str(path))
    path.write_bytes(b"two")
    with pytest.raises(Absent):
        locate(place, None)
    path.unlink()
    with pytest.raises(Absent):
        locate(place, None)


def test_what_the_driver_does_not_see_the_worker_may(tmp_path):
    place = place_of(str(tmp_path / "later.mp4"))
    assert place.mark == "" and locate(place, None) == tmp_path / "later.mp4"


def test_a_mark_knows_the_images_of_a_folder(tmp_path, make_film):
    ours, theirs = (mark_of(make_film(tmp_path / name, count=3)) for name in "ab")
    assert ours == theirs != mark_of(make_film(tmp_path / "c", count=4))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_sent_arrives_with_the_same_frames(tmp_path, make_film, kind):
    film = make_film(tmp_path / "film", count=2)
    path = film if kind == "folder" else film / "0.png"
    place = place_of(str(path))
    there = receive(send(place), place, tmp_path / "there")
    assert there.name == path.name and load_video(str(there)).digest == load_video(str(path)).digest
    assert locate(place, send(place)).name == path.name


def test_a_folder_of_linked_images_is_sent_as_images(tmp_path, make_film):
    film = make_film(tmp_path / "film", count=2)
    (tmp_path / "links").mkdir()
    for image in film.iterdir():
        (tmp_path / "links" / image.name).symlink_to(image)
    place = place_of(str(tmp_path / "links"))
    there = receive(send(place), place, tmp_path / "there")
    assert load_video(str(there)).digest == load_video(str(film)).digest
    assert not any(image.is_symlink() for image in there.iterdir())


def test_a_video_too_large_to_be_sent(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"12345")
    monkeypatch.setattr(places, "MOST", 4)
    with pytest.raises(UserError, match="too large to send.*same path on all workers, or pass an address"):
        send(place_of(str(tmp_path / "a.mp4")))


@pytest.mark.parametrize(
    ("data", "remote"),
    [("s3://b/k", True), ("https://x/y.mp4", True), ("zip://a.mp4::s3://b/c.zip", True), ("a.mp4", False),
     ("/a/b", False), ("c:\\x", False), ("bunny", False), ("a://x", False)],
)  # fmt: skip
def test_an_address_has_a_scheme(data, remote):
    assert is_remote(data) == remote


def test_an_address_is_fetched_by_a_worker_and_by_load_video(tmp_path, film):
    pytest.importorskip("fsspec")
    address = (film / "0.png").as_uri()
    place = place_of(address)
    assert place == Place(address, address)
    path = locate(place, None)
    assert path.read_bytes() == (film / "0.png").read_bytes() and locate(place, None) == path
    video = load_video(address)
    assert video.source == address and video.digest == load_video(str(film / "0.png")).digest
    with pytest.raises(UserError, match="is an address"):
        frame_count(address)


@pytest.mark.parametrize("address", ["file:///nowhere/at/all.mp4", "nosuchthing://x/y.mp4"])
def test_an_address_that_leads_nowhere_is_one_sentence(tmp_path, address):
    pytest.importorskip("fsspec")
    with pytest.raises(UserError, match="cannot be fetched") as fault:
        download(address, tmp_path)
    assert "\n" not in str(fault.value) and not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed(tmp_path, monkeypatch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f"hnerv-fleet-{dead.pid}-abc", f"hnerv-fleet-{os.getpid()}-abc", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(places.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(places.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(places, "_own", [])
    assert scratch() == scratch() and scratch().parent == tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"hnerv-fleet-{os.getpid()}-abc", "other", scratch().name]
    )
