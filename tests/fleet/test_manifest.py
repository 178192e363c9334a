"""Manifests and folders of videos; each error is one sentence with its line number."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnerv.errors import UserError
from hnerv.fleet.manifest import FleetDefaults, manifest_text, read_videos, rows_of
from hnerv.runs import ChunkOptions
from hnerv.runs.names import check_name, default_name


def read(source: Path, defaults: FleetDefaults = FleetDefaults()) -> list:  # noqa: B008 (a tuple)
    return read_videos(str(source), defaults)


def test_a_line_is_a_video_with_its_own_flags(manifest, tmp_path):
    rows = [
        {"data": "a.mp4"},
        "",
        {"data": "/else/b.mp4", "name": "cats/b", "epochs": 50, "--dec-strides": [2, 2], "clip_site": 1, "lr": 1},
        {"data": "s3://bucket/c.mp4", "segment-frames": 20, "preset": "demo"},
        {"data": "bunny"},
    ]
    a, b, c, d = read(manifest(*rows), FleetDefaults("", {"epochs": 7, "lr": 0.1}, ChunkOptions(10)))
    assert (a.name, a.data, a.choice.config.train.epochs) == ("a", str(tmp_path / "a.mp4"), 7)
    assert a.chunk_options == ChunkOptions(10) and a.choice.config.video.data == a.data
    assert (b.name, b.data) == ("cats/b", "/else/b.mp4")
    assert b.choice.config.train.epochs == 50 and b.choice.config.model.dec_strides == (2, 2)
    assert b.choice.config.train.lr == 1.0
    assert (c.name, c.data, c.chunk_options) == ("c", "s3://bucket/c.mp4", ChunkOptions(20))
    assert c.choice.preset == "demo" and c.choice.config.train.epochs == 7 and c.choice.config.model.modelsize == 0.6
    assert (d.name, d.data) == ("bunny", "bunny")


def test_a_written_manifest_needs_no_command_line(manifest, tmp_path):
    rows = {"data": "x.mkv", "preset": "demo", "epochs": 3}, {"data": "y.mkv", "segment_scenes": True}
    videos = read(manifest(*rows), FleetDefaults("", {"lr": 0.5, "clip_weights": "none"}))
    (tmp_path / "again.jsonl").write_bytes(manifest_text(videos))
    again = read(tmp_path / "again.jsonl")
    for one, other in zip(again, videos, strict=True):
        assert one._replace(choice=None) == other._replace(choice=None)
        assert one.choice.config == other.choice.config
    assert [*rows_of(manifest_text(videos))] == ["x", "y"]


@pytest.mark.parametrize("text", [None, b"", b"{", b"[1]", b"3", b'{"name": 3}', b'{"name": "a"}\n{"na', b"\xff"])
def test_a_damaged_manifest_of_a_fleet_has_no_rows(text):
    assert rows_of(text) == {}


def test_paths_are_absolute(tmp_path, monkeypatch):
    """In a line, they are relative to the manifest; on the command line, to the working directory."""
    for name in ("lists/w.safetensors", "lists/a.mp4", "here/w.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    rows = [{"data": "a.mp4", "clip_targets": "t.safetensors"}, {"data": "bunny", "clip-weights": "w.safetensors"}]
    rows += [{"data": "s3://b/c.mp4", "clip_targets": "s3://b/t@0:5", "clip_weights": "openai"}]
    (tmp_path / "lists" / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path / "here")
    defaults = FleetDefaults("", {"clip_targets": "mine.safetensors", "clip_weights": "w.safetensors"})
    a, b, c = read(Path("../lists/m.jsonl"), defaults)
    assert [one.data for one in (a, b, c)] == [str(tmp_path / "lists" / "a.mp4"), "bunny", "s3://b/c.mp4"]
    found = [(one.choice.config.clip.clip_targets, one.choice.config.clip.clip_weights) for one in (a, b, c)]
    assert found == [
        (str(tmp_path / "lists" / "t.safetensors"), str(tmp_path / "here" / "w.safetensors")),
        (str(tmp_path / "here" / "mine.safetensors"), str(tmp_path / "lists" / "w.safetensors")),
        ("s3://b/t@0:5", "openai"),
    ]
    monkeypatch.chdir(tmp_path)
    assert [one.data for one in read(Path("lists"))] == [str(tmp_path / "lists" / "a.mp4")]


def test_a_manifest_at_an_address():
    rows = [{"data": "c.mp4", "clip_targets": "deep/t.safetensors"}, {"data": "/else/d.mp4"}]
    fsspec.filesystem("memory").pipe_file("/lists/m.jsonl", "\n".join(map(json.dumps, rows)).encode())
    c, d = read_videos("memory://lists/m.jsonl", FleetDefaults())
    assert (c.data, d.data) == ("memory://lists/c.mp4", "/else/d.mp4")
    assert c.choice.config.clip.clip_targets == "memory://lists/deep/t.safetensors"
    with pytest.raises(UserError, match="^memory://lists/gone.jsonl cannot be fetched") as error:
        read_videos("memory://lists/gone.jsonl", FleetDefaults())
    assert "\n" not in str(error.value)


def test_a_folder_of_video_files_and_image_folders(make_film, tmp_path):
    clips = make_film(tmp_path / "clips" / "clip", count=1).parent
    for name in ("b.mp4", "A.MKV", "notes.txt", ".hidden.mp4"):
        (clips / name).write_bytes(b"")
    (clips / "empty").mkdir()
    names = [video.name for video in read(clips)]
    assert names == ["A", "b", "clip"]
    with pytest.raises(UserError, match="has no videos"):
        read(clips / "empty")
    (clips / "b.mkv").write_bytes(b"")
    with pytest.raises(UserError, match="rename one, or write a manifest"):
        read(clips)
    with pytest.raises(UserError, match="neither a folder of videos nor a JSON Lines manifest"):
        read(tmp_path / "none")


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ("{", "not valid JSON"),
        ("[1]", 'not an object with a string "data"'),
        ({"name": "x"}, "data"),
        ({"data": 3}, "data"),
        ({"data": "a", "--data": 5}, "a key appears twice"),
        ({"--data": 5}, 'not an object with a string "data"'),
        ({"data": "~nosuchuser/x"}, "the home folder in .* does not exist"),
        ({"data": "a\0b"}, "unprintable characters"),
        ('{"data": "\\ud800"}', "unprintable characters"),
        ({"data": "a", "name": "x.old1"}, "ends like that of a run moved aside"),
        ({"data": "a", "epochs": "many"}, "train.epochs in the configuration is 'many', not of type int"),
        ({"data": "a", "epochs": True}, "epochs"),
        ({"data": "a", "epochs": 0}, "--epochs 0 must be at least 1"),
        ({"data": "a", "lr": None}, "lr"),
        ({"data": "a", "epoch": 3}, "unknown keys epoch"),
        ({"data": "a", "preset": "none"}, "none"),
        ({"data": "a", "preset": 1}, "preset '1' must be a string"),
        ({"data": "a", "name": "../x"}, "'../x' is not valid"),
        ({"data": "a", "name": "/x"}, "is not valid"),
        ({"data": "a", "name": "x/segments/y"}, "contains the reserved name"),
        ({"data": "a", "name": "fleet.csv"}, "contains the reserved name"),
        ({"data": "a", "name": "x/Status.json"}, "contains the reserved name"),
        ({"data": "a", "name": "lease.json"}, "contains the reserved name"),
        ({"data": "a", "name": 5}, "must be a non-empty string"),
        ({"data": "a", "segment_frames": "2"}, "segment_frames '2' must be of type int"),
        ({"data": "a", "segment_frames": 1}, "--segment-frames 1 must be at least 3"),
        ({"data": "a", "segment_init": "previous"}, "--segment-init needs a video in segments"),
        ({"data": "x/first.mp4"}, "'first' is already used by .*line 1"),
        ({"data": "a", "name": "FIRST"}, "is already used by"),
        ({"data": "a", "name": "first/inner"}, "is already used by"),
    ],
)
def test_an_error_is_one_sentence_with_its_line(manifest, row, match):
    with pytest.raises(UserError, match=match) as error:
        read(manifest({"data": "first.mp4"}, row))
    assert "line 2: " in str(error.value) and "\n" not in str(error.value)


def test_no_run_folder_inside_another(manifest):
    with pytest.raises(UserError, match="is already used by .*line 1"):
        read(manifest({"data": "a", "name": "x/y"}, {"data": "a", "name": "x"}))


def test_a_binary_manifest(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(b"\xff\xfe\0")
    with pytest.raises(UserError, match="is not a text file: pass a JSON Lines manifest"):
        read(tmp_path / "m.jsonl")


@given(st.text(max_size=60))
def test_names_are_safe_paths(text):
    try:
        check_name(text)
    except UserError:
        pass
    else:
        parts = PurePosixPath(text).parts
        assert ".." not in parts and not text.startswith("/") and "\0" not in text
        assert all(part[0].isalnum() and part not in ("segments", "checkpoints") for part in parts)
    name = default_name(text)
    assert "/" not in name and name[0].isalnum() and len(name) <= 200


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("a/b.tar.mp4", "b.tar"),
        ("s3://x/y/z.mp4", "z"),
        ("dir/", "dir"),
        ("ümlaut é.mp4", "mlaut -"),
        (".mp4", "mp4"),
        ("a.old1.mp4", "a-old1"),
    ],
)
def test_default_names(data, name):
    assert default_name(data) == name
