"""Files of small runs: a second decoder reads the same weights, every part is counted, and no damage passes."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import json
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hnerv.codec import (
    CodedChunk,
    Options,
    coded_weights,
    encode_model,
    encode_run,
    open_coded_run,
    open_single_chunk,
)
from hnerv.codec import file as file_module
from hnerv.codec.allocation import Bits, range_scales
from hnerv.codec.bitstream import coded_values, read_tensors, section_layout, write_sections
from hnerv.codec.format import read_section
from hnerv.errors import UserError
from hnerv.model import LATENTS, build_model
from hnerv.quantise import from_logs
from hnerv.runs.models import checkpoint_of, open_checkpoint
from hnerv.runs.record import RunRecord

KINDS = ["grid", "encoder", "pe", "convnext"]


def _second_decoder():
    path = Path(__file__).with_name("second_decoder.py")
    spec = importlib.util.spec_from_file_location("second_decoder", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


second = _second_decoder()


def sections_of(chunk: CodedChunk) -> dict[str, bytes]:
    return {section.name: read_section(chunk.header, section.name) for section in chunk.header.sections}


@pytest.fixture(scope="session")
def forge(coded, packed, tmp_path_factory) -> Callable[..., Path]:
    """forge(kind, change(header, sections)) -> that run's file, changed, its checksums right."""
    folder, originals = tmp_path_factory.mktemp("forged"), {}

    def build(kind: str, change: Callable[[dict, dict], None]) -> Path:
        if kind not in originals:
            chunk = open_single_chunk(coded(kind))
            header = {"record": chunk.header.record, "encoder": chunk.header.encoder}
            originals[kind] = header, sections_of(chunk)
        header, sections = copy.deepcopy(originals[kind])
        change(header, sections)
        path = folder / "forged.hnerv"
        path.write_bytes(packed(header, sections))
        return path

    return build


def check_with_second_decoder(path: Path) -> None:
    """It knows docs/format.md, and of the network only the names and shapes of its tensors."""
    chunk = open_single_chunk(path)
    (found,) = second.read_file(path.read_bytes())
    assert RunRecord.from_dict(found.record, path) == chunk.record and found.encoder == chunk.encoder
    tensors = second.read_tensors(found, {name: tuple(shape) for name, shape in chunk.shapes.items()})
    expected = chunk.model().state_dict()
    assert tensors.keys() == expected.keys() and len(tensors) > 10
    for name, values in tensors.items():
        assert values.dtype == np.float32 and np.array_equal(values, expected[name].numpy()), name


@pytest.mark.parametrize("name", [*KINDS, "long"])
def test_a_second_decoder_reads_the_same_weights(coded, name):
    check_with_second_decoder(coded(name))


@pytest.mark.parametrize(
    "options",
    [
        {"steps": "minmax"},
        {"steps": "minmax", "per_channel": True, "bits": Bits(5, 3)},
        {"steps": "symmetric", "per_channel": True, "bits": Bits(3, 6)},
        {"bits": Bits(16, 2)},
        {"bits": Bits(2, 16)},
        {"prune": 0.5},
    ],
    ids=str,
)
def test_a_second_decoder_reads_every_kind_of_record(long_run, tmp_path, options):
    found, path = open_checkpoint(checkpoint_of(long_run)), tmp_path / "a.hnerv"
    path.write_bytes(encode_run(found.model, found.record, Options(**options), None, {}))
    check_with_second_decoder(path)


@pytest.mark.parametrize("name", KINDS)
def test_a_second_decoder_reads_steps_per_row_and_column(run_of, tmp_path, name):
    """Latents with a step per channel; some tensors with exponents of rows or columns alone."""
    found, path = open_checkpoint(checkpoint_of(run_of(name))), tmp_path / "a.hnerv"
    found.model.embedding.discard_encoder()
    weights, draw, scales = coded_weights(found.model), torch.Generator().manual_seed(0), {}
    for number, (tensor, value) in enumerate(weights.items()):
        rows, cols = value.shape[0] if value.dim() > 1 else 1, value[0].numel()
        cols = value.shape[1] if LATENTS.fullmatch(tensor) else cols
        logs = [torch.randn(count, generator=draw) for count in (rows, cols)]
        logs = [log + value.std().log2() / 2 for log in logs] if value.numel() > 1 else logs
        chosen = [log if number % 3 != axis or LATENTS.fullmatch(tensor) else None for axis, log in enumerate(logs)]
        scales[tensor] = from_logs(*chosen)
        if number % 2 == 0:  # odd exponents, too, which `from_logs` does not use
            axes = {"rows": scales[tensor].rows, "cols": scales[tensor].cols}
            odd = {
                axis: e + torch.randint(2, e.shape, generator=draw).int() for axis, e in axes.items() if e is not None
            }
            scales[tensor] = scales[tensor]._replace(**odd)
    path.write_bytes(encode_model(weights, scales, found.record, {}))
    decoded, expected = open_single_chunk(path).model().state_dict(), coded_values(weights, scales)
    assert all(torch.equal(decoded[tensor], expected[tensor]) for tensor in weights)
    check_with_second_decoder(path)


