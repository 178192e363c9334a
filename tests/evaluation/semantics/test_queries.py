"""The list of texts, the package's and a user's."""

from __future__ import annotations

import pytest
from hnerv.evaluation.semantics import default_queries, read_queries

from hnerv.errors import UserError


def test_the_list_of_the_package():
    found = default_queries()
    assert len(found) == len(set(found)) == 40
    assert all(text == text.strip() and 1 <= len(text.split()) <= 8 for text in found)


def test_a_list_of_ones_own(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("a dog\n\n  a café \r\na cat", encoding="utf-8")
    assert read_queries(path) == ["a dog", "a café", "a cat"]


@pytest.mark.parametrize(
    ("data", "match"), [(None, "no such file"), (b"\xff\xfe\xfa", "cannot be read"), (b" \n\n", "contains no queries")]
)
def test_what_is_no_list_is_refused(tmp_path, data, match):
    path = tmp_path / "mine.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match=match):
        read_queries(path)
