"""A whole file of a run in miniature: what it holds, that a second decoder reads it alike, that no damage passes."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hnerv.codec import Bitstream, Options, encode_run, open_film, open_stream, summed_by_part
from hnerv.codec import file as file_module
from hnerv.codec.allocation import Bits, range_scales
from hnerv.codec.bitstream import coded_values, read_tensors, section_layout, write_sections
from hnerv.codec.container import pack, read_section
from hnerv.codec.describing import as_dict, origin_lines, parts_table, rate_of
from hnerv.codec.file import coded_weights, encode_model
from hnerv.errors import UserError
from hnerv.runs.opening import checkpoint_of, open_checkpoint
from hnerv.runs.record import RunRecord

EMBEDDINGS = ["grid", "encoder", "pe"]


def _second_decoder():
    path = Path(__file__).with_name("second_decoder.py")
    spec = importlib.util.spec_from_file_location("second_decoder", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


second = _second_decoder()


def sections_of(stream: Bitstream) -> dict[str, bytes]:
    return {entry.name: read_section(stream.container, entry.name) for entry in stream.container.entries}


@pytest.fixture(scope="session")
def forge(coded, tmp_path_factory) -> Callable[..., Path]:
    """forge(embedding, change(header, sections)) -> that run's file, changed, its checksums right."""
    folder, originals = tmp_path_factory.mktemp("forged"), {}

    def build(embedding: str, change: Callable[[dict, dict], None]) -> Path:
        if embedding not in originals:
            stream = Bitstream(coded(embedding))
            originals[embedding] = stream.container.header, sections_of(stream)
        header, sections = copy.deepcopy(originals[embedding])
        change(header, sections)
        path = folder / "forged.hnerv"
        path.write_bytes(pack(header, sections))
        return path

    return build


def all_options(run: Path, **options) -> Path:
    found = open_checkpoint(checkpoint_of(run))
    return encode_run(found.model, found.record, Options(**options), None, {})


@pytest.mark.parametrize("embedding", [*EMBEDDINGS, "long"])
def test_a_second_decoder_reads_the_same_weights(coded, embedding):
    """It knows docs/format.md, and of the network only the names and shapes of its tensors."""
    stream = Bitstream(coded(embedding))
    model = stream.model()
    found = second.read_tensors(stream.path.read_bytes(), {name: tuple(s) for name, s in stream.shapes.items()})
    expected = model.state_dict()
    assert found.keys() == expected.keys() and len(found) > 10
    for name, values in found.items():
        assert values.dtype == np.float32 and np.array_equal(values, expected[name].numpy()), name


@pytest.mark.parametrize(
    "options",
    [
        {"steps": "minmax"},
        {"steps": "minmax", "per_channel": True, "bits": Bits(5, 3)},
        {"steps": "symmetric", "per_channel": True, "bits": Bits(3, 6)},
        {"bits": Bits(16, 16)},
        {"bits": Bits(16, 2)},
        {"bits": Bits(2, 16)},
        {"prune": 0.5},
    ],
    ids=str,
)
def test_a_second_decoder_reads_every_kind_of_record(long_run, tmp_path, options):
    path = tmp_path / "a.hnerv"
    path.write_bytes(all_options(long_run, **options))
    stream = Bitstream(path)
    found = second.read_tensors(path.read_bytes(), {name: tuple(s) for name, s in stream.shapes.items()})
    expected = stream.model().state_dict()
    for name, values in found.items():
        assert np.array_equal(values, expected[name].numpy()), name
    header, _ = second.read_file(path.read_bytes())
    assert RunRecord.from_dict(header["record"], path) == stream.record and header["encoder"] == stream.encoder