@pytest.mark.parametrize("steps", ["symmetric", "minmax"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_decoded_weights_are_the_quantised_ones(run_of, tmp_path, name, steps, per_channel):
    found = open_checkpoint(checkpoint_of(run_of(name)))
    found.model.embedding.discard_encoder()
    weights, before = coded_weights(found.model), copy.deepcopy(found.record)
    scales = range_scales(weights, Bits(6, 5), steps, per_channel)
    path = tmp_path / "a.hnerv"
    path.write_bytes(encode_model(weights, scales, found.record, {}))
    decoded, expected = open_single_chunk(path).model().state_dict(), coded_values(weights, scales)
    assert found.record == before and decoded.keys() == expected.keys()
    for tensor, values in decoded.items():
        assert torch.equal(values, expected[tensor]), tensor
        if scales[tensor] is not None and steps == "symmetric":
            step = scales[tensor].step.reshape(-1, *[1] * (values.dim() - 1))
            assert ((values - weights[tensor]).abs() <= 0.5001 * step).all(), tensor


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("steps", ["symmetric", "minmax"])
def test_slices_of_a_tensor_are_sections_of_their_own(steps, per_channel):
    """33 knots, three slices, the last of one knot; a context where it pays; slices not read are 0."""
    draw = torch.Generator().manual_seed(0)
    walk = torch.randn(33, 4, 2, 3, generator=draw).mul(0.02).cumsum(0)
    noise = torch.randn(7, 5, generator=draw)
    weights = {"embedding.levels.0": walk, "rgb_head.weight": noise, "rgb_head.bias": noise[0]}
    shapes = {name: w.shape for name, w in weights.items()}
    names = [f"embedding.levels.0[{a}]" for a in ("0:16", "16:32", "32:33")]
    assert [s.name for s in section_layout(shapes)] == [*names, "rgb_head"]
    scales = range_scales(weights, Bits(8, 8), steps, per_channel)
    sections, expected = write_sections(weights, scales), coded_values(weights, scales)
    decoded = read_tensors([(s, sections[s.name]) for s in section_layout(shapes)], shapes)
    assert all(torch.equal(decoded[name], expected[name]) for name in weights)
    assert per_channel or all(sections[name][0] & 128 for name in names[:2])
    middle = read_tensors([(s, sections[s.name]) for s in section_layout(shapes)[1:2]], shapes)["embedding.levels.0"]
    assert torch.equal(middle[16:32], expected["embedding.levels.0"][16:32])
    assert (middle[:16] == 0).all() and (middle[32:] == 0).all()


def test_the_file_names_no_folder_of_this_machine(run_of, coded, film, targets_file):
    record = json.loads((run_of("grid") / "config.json").read_text())
    assert str(film) in json.dumps(record) and str(targets_file) in json.dumps(record)
    for name in KINDS:
        (chunk,) = second.read_file(coded(name).read_bytes())
        text = json.dumps([chunk.record, chunk.encoder])
        assert "/" not in text.replace("://", "")
        assert film.name in text and targets_file.name in text


@pytest.mark.parametrize("head", ["rgb_head", "clip_head"])
@pytest.mark.parametrize("kind", ["grid", "convnext"])
def test_one_head_alone_does_not_read_the_other(coded, monkeypatch, kind, head):
    chunk = open_single_chunk(coded(kind))
    full, read = chunk.model(), []
    monkeypatch.setattr(file_module, "read_section", lambda h, name: read.append(name) or read_section(h, name))
    model = chunk.model((head,))
    other = {"rgb_head": "clip_head", "clip_head": "rgb_head"}[head]
    assert head in read and other not in read and getattr(model, other) is None
    site = chunk.config.model.clip_site
    unneeded_stages = len(chunk.config.model.dec_strides) - site if head == "clip_head" else 0
    assert len(read) == len(chunk.sections) - 1 - unneeded_stages
    for name, value in model.state_dict().items():
        assert torch.equal(value, full.state_dict()[name])


def test_a_damaged_head_is_found_only_when_it_is_needed(forge):
    def spoil(header: dict, sections: dict) -> None:
        sections["clip_head"] = b"\1" + sections["clip_head"][:-1]

    chunk = open_single_chunk(forge("grid", spoil))
    chunk.model(("rgb_head",))
    with pytest.raises(UserError, match="forged.hnerv: section 'clip_head' does not follow the .hnerv format"):
        chunk.model()


def test_opening_without_the_encoder(coded):
    with pytest.raises(UserError, match="--unseen encode needs the encoder, which .* does not contain"):
        open_coded_run(coded("encoder"), torch.device("cpu"), unseen="encode")


FOREIGN = {
    "scene.frames": [-3, 0, "12", None, 1.5],
    "scene.height": [2**40, 33, 0, -32],
    "scene.rows": [0, 2048, -2],
    "scene.train": [[], "abc", [5, 3, 1], [0, 99], [[1]], None],
    "scene.val": [[99], 3, ["a"]],
    "scene.clip_dim": [2**40, -1, "8"],
    "scene.fps": [None, "x", 0, -1, float("nan")],
    "scene": [[], None, {}],
    "scene.*": [{"rows": 10**6, "height": 16 * 10**6}],
    "config": [[], {}, None],
    "config.model.dec_strides": [[2**40], [], [0, 0, 0], 3],
    "config.model.embedding": ["other", 7],
    "config.model.embed_dim": [2**40, 10**30, 0],
    "config.model.grid_levels": [2**40],
    "config.model.act": ["tan"],
    "config.model.decoder": ["other", 7],
    "config.model.dec_depths": [[2**40], [], [0], [129], [43] * 3, [2, 2], 3],
    "config.model.expansion": [0, -1, float("nan"), float("inf"), "2", None],
    "model.width": [2**40, 2**62, 0, -5, 1e30, "8", None],
    "model": [None, [], {}],
    "video": [None, 5],
}


FOREIGN_TO_CONVNEXT = {
    "config.model.dec_depths": [[128, 1, 1], [42], [1]],
    "config.model.expansion": [1e300, 1e30, 1e9, 1e-300],
    "config.model.ks": ["0_9999_9999"],
    "config.model.decoder": ["hnerv"],
}


def test_a_model_of_zeros_is_read(run_of, tmp_path):
    """As a large --rate-weight may leave it: a byte of the file for more than a hundred parameters."""
    record, path = open_checkpoint(checkpoint_of(run_of("grid"))).record, tmp_path / "a.hnerv"
    record = dataclasses.replace(record, config=record.config.replaced({"clip_hidden": 10_000}))
    model = build_model(record.model_config, record.scene)
    zeros = {name: torch.zeros_like(value) for name, value in coded_weights(model).items()}
    path.write_bytes(encode_model(zeros, dict.fromkeys(zeros, from_logs(None, None)), record, {}))
    assert sum(value.numel() for value in zeros.values()) > 100 * path.stat().st_size
    assert all((value == 0).all() for value in open_single_chunk(path).model().state_dict().values())


@pytest.mark.parametrize("kind", KINDS)
def test_foreign_values_are_refused(forge, kind):
    """With right checksums: no accident, and yet one line, and no memory for what the file cannot hold."""
    wrong, tables = [], [FOREIGN, FOREIGN_TO_CONVNEXT] if kind == "convnext" else [FOREIGN]
    open_single_chunk(forge(kind, lambda *_: None)).model()  # imports take memory, too
    for path, value in [(path, value) for table in tables for path, values in table.items() for value in values]:
        *above, last = path.split(".")

        def change(header: dict, _: dict, above=above, last=last, value=value) -> None:
            place = functools.reduce(dict.__getitem__, above, header["record"])
            place |= value if last == "*" else {last: value}

        tracemalloc.start()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                open_single_chunk(forge(kind, change)).model()
            wrong.append((path, value, "accepted"))
        except UserError as error:
            if "\n" in str(error):
                wrong.append((path, value, "more than a line"))
        except Exception as error:
            wrong.append((path, value, repr(error)[:90]))
        if (peak := tracemalloc.get_traced_memory()[1]) > 2 << 20:
            wrong.append((path, value, f"{peak} bytes"))
        tracemalloc.stop()
    assert wrong == []


@pytest.mark.parametrize(
    "change",
    [
        lambda sections: sections.pop("rgb_head"),
        lambda sections: sections.update(more=b""),
        lambda sections: sections.update({"rgb_head": sections.pop("rgb_head")}),
    ],
    ids=["missing", "one more", "in another order"],
)
def test_sections_that_do_not_match_the_model(forge, change):
    with pytest.raises(UserError, match="has sections that do not match its model"):
        open_single_chunk(forge("grid", lambda header, sections: change(sections)))
