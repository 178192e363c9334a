"""The index of a model equals its predictions, reads only the sections needed, and is verified when it is loaded."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from hnerv.cli import main
from hnerv.codec import open_single_chunk
from hnerv.errors import UserError
from hnerv.model.predict import predict
from hnerv.runs.models import open_checkpoint
from hnerv.search import index as module
from hnerv.search import open_index
from hnerv.search.index import index_paths

CPU = torch.device("cpu")


@torch.no_grad()
def predicted(model) -> torch.Tensor:
    """(N, P, D), frame by frame, by the full model."""
    model = model.eval().to(memory_format=torch.channels_last)
    return torch.cat([predict(model, torch.tensor([float(n)])).clip for n in range(model.scene.frames)])


@pytest.fixture
def computed(monkeypatch) -> list[Path]:
    """The model files for which an index was computed."""
    calls, original = [], module._compute
    monkeypatch.setattr(module, "_compute", lambda path, device: calls.append(path) or original(path, device))
    return calls


@pytest.fixture
def warned(caplog):
    return lambda: [record.getMessage() for record in caplog.records if record.name == "hnerv"]


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def place_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.index.safetensors")


def test_it_equals_the_predictions_of_the_full_model(alone):
    path = alone()
    index = open_index(path, CPU)
    assert index.embeddings.shape == (12, 8, 12) and index.embeddings.dtype == torch.float32
    assert torch.allclose(index.embeddings, predicted(open_single_chunk(path).model()), atol=1e-6)
    assert torch.allclose(index.embeddings.norm(dim=-1), torch.ones(12, 8), atol=1e-5)
    assert index.scene == open_single_chunk(path).scene and index.record.targets.kind == "clip"


def test_a_run_folder_and_a_checkpoint(clip_run, tmp_path):
    run = Path(shutil.copytree(clip_run, tmp_path / "run"))
    expected = predicted(open_checkpoint(run / "checkpoints" / "latest.pt").model)
    by_folder, by_file = open_index(run, CPU), open_index(run / "checkpoints" / "latest.pt", CPU)
    assert torch.allclose(by_folder.embeddings, expected, atol=1e-6)
    assert torch.equal(by_folder.embeddings, by_file.embeddings) and by_folder.path == by_file.path


@pytest.mark.parametrize("kind", ["encoder", "pe", "convnext"])
def test_every_embedding_and_decoder(tmp_path, train, flags, setting_of, monkeypatch, kind):
    assert train(tmp_path, flags(**setting_of(kind), epochs=1)) == 0
    index = open_index(tmp_path / "run", CPU)
    expected = predicted(open_checkpoint(index.path).model)
    assert torch.allclose(index.embeddings, expected, atol=1e-6)
    path = tmp_path / "clip.hnerv"
    main(["encode", str(tmp_path / "run"), "-o", str(path), "--no-measure"])
    expected = predicted(open_single_chunk(path).model())
    assert torch.allclose(needed_sections_alone(path, monkeypatch), expected, atol=1e-6)


def test_only_the_sections_that_the_clip_head_needs_are_read(alone, monkeypatch):
    needed_sections_alone(alone(), monkeypatch)


def needed_sections_alone(path: Path, monkeypatch) -> torch.Tensor:
    """The embeddings of a file. Asserts that neither the RGB head nor a stage after the CLIP head's site is read."""
    from hnerv.codec import file

    read, original = [], file.read_section
    monkeypatch.setattr(file, "read_section", lambda header, name: read.append(name) or original(header, name))
    embeddings = open_index(path, CPU).embeddings
    sections = [section.name for section in open_single_chunk(path).sections]
    unneeded = {"decoder.stages.1", "decoder.stages.2", "rgb_head"}
    assert unneeded < set(sections)
    assert sorted(read) == sorted(set(sections) - unneeded)
    return embeddings


def test_damage_elsewhere_does_not_matter_and_damage_there_is_found(alone):
    path = alone()
    expected = open_index(path, CPU).embeddings
    stream = open_single_chunk(path)
    ends, end = {}, stream.entry.offset + stream.entry.header_bytes
    for section in stream.header.sections:
        end += section.size
        ends[section.name] = end
    flip(path, ends["rgb_head"] - 1)
    assert torch.equal(open_index(path, CPU).embeddings, expected)
    with pytest.raises(UserError, match="has a damaged section 'rgb_head'"):
        open_single_chunk(path).model()
    flip(path, ends["clip_head"] - 1)
    with pytest.raises(UserError, match="has a damaged section 'clip_head'"):
        open_index(path, CPU)


def test_it_is_computed_once_and_stored_next_to_the_file(alone, computed, warned):
    path = alone()
    first = open_index(path, CPU)
    second = open_index(path, CPU)
    assert computed == [path] and [p.name for p in path.parent.iterdir()] != ["clip.hnerv"]
    assert torch.equal(first.embeddings, second.embeddings) and first.record == second.record
    assert place_of(path).is_file() and not warned()