@pytest.mark.parametrize("steps", ["symmetric", "minmax"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_the_file_gives_back_what_quantising_gives(run_of, tmp_path, embedding, steps, per_channel):
    found = open_checkpoint(checkpoint_of(run_of(embedding)))
    found.model.embedding.discard_encoder()
    weights = coded_weights(found.model)
    scales = range_scales(weights, Bits(6, 5), steps, per_channel)
    path = tmp_path / "a.hnerv"
    path.write_bytes(encode_model(weights, scales, found.record, {}))
    decoded, expected = Bitstream(path).model().state_dict(), coded_values(weights, scales)
    assert decoded.keys() == expected.keys()
    for name, values in decoded.items():
        assert torch.equal(values, expected[name]), name
        if scales[name] is not None and steps == "symmetric":
            step = scales[name].step.reshape(-1, *[1] * (values.dim() - 1))
            assert ((values - weights[name]).abs() <= 0.5001 * step).all(), name


def test_sections_of_one_slice_over_and_of_many_channels():
    """33 knots under a step each: three stretches, the last of one knot; differences where they are shorter."""
    draw = torch.Generator().manual_seed(0)
    walk = torch.randn(33, 4, 2, 3, generator=draw).mul(0.02).cumsum(0)
    noise = torch.randn(7, 5, generator=draw)
    weights = {"embedding.levels.0": walk, "rgb_head.weight": noise, "rgb_head.bias": noise[0]}
    shapes = {name: w.shape for name, w in weights.items()}
    knots = [f"embedding.levels.0[{a}]" for a in ("0:16", "16:32", "32:33")]
    assert [s.name for s in section_layout(shapes)] == [*knots, "rgb_head"]
    for per_channel in (False, True):
        for steps in ("symmetric", "minmax"):
            scales = range_scales(weights, Bits(8, 8), steps, per_channel)
            sections = write_sections(weights, scales)
            decoded = read_tensors([(s, sections[s.name]) for s in section_layout(shapes)], shapes)
            expected = coded_values(weights, scales)
            assert all(torch.equal(decoded[name], expected[name]) for name in weights)
            kinds = {name: data[0] for name, data in sections.items() if "levels" in name}
            assert per_channel or all(kind & 8 for name, kind in kinds.items() if "32" not in name.split(":")[0])


def test_slices_that_were_not_read_are_zero():
    weights = {"embedding.codes": torch.randn(40, 2, 2, 2)}
    shapes = {"embedding.codes": torch.Size((40, 2, 2, 2))}
    scales = range_scales(weights, Bits(8, 8), "symmetric", per_channel=False)
    sections = write_sections(weights, scales)
    found = read_tensors([(s, sections[s.name]) for s in section_layout(shapes)[1:2]], shapes)["embedding.codes"]
    assert torch.equal(found[16:32], coded_values(weights, scales)["embedding.codes"][16:32])
    assert (found[:16] == 0).all() and (found[32:] == 0).all()


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_parts_sum_to_the_file_and_nothing_is_left_out_of_the_rate(coded, embedding):
    stream = Bitstream(coded(embedding))
    size, film = stream.path.stat().st_size, open_film(stream.path)
    assert stream.size == film.size == size
    for parts in (stream.parts(), summed_by_part(stream.parts())):
        assert sum(part.size for part in parts) == size
        assert sum(part.parameters for part in parts) == sum(p.numel() for p in stream.model().parameters())
    assert rate_of(film) == 8 * size / (12 * 32 * 64)
    rows = [line.split() for line in parts_table(film).splitlines()]
    assert [row[0] for row in rows] == [
        "part", "header", "embedding", "decoder.stem", "decoder.stages.0", "decoder.stages.1", "decoder.stages.2",
        "rgb_head", "clip_head", "file",
    ]  # fmt: skip
    found = [int(row[3].replace(",", "")) for row in rows[1:]]
    assert sum(found[:-1]) == found[-1] == size
    assert float(rows[-1][4]) == pytest.approx(rate_of(film), abs=1e-5)


def test_the_file_names_no_folder_of_this_machine(run_of, coded, film, targets_file):
    record = json.loads((run_of("grid") / "config.json").read_text())
    assert str(film) in json.dumps(record) and str(targets_file) in json.dumps(record)
    for embedding in EMBEDDINGS:
        header, _ = second.read_file(coded(embedding).read_bytes())
        text = json.dumps(header)
        for folder in (film, targets_file, run_of(embedding)):
            assert str(folder.parent) not in text
        assert "/" not in text.replace("://", "")
        assert film.name in text and targets_file.name in text


def test_a_record_is_not_changed_by_its_encoding(run_of):
    found = open_checkpoint(checkpoint_of(run_of("grid")))
    before = copy.deepcopy(found.record)
    encode_run(found.model, found.record, Options(), None, {})
    assert found.record == before


@pytest.mark.parametrize("head", ["rgb_head", "clip_head"])
def test_one_head_alone_reads_the_other_not(coded, monkeypatch, head):
    stream = Bitstream(coded("grid"))
    whole, read = stream.model(), []
    monkeypatch.setattr(file_module, "read_section", lambda c, name: read.append(name) or read_section(c, name))
    model = stream.model((head,))
    other = {"rgb_head": "clip_head", "clip_head": "rgb_head"}[head]
    assert head in read and other not in read and getattr(model, other) is None
    site = stream.config.model.clip_site
    beyond = len(stream.config.model.dec_strides) - site if head == "clip_head" else 0
    assert len(read) == len(stream.sections) - 1 - beyond
    for name, value in model.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name])


