"""Checkpoints, targets, bitstreams and run folders from strangers."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st

from hnerv.codec import BitstreamFile, open_single_chunk, play
from hnerv.codec.description import info_dict, origin_lines, parts_table
from hnerv.codec.format import read_section
from hnerv.data.clip.targets import read_targets_file
from hnerv.geometry import PatchGrid
from hnerv.runs.checkpoint import load_checkpoint
from hnerv.runs.models import open_checkpoint

# hypothesis warns where it would have to print a long example
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

GRID = PatchGrid(32, 64, 2, 4)
DAMAGE = st.tuples(st.sampled_from(["flip", "cut", "zero", "insert", "double"]), st.floats(0, 1), st.integers(0, 255))


def damaged(data: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    """Each change names a place as a share of the length."""
    for how, share, byte in changes:
        place = int(share * (len(data) - 1)) if data else 0
        if how == "flip":
            data = data[:place] + bytes(b ^ (byte or 1) for b in data[place : place + 1]) + data[place + 1 :]
        elif how == "cut":
            data = data[:place]
        elif how == "zero":
            data = data[:place] + bytes(len(data[place : place + byte])) + data[place + byte :]
        elif how == "insert":
            data = data[:place] + bytes([byte]) * (1 + byte % 9) + data[place:]
        else:
            data = data[:place] + data[place // 2 :]
    return data


def all_damage() -> st.SearchStrategy:
    return st.lists(DAMAGE, min_size=1, max_size=3)


@pytest.fixture(scope="module")
def checkpoint(finished: Path) -> bytes:
    return (finished / "checkpoints" / "latest.pt").read_bytes()


@pytest.fixture
def use_checkpoint(settled, refused):
    """What eval.py, hnerv encode and search do with one, before they look for a video."""

    def use(path: Path) -> object:
        found = settled(lambda: open_checkpoint(path))
        if found is not refused:
            with torch.no_grad():
                scene = found.model.scene
                if found.record.config.model.embedding != "encoder" and scene.height * scene.width < 1 << 16:
                    assert found.model.eval()(torch.zeros(1)).rgb.shape == (1, 3, scene.height, scene.width)
        return found

    return use


def test_damaged_checkpoints(hunt, tmp_path, checkpoint, use_checkpoint) -> None:
    path = tmp_path / "a.pt"

    def check(changes: list) -> None:
        path.write_bytes(damaged(checkpoint, changes))
        use_checkpoint(path)

    hunt(all_damage(), check, fast=60, campaign=1500)


def rezipped(data: bytes, changes: list, method: int = zipfile.ZIP_STORED) -> bytes:
    """The pickle inside damaged, all check sums right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", method) as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, damaged(content, changes) if entry.filename.endswith(".pkl") else content)
    return file.getvalue()


def test_pickles_forged_inside_a_sound_archive(hunt, tmp_path, checkpoint, use_checkpoint) -> None:
    path = tmp_path / "a.pt"

    def check(changes: list) -> None:
        path.write_bytes(rezipped(checkpoint, changes))
        use_checkpoint(path)

    hunt(all_damage(), check, fast=60, campaign=1500)


def test_checkpoints_with_wrong_values_in_every_field(
    hunt, tmp_path, checkpoint, mutated, junk, use_checkpoint
) -> None:
    path = tmp_path / "a.pt"
    state = torch.load(io.BytesIO(checkpoint), weights_only=True)
    tensors = st.sampled_from(
        [
            torch.zeros(3),
            torch.zeros(0),
            torch.zeros((), dtype=torch.complex64),
            torch.full((8,), float("nan")),
            torch.eye(3).to_sparse(),
            torch.zeros(1).expand(1 << 40),
            torch.zeros(4, device="meta"),
            torch.zeros(2, 3, dtype=torch.int8),
        ]
    )

    def check(forged: dict) -> None:
        torch.save(forged, path)
        use_checkpoint(path)

    hunt(mutated(state, junk | tensors), check, fast=100, campaign=2000)


class Payload:
    """Its pickle calls what it is given when it is loaded."""

    def __init__(self, call, *arguments) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


CALLS = {
    "os.system": lambda mark: Payload(os.system, f"touch {mark}"),
    "exec": lambda mark: Payload(exec, f"open({str(mark)!r}, 'w').close()"),
    "eval": lambda mark: Payload(eval, f"open({str(mark)!r}, 'w').close()"),
    "Path.touch": lambda mark: Payload(Path.touch, mark),
    "subprocess": lambda mark: Payload(subprocess.check_call, ["touch", str(mark)]),
    "getattr": lambda mark: Payload(getattr, Payload(__import__, "os"), f"system_{mark}"),
    "os.mkdir": lambda mark: Payload(os.mkdir, str(mark)),
    "torch.load": lambda mark: Payload(torch.save, {"a": 1}, str(mark)),
}