def test_without_keep_nothing_is_written(alone):
    path = alone()
    open_index(path, CPU, keep=False)
    assert [p.name for p in path.parent.iterdir()] == ["clip.hnerv"]


def test_a_renamed_file_finds_no_index_and_another_file_of_its_name_does_not_take_it(alone, coded, computed):
    path = alone()
    open_index(path, CPU)
    shutil.copy(coded["file"], path)
    index = open_index(path, CPU)
    assert computed == [path, path] and index.embeddings.shape == (12, 8, 8)
    assert open_index(path, CPU).record.targets.kind == "file" and len(computed) == 2, "the stale one is replaced"


def test_another_version_is_recomputed(alone, computed, monkeypatch):
    path = alone()
    open_index(path, CPU)
    monkeypatch.setattr(module, "INDEX_VERSION", module.INDEX_VERSION + 1)
    open_index(path, CPU)
    assert computed == [path, path]


@pytest.mark.parametrize(
    "fault", ["a bit of an embedding", "a character of the record", "cut short", "empty", "no facts"]
)
def test_a_damaged_index_is_logged_and_recomputed(alone, computed, warned, fault):
    from safetensors.torch import save_file

    path = alone()
    expected = open_index(path, CPU)
    place = place_of(path)
    data = place.read_bytes()
    if fault == "a bit of an embedding":
        flip(place, len(data) - 7)
    elif fault == "a character of the record":
        place.write_bytes(data.replace(b"hnerv-small-quickgelu", b"hnerv-sma1l-quickgelu", 1))
    elif fault == "no facts":
        save_file({"embeddings": expected.embeddings}, place)
    else:
        place.write_bytes(data[: len(data) // 2] if fault == "cut short" else b"")
    found = open_index(path, CPU)
    assert torch.equal(found.embeddings, expected.embeddings) and found.record == expected.record
    assert len(computed) == 2 and len(warned()) == 1 and "is damaged" in warned()[0]
    open_index(path, CPU)
    assert len(computed) == 2, "the damaged one is replaced"


def test_the_index_of_a_read_only_folder_is_in_the_cache(alone, computed, monkeypatch, tmp_path, warned):
    monkeypatch.setenv("HNERV_CACHE", str(tmp_path / "cache"))
    path = alone()
    adjacent, cached = index_paths(path, module.sha256_of(path))
    adjacent.mkdir()  # a folder: not even root can write a file there
    open_index(path, CPU)
    assert cached.is_file() and tmp_path / "cache" in cached.parents
    assert computed == [path]
    adjacent.rmdir()
    open_index(path, CPU)
    assert computed == [path] and not adjacent.exists()
    assert [text for text in warned() if "is not saved" in text] == []


def test_no_writable_location_is_a_warning(alone, monkeypatch, tmp_path, warned):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("HNERV_CACHE", str(tmp_path / "cache"))
    path = alone()
    place_of(path).mkdir()
    assert open_index(path, CPU).embeddings.shape == (12, 8, 12)
    assert "is not saved" in warned()[-1] and "HNERV_CACHE" in warned()[-1]


def test_refusals(tmp_path, train, flags):
    with pytest.raises(UserError, match="no such file"):
        open_index(tmp_path / "none.hnerv", CPU)
    (tmp_path / "foreign.hnerv").write_bytes(os.urandom(100))
    with pytest.raises(UserError, match="is not a .hnerv file"):
        open_index(tmp_path / "foreign.hnerv", CPU)
    assert train(tmp_path, flags(clip_targets=None, clip_weights="none", epochs=1)) == 0
    with pytest.raises(UserError, match="has no CLIP head"):
        open_index(tmp_path / "run", CPU)


def test_a_video_in_segments_has_one_index(divided, tmp_path):
    """The index of the folder and of the file concatenates those of the segments."""
    from hnerv.cli import main
    from hnerv.search.pictures import decode_frames

    parts = [open_index(run, CPU, keep=False) for run in sorted((divided / "segments").iterdir())]
    full = open_index(divided, CPU, keep=False)
    assert torch.equal(full.embeddings, torch.cat([part.embeddings for part in parts]))
    assert full.scene.frames == 12 and full.scene.train == (0, 1, 4, 5, 8, 9) and full.scene.val == (3, 7, 11)
    path = tmp_path / "video.hnerv"
    main(["encode", str(divided), "-o", str(path), "--weight-bits", "16", "--latent-bits", "16", "--no-measure"])
    coded = open_index(path, CPU)
    assert coded.scene == full.scene and coded.embeddings.shape == full.embeddings.shape
    assert (coded.embeddings - full.embeddings).abs().max() < 0.05
    assert torch.equal(open_index(path, CPU).embeddings, coded.embeddings)
    pictures = [decode_frames(place, [2, 9], CPU) for place in (path, divided)]
    assert list(pictures[0]) == list(pictures[1]) == [2, 9]
    assert abs(pictures[0][9].astype(int) - pictures[1][9]).max() < 12