def test_a_damaged_head_hurts_only_who_needs_it(forge):
    def spoil(header: dict, sections: dict) -> None:
        sections["clip_head"] = b"\1" + sections["clip_head"][:-1]

    stream = Bitstream(forge("grid", spoil))
    stream.model(("rgb_head",))
    with pytest.raises(UserError, match="section 'clip_head' does not follow the .hnerv format"):
        stream.model()


def test_what_is_told_of_a_file(coded):
    stream = Bitstream(coded("encoder"))
    text = origin_lines(open_film(stream.path))
    for words in (
        "film, crop 32x64 at 0,0 -> 32x64",
        "12 at 24 frames/s; 8 training, 2 unseen",
        "2x4 of 16x16",
        "encoder",
    ):
        assert words in text
    told = json.loads(json.dumps(as_dict(open_film(stream.path))))
    assert told["bytes"] == stream.size == sum(part["size"] for part in told["parts"])
    assert told["bpp"] == rate_of(open_film(stream.path)) and told["encoder"]["epoch"] == 3
    assert RunRecord.from_dict(told["record"], stream.path) == stream.record


def test_opening_without_the_encoder(coded):
    with pytest.raises(UserError, match="--unseen encode needs the encoder, which .* does not contain"):
        open_stream(coded("encoder"), torch.device("cpu"), unseen="encode")


