"""JSON files: there and back, whole or not at all, and what cannot be read."""

from __future__ import annotations

import pytest

from hnerv.errors import UserError
from hnerv.files import read_json, write_json


@pytest.mark.parametrize("data", [{}, {"a": [1, 2.5, None, "\N{GREEK SMALL LETTER ALPHA}"]}, [1], "text", 3])
def test_json_there_and_back(tmp_path, data):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    write_json(path, data)
    assert read_json(path) == data
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text(encoding="utf-8").endswith("\n")


def test_what_is_no_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert read_json(path) == {"old": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"{'a': 1}"])
def test_what_cannot_be_read_is_one_line(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_json(path)
    message = str(error.value)
    assert message.startswith(f"{path} cannot be read (") and "\n" not in message
    assert message.endswith("): restore it, or move its folder aside")