def test_a_pickle_is_never_executed(hunt, tmp_path, checkpoint, settled, refused) -> None:
    mark, path = tmp_path / "mark", tmp_path / "a.pt"
    state = torch.load(io.BytesIO(checkpoint), weights_only=True)
    places = (
        [(key,) for key in state] + [("run", key) for key in state["run"]] + [("model", next(iter(state["model"])))]
    )

    def check(case: tuple) -> None:
        call, place, form, protocol = case
        forged = copy.copy(state)
        node = forged
        for key in place[:-1]:
            node[key] = copy.copy(node[key])
            node = node[key]
        node[place[-1]] = CALLS[call](mark)
        if form == "bare":
            path.write_bytes(pickle.dumps(forged, protocol))
        else:
            torch.save(forged, path, _use_new_zipfile_serialization=form == "zip", pickle_protocol=protocol)
        assert settled(lambda: load_checkpoint(path)) is refused
        assert not mark.exists()

    cases = st.tuples(
        st.sampled_from([*CALLS]),
        st.sampled_from(places),
        st.sampled_from(["zip", "zip", "old", "bare"]),
        st.sampled_from([2, 3, 4]),
    )
    hunt(cases, check, fast=60, campaign=400)


def test_the_payloads_would_execute(tmp_path) -> None:
    """Or the test above would show nothing."""
    for name, make in CALLS.items():
        mark = tmp_path / name
        try:
            pickle.loads(pickle.dumps(make(mark)))
        except AttributeError as error:
            assert name == "getattr" and str(mark) in str(error)
            continue
        assert mark.exists(), name


def test_an_archive_that_inflates_is_refused_before_it_does(tmp_path, checkpoint, settled, refused) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(rezipped(checkpoint, [], zipfile.ZIP_DEFLATED))
    assert settled(lambda: load_checkpoint(path)) is refused
    with pytest.raises(ValueError, match="is compressed"):
        load_checkpoint(path)


def safetensors_file(header: object, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


HEADER = {
    "__metadata__": {"encoder": "some encoder", "x": "y"},
    "embeddings": {"dtype": "F32", "shape": [12, 8, 8], "data_offsets": [0, 3072]},
    "other": {"dtype": "I64", "shape": [2], "data_offsets": [3072, 3088]},
}
DTYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F4",
    "F6_E2M3",
    "I64",
    "I32",
    "I8",
    "U8",
    "U16",
    "U32",
    "BOOL",
    "C64",
    "X",
]


def test_targets_with_a_forged_header(hunt, tmp_path, mutated, junk, settled, refused) -> None:
    path, body = tmp_path / "t.safetensors", torch.randn(772).numpy().tobytes()
    values = junk | st.sampled_from(DTYPES) | st.sampled_from([[12, 8, 4], [12, 8, 16], [12, 8, 2**40], [0, 3072]])

    def check(header: dict) -> None:
        path.write_bytes(safetensors_file(header, body))
        found = settled(lambda: read_targets_file(path, 12, GRID))
        if found is not refused:
            assert found.embeddings.shape[:2] == (12, 8) and found.embeddings.dtype == torch.float32
            assert torch.allclose(found.embeddings.norm(dim=-1), torch.ones(12, 8), atol=1e-5)

    hunt(mutated(HEADER, values), check, fast=120, campaign=1500)


@pytest.mark.parametrize("dtype", DTYPES)
def test_targets_of_every_type(dtype, tmp_path, settled, refused) -> None:
    size = {"F64": 8, "I64": 8, "C64": 8, "F16": 2, "BF16": 2, "U16": 2, "F32": 4, "I32": 4, "U32": 4}.get(dtype, 1)
    bytes_ = 12 * 8 * 8 * size // (2 if dtype == "F4" else 1)
    bytes_ = bytes_ * 6 // 8 if dtype.startswith("F6_") else bytes_
    entry = {"dtype": dtype, "shape": [12, 8, 8], "data_offsets": [0, bytes_]}
    path = tmp_path / "t.safetensors"
    path.write_bytes(safetensors_file({"embeddings": entry}, bytes([56]) * bytes_))
    found = settled(lambda: read_targets_file(path, 12, GRID))
    assert (found is refused) == (dtype not in ("F64", "F32", "F16", "BF16"))


@pytest.mark.parametrize("shape", [[12, 8, 1 << 26], [12, 8, 1 << 31], [1 << 20, 8, 1 << 16], [1 << 39]])
def test_targets_that_promise_terabytes(shape, tmp_path, settled, refused) -> None:
    """The file is as long as it says, all of it holes; no machine of ours could take it in."""
    size = 4 * shape[0] * (shape[1] * shape[2] if len(shape) == 3 else 1)
    path = tmp_path / "t.safetensors"
    head = safetensors_file({"embeddings": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}, b"")
    path.write_bytes(head)
    try:
        os.truncate(path, len(head) + size)
    except OSError:
        pytest.skip("the file system holds no file of this length")
    assert settled(lambda: read_targets_file(path, 12, GRID)) is refused