def test_every_byte_flipped_is_an_error_in_words(coded, tmp_path):
    """All eight bits of each byte of prologue and header; of the sections one bit of every byte, another by turns."""
    good = coded("pe").read_bytes()
    path = tmp_path / "a.hnerv"
    path.write_bytes(good)
    stream = Bitstream(path)
    header = stream.container.header_bytes

    def read_sections() -> None:
        """What `model` reads before it decodes anything."""
        for entry in stream.container.entries:
            read_section(stream.container, entry.name)

    cases = [(8 * byte + bit, lambda: Bitstream(path)) for byte in range(header) for bit in range(8)]
    cases += [(8 * byte + byte % 8, read_sections) for byte in range(header, len(good))]
    with path.open("r+b", buffering=0) as file:
        for bit, read in cases:
            os.pwrite(file.fileno(), bytes([good[bit // 8] ^ 1 << bit % 8]), bit // 8)
            with pytest.raises(UserError) as caught:
                read()
            assert "\n" not in str(caught.value) and "a.hnerv" in str(caught.value)
            os.pwrite(file.fileno(), good[bit // 8 : bit // 8 + 1], bit // 8)
    assert path.read_bytes() == good


def test_flips_are_found_by_who_builds_the_model(coded, tmp_path):
    good = coded("encoder").read_bytes()
    path = tmp_path / "a.hnerv"
    for byte in {*range(0, len(good), 101), len(good) - 1}:
        data = bytearray(good)
        data[byte] ^= 0x10
        path.write_bytes(data)
        with pytest.raises(UserError):
            Bitstream(path).model()


def test_every_truncation_is_an_error_in_words(coded, tmp_path):
    good = coded("grid").read_bytes()
    path = tmp_path / "a.hnerv"
    path.write_bytes(good)
    with path.open("r+b", buffering=0) as file:
        for length in reversed(range(len(good))):
            file.truncate(length)
            with pytest.raises(UserError, match="truncated|is not a .hnerv file"):
                Bitstream(path)
    path.write_bytes(good + good)
    with pytest.raises(UserError, match="after its end"):
        Bitstream(path)


FOREIGN = {
    "scene.frames": [-3, 0, "12", None, 1.5],
    "scene.height": [2**40, 33, 0, -32],
    "scene.rows": [0, 2048, -2],
    "scene.train": [[], "abc", [5, 3, 1], [0, 99], [[1]], None],
    "scene.val": [[99], 3, ["a"]],
    "scene.clip_dim": [2**40, -1, "8"],
    "scene.fps": [None, "x", 0, -1, float("nan")],
    "scene": [[], None, {}],
    "config": [[], {}, None],
    "config.model.dec_strides": [[2**40], [], [0, 0, 0], 3],
    "config.model.embedding": ["other", 7],
    "config.model.embed_dim": [2**40, 10**30, 0],
    "config.model.grid_levels": [2**40],
    "config.model.act": ["tan"],
    "model.width": [2**40, 2**62, 0, -5, 1e30, "8", None],
    "model": [None, [], {}],
    "video": [None, 5],
}


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_a_header_with_foreign_values_is_refused(forge, embedding):
    """With right checksums: nobody's accident, and yet no traceback and no memory for what the file cannot hold."""
    wrong = []
    for path, values in FOREIGN.items():
        for value in values:
            *above, last = path.split(".")

            def change(header: dict, _: dict, above=above, last=last, value=value) -> None:
                place = header["record"]
                for key in above:
                    place = place[key]
                place[last] = value

            tracemalloc.start()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    Bitstream(forge(embedding, change)).model()
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


def test_a_grid_of_a_million_patches_in_a_small_file(forge):
    def change(header: dict, _: dict) -> None:
        header["record"]["scene"].update(rows=10**6, height=16 * 10**6)

    tracemalloc.start()
    with pytest.raises(UserError):
        Bitstream(forge("pe", change)).model()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_sections_with_foreign_bytes_are_refused(forge, coded, embedding):
    """Checksums are right: each is an error in words, or numbers of the shape that was promised."""
    draw = np.random.default_rng(5)
    shapes = Bitstream(coded(embedding)).shapes
    names = list(sections_of(Bitstream(coded(embedding))))
    refused = 0
    for trial in range(70):
        name, how = names[trial % len(names)], trial // len(names) % 5

        def change(_: dict, sections: dict, name=name, how=how) -> None:
            data = bytearray(sections[name])
            if how == 0:
                data[draw.integers(12)] ^= 1 << draw.integers(8)
            elif how == 1:
                del data[draw.integers(len(data)) :]
            elif how == 2:
                data[draw.integers(len(data))] = draw.integers(256)
            elif how == 3:
                data += bytes(4)
            else:
                data[:] = draw.bytes(len(data))
            sections[name] = bytes(data)

        try:
            model = Bitstream(forge(embedding, change)).model()
            assert {name: value.shape for name, value in model.state_dict().items()} == shapes
        except UserError as error:
            refused += 1
            assert "does not follow the .hnerv format" in str(error)
    assert refused > 35


def test_sections_that_are_missing_or_more_than_needed(forge):
    for change in (
        lambda header, sections: sections.pop("rgb_head"),
        lambda header, sections: sections.update(more=b""),
        lambda header, sections: sections.update({"rgb_head": sections.pop("rgb_head")}),
    ):
        with pytest.raises(UserError, match="has sections that do not match its model"):
            Bitstream(forge("grid", change))
