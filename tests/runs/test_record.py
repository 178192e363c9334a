"""The record of a run: to a dictionary and back, what is pinned, what is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest

from hnerv.config import Config
from hnerv.errors import UserError
from hnerv.runs.record import NO_TARGETS, RunRecord, TargetsRecord, read_record

HERE = Path("config.json")


@pytest.fixture(scope="module")
def record(finished) -> RunRecord:
    return read_record(finished / "config.json")


def test_inverse_of_to_dict(record, finished):
    text = json.dumps(record.to_dict())
    assert RunRecord.from_dict(json.loads(text), HERE) == record
    assert json.loads(text) == json.loads((finished / "config.json").read_text())
    initial = dataclasses.replace(record, initial={"checkpoint": "00000", "sha256": "0"})
    assert RunRecord.from_dict(initial.to_dict(), HERE) == initial


def test_without_targets(record):
    bare = record.without_targets()
    assert (bare.targets, bare.scene.clip_dim, bare.targets_label) == (None, 0, NO_TARGETS)
    assert RunRecord.from_dict(bare.to_dict(), HERE) == bare
    assert record.targets_label == record.targets.source


@pytest.mark.parametrize(
    ("weights", "file", "kind", "found", "pinned"),
    [
        ("auto", "", "random", "random:0", "random"),
        ("auto", "", "clip", "openai", "openai"),
        ("auto", "", None, "", "auto"),
        ("auto", "t.safetensors", "file", "t.safetensors sha256:0", "auto"),
        ("random", "", "random", "random:0", "random"),
        ("laion2b", "", "clip", "laion2b", "laion2b"),
        ("none", "", None, "", "none"),
    ],
)
def test_auto_is_pinned_to_what_was_found_and_nothing_else_is(record, weights, file, kind, found, pinned):
    config = Config().replaced({"clip_weights": weights, "clip_targets": file})
    targets = kind and TargetsRecord("source", kind, found)
    assert dataclasses.replace(record, targets=targets).pinned(config) == config.replaced({"clip_weights": pinned})


def test_targets_are_known_by_their_sha256(record):
    renamed = dataclasses.replace(record.targets, weights="other name " + record.targets.fingerprint)
    record.check_targets(HERE, renamed)
    for other in (None, dataclasses.replace(renamed, weights="openai")):
        with pytest.raises(UserError, match="was trained on the targets .* but found .*: make the former available"):
            record.check_targets(HERE, other)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((), None, "is not a run record"),
        (("config", "model", "new_flag"), 1, "only the hnerv version that wrote a run can read it"),
        (("scene", "frames"), -1, "the scene of this checkpoint is damaged"),
        (("video", "crop"), [0, 0, 1], "its 'video' is invalid"),
        (("video", "digest"), 7, "its 'video' is invalid"),
        (("video", "display"), {"wide": 0}, "its 'video' is invalid"),
        (("targets",), {"source": "s"}, "its 'targets' is invalid"),
        (("targets", "kind"), None, "its 'targets' is invalid"),
        (("model",), 5, "its 'model' is invalid"),
        (("model", "width"), 0, "its 'model' is invalid"),
        (("preset",), 3, "its 'preset' is invalid"),
    ],
)
def test_a_damaged_record_names_its_part(record, path, value, message):
    data = copy.deepcopy(record.to_dict())
    place = data
    for key in path[:-1]:
        place = place[key]
    if path:
        place[path[-1]] = value
    with pytest.raises(UserError, match=message) as error:
        RunRecord.from_dict(data if path else value, HERE)
    assert str(error.value).startswith("config.json") and "\n" not in str(error.value)