def test_damaged_targets(hunt, tmp_path, settled) -> None:
    path, good = tmp_path / "t.safetensors", safetensors_file(HEADER, torch.randn(772).numpy().tobytes())

    def check(changes: list) -> None:
        path.write_bytes(damaged(good, changes))
        settled(lambda: read_targets_file(path, 12, GRID))

    hunt(all_damage(), check, fast=60, campaign=1000)


@pytest.fixture
def use_stream(settled, refused):
    """All that a reader of the file does; a model that comes of it draws."""

    def use(path: Path) -> None:
        stream = settled(lambda: open_single_chunk(path))
        if stream is refused:
            return
        file = BitstreamFile(path)
        assert parts_table(file) and origin_lines(file) and json.dumps(info_dict(file))
        settled(stream.check)
        model = settled(stream.model)
        if model is not refused and stream.scene.height * stream.scene.width < 1 << 16:
            (picture,) = play(model, [stream.scene.frames - 1])
            assert picture.shape == (stream.scene.height, stream.scene.width, 3)

    return use


def test_damaged_bitstreams(hunt, tmp_path, coded, use_stream) -> None:
    path = tmp_path / "a.hnerv"
    good = {name: coded(name).read_bytes() for name in ("grid", "encoder", "pe", "convnext")}

    def check(case: tuple) -> None:
        name, changes = case
        path.write_bytes(damaged(good[name], changes))
        use_stream(path)

    hunt(st.tuples(st.sampled_from([*good]), all_damage()), check, fast=60, campaign=1500)


def taken_apart(path: Path) -> tuple[dict, dict[str, bytes]]:
    header = open_single_chunk(path).header
    sections = {section.name: read_section(header, section.name) for section in header.sections}
    return {"record": header.record, "encoder": header.encoder}, sections


def test_bitstreams_with_a_forged_header_and_right_checksums(
    hunt, tmp_path, coded, packed, mutated, use_stream
) -> None:
    path = tmp_path / "a.hnerv"
    parts = {name: taken_apart(coded(name)) for name in ("grid", "encoder", "pe", "convnext")}

    def check(case: tuple) -> None:
        name, header = case
        try:
            path.write_bytes(packed(header, parts[name][1]))
        except UnicodeEncodeError:
            return
        use_stream(path)

    forged = st.sampled_from([*parts]).flatmap(lambda name: st.tuples(st.just(name), mutated(parts[name][0])))
    hunt(forged, check, fast=120, campaign=2000)


def test_bitstreams_with_forged_sections_and_mended_checksums(hunt, tmp_path, coded, packed, use_stream) -> None:
    path = tmp_path / "a.hnerv"
    parts = {name: taken_apart(coded(name)) for name in ("grid", "encoder", "pe", "convnext")}

    def check(case: tuple) -> None:
        name, which, changes = case
        header, sections = parts[name]
        names = list(sections)
        spoilt = names[which % len(names)]
        path.write_bytes(packed(header, {**sections, spoilt: damaged(sections[spoilt], changes)}))
        use_stream(path)

    near_the_head = st.tuples(st.sampled_from(["flip", "zero"]), st.floats(0, 0.05), st.integers(0, 255))
    changes = st.lists(DAMAGE | near_the_head, min_size=1, max_size=3)
    hunt(st.tuples(st.sampled_from([*parts]), st.integers(0, 99), changes), check, fast=80, campaign=1500)


@pytest.fixture
def run_folder(finished: Path, tmp_path: Path) -> Path:
    """A run whose video is gone."""
    run = tmp_path / "output" / "run"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("tensorboard", "projector"))
    return run


def test_config_json_of_a_run_folder(hunt, run_folder, mutated, flags, ended, run_script, hnerv_main) -> None:
    record = json.loads((run_folder / "config.json").read_text())
    record["config"]["video"]["data"] = "gone.mp4"
    train = ["--output", run_folder.parent, "--exp-id", "run", *flags(data="gone.mp4")]
    path, draw = run_folder / "config.json", random.Random(0)

    def check(forged: dict) -> None:
        text = json.dumps(forged)
        path.write_text(text if draw.random() < 0.8 else text[: draw.randrange(len(text))])
        before = path.read_bytes()
        assert ended(lambda: run_script("train_patch_dual", train)) == 2
        ended(lambda: verdict(hnerv_main("diagnose", run_folder)))
        assert path.read_bytes() == before

    hunt(mutated(record), check, fast=50, campaign=1000)


def verdict(status: int) -> int:
    """Status 1 of `hnerv diagnose` is a finding."""
    return 0 if status == 1 else status


def test_curves_and_tables_of_a_run_folder(hunt, run_folder, ended, hnerv_main) -> None:
    names = ["metrics.jsonl", "environment.json"]
    good = {name: (run_folder / name).read_bytes() for name in names}

    def check(case: tuple) -> None:
        name, changes = case
        (run_folder / name).write_bytes(damaged(good[name], changes))
        ended(lambda: verdict(hnerv_main("diagnose", run_folder)))
        (run_folder / name).write_bytes(good[name])

    hunt(st.tuples(st.sampled_from(names), all_damage()), check, fast=40, campaign=500)
