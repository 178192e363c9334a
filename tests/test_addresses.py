"""Files at addresses: copied once, then read as videos, targets and weights like files at paths."""

from __future__ import annotations

import fsspec
import pytest

from hnerv import storage
from hnerv.data.video import frame_count, load_video
from hnerv.errors import UserError
from hnerv.storage import download, is_remote, local_copy, local_path


@pytest.fixture(autouse=True)
def _no_copies(monkeypatch):
    monkeypatch.setattr(storage, "_copies", {})


@pytest.mark.parametrize(
    ("data", "remote"),
    [("s3://b/k https://x/y.mp4 zip://a.mp4::s3://b/c.zip", True), ("a.mp4 /a/b c:\\x bunny a://x", False)],
)
def test_an_address_has_a_scheme(data, remote):
    assert {is_remote(one) for one in data.split()} == {remote}


def test_copies_are_kept_until_others_are_used(monkeypatch):
    files = fsspec.filesystem("memory")
    for number in range(5):
        files.pipe_file(f"/copies/{number}.mp4", bytes([number]))
    addresses = [f"memory://copies/{number}.mp4" for number in range(5)]
    copies = [local_path(address) for address in addresses[:4]]
    assert [(copy.name, copy.read_bytes()) for copy in copies[:2]] == [("0.mp4", b"\0"), ("1.mp4", b"\1")]
    files.rm("/copies", recursive=True)
    assert local_copy(addresses[0]) == copies[0]
    files.pipe_file("/copies/4.mp4", b"\4")
    local_copy(addresses[4])  # the fifth: the one that was used longest ago is removed
    assert [copy.exists() for copy in copies] == [True, False, True, True]
    with pytest.raises(UserError, match="copies/1.mp4 cannot be fetched"):
        local_copy(addresses[1])


@pytest.mark.parametrize(
    ("address", "name"),
    [("{}/a b?.mp4?token=x#y", "a-b"), ("{}/clip.mp4?versionId=3", "clip.mp4"), ("{}/dir/", "dir")],
)
def test_the_name_of_a_copy(tmp_path, monkeypatch, address, name):
    monkeypatch.setattr(fsspec, "open", lambda *_: (tmp_path / "content").open("rb"))
    (tmp_path / "content").write_bytes(b"x")
    assert download(address.format("https://host/path"), tmp_path / "there") == tmp_path / "there" / name


@pytest.mark.parametrize("address", ["file:///nowhere/at/all.mp4", "nosuchthing://x/y.mp4"])
def test_an_unreachable_address_is_one_sentence(tmp_path, address):
    with pytest.raises(UserError, match=f"^{address} cannot be fetched .*: check address") as error:
        download(address, tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="cannot be fetched"):
        load_video(address)


def test_a_video_at_an_address(film):
    address = (film / "0.png").as_uri()
    video = load_video(address)
    assert video.source == address and video.digest == load_video(str(film / "0.png")).digest
    assert frame_count(address) == 1


@pytest.mark.parametrize("kind", ["targets", "rows", "weights"])
def test_clip_files_at_addresses(kind, flags, targets_file, clip_weights, train, tmp_path, lines_of):
    """The runs have the same lines, except for times and memory."""
    path, rows = (clip_weights, "") if kind == "weights" else (targets_file, "@0:12" * (kind == "rows"))
    own = {"clip_targets": None, "clip_model": "hnerv-small"} if kind == "weights" else {}
    found = []
    for name, place in {"path": str(path), "address": path.as_uri()}.items():
        key = "clip_weights" if kind == "weights" else "clip_targets"
        assert train(tmp_path, flags(**{**own, key: place + rows}, epochs=2), name) == 0
        lines = [{k: v for k, v in line.items() if k != "seconds"} for line in lines_of(tmp_path / name)]
        found.append([{k: v for k, v in line.items() if "/Performance/" not in k} for line in lines])
    assert found[0] == found[1]
