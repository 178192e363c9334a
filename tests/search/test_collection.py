"""Search of a collection against searches of its single videos, with changes to the folder in between."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from hnerv.cli import main
from hnerv.errors import UserError
from hnerv.search import (
    collection,
    collection_hits,
    find_across,
    find_hits,
    open_collection,
    open_index,
    score_patches,
    vectors,
)
from hnerv.search import index as index_module

pytest.importorskip("faiss")
CPU = torch.device("cpu")
NAME = "hnerv-small"


@pytest.fixture(scope="session")
def fleet(clip_weights, tmp_path_factory, train, flags, make_film) -> Path:
    """Three videos with the same targets: a.hnerv, the run deep/b, and c.hnerv next to its run c."""
    folder = tmp_path_factory.mktemp("fleet")
    films = tmp_path_factory.mktemp("films")
    for number, (name, size, count) in enumerate((("a", (32, 64), 12), ("deep/b", (32, 64), 10), ("c", (64, 64), 8))):
        film = make_film(films / str(number), shift=40 * number, count=count, size=size)
        words = flags(data=film, clip_targets=None, clip_weights=clip_weights, clip_model=NAME, epochs=3)
        assert train(folder, [*words, "--data-split", "1_1_1"], exp_id=name) == 0
        if name != "deep/b":
            main(["encode", str(folder / name), "-o", str(folder / f"{name}.hnerv"), "--no-measure"])
    shutil.rmtree(folder / "a")
    return folder


@pytest.fixture
def own(fleet, tmp_path) -> Path:
    """A private copy of the fleet."""
    return Path(shutil.copytree(fleet, tmp_path / "own"))


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    """Names of the model files for which embeddings were computed."""
    calls, original = [], index_module._compute
    monkeypatch.setattr(
        index_module, "_compute", lambda path, device: calls.append(path.name) or original(path, device)
    )
    return calls


@pytest.fixture
def warned(caplog):
    return lambda: [record.getMessage() for record in caplog.records if record.name == "hnerv"]


@pytest.fixture(params=["exact", "lists"])
def kind(request, monkeypatch) -> str:
    """Both kinds of index, with requests so small that not all vectors are compared."""
    monkeypatch.setattr(collection_hits, "CANDIDATES", 2)
    if request.param == "lists":
        monkeypatch.setattr(vectors, "EXACT_BELOW", 40)
        monkeypatch.setattr(
            collection_hits, "nearest", lambda index, direction, count: vectors.nearest(index, direction, count, 1)
        )
    return request.param


def names(found) -> list[str]:
    return [member.path for member in found.members]


def expected(folder: Path, paths: list[str], direction: torch.Tensor, top: int) -> list[tuple]:
    """(video, frame, patch, score, z) of each video searched by itself, merged; z among all patches of all."""
    hits, everything = [], []
    for path in paths:
        scores = score_patches(open_index(folder / path, CPU).embeddings, direction[None]).numpy()
        everything.append(scores.ravel())
        hits += [(path, hit.frame, hit.patch, hit.score) for hit in find_hits(scores, top)]
    scores = np.concatenate(everything).astype(np.float64)
    hits = sorted(hits, key=lambda hit: (-hit[3], hit[:3]))[:top]
    return [(*hit, (hit[3] - scores.mean()) / scores.std()) for hit in hits]


def found_in(opened, direction: torch.Tensor, top: int) -> list[tuple]:
    hits = find_across(opened, direction[None], None, top, CPU)
    return [(found.member.path, found.hit.frame, found.hit.patch, found.hit.score, found.hit.z) for found in hits]


def agree(found: list[tuple], wanted: list[tuple]) -> bool:
    """Same frames and patches, and the same numbers up to rounding."""
    return [hit[:3] for hit in found] == [hit[:3] for hit in wanted] and np.allclose(
        [hit[3:] for hit in found], [hit[3:] for hit in wanted], atol=1e-3
    )


def directions(count: int = 6, dim: int = 12) -> torch.Tensor:
    return normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(7)), dim=-1)


def checked(folder: Path, paths: list[str]):
    """The collection, after each of several queries has been compared with searches of the single videos."""
    opened = open_collection(folder, CPU)
    assert sorted(names(opened)) == sorted(paths)
    assert opened.vectors.ntotal == sum(member.count for member in opened.members) == opened.moments.count
    for direction in directions():
        for top in (1, 3, 100):
            assert agree(found_in(opened, direction, top), expected(folder, paths, direction, top))
    return opened


def test_the_hits_are_those_of_each_video_merged(own, kind):
    opened = checked(own, ["a.hnerv", "c.hnerv", "deep/b"])
    assert opened.path == own / "index.faiss" and opened.vectors.nlist == (1 if kind == "exact" else 16)
    assert len({found[0] for direction in directions() for found in found_in(opened, direction, 3)}) > 1


def test_wanted_and_unwanted_queries_form_one_direction(own):
    opened = open_collection(own, CPU)
    wanted, unwanted = directions(2), directions(3)[2:]
    hits = find_across(opened, wanted, unwanted, 3, CPU)
    assert agree(
        [(found.member.path, found.hit.frame, found.hit.patch, found.hit.score, found.hit.z) for found in hits],
        expected(own, names(opened), wanted.mean(0) - unwanted.mean(0), 3),
    )


def test_few_videos_are_opened(own, monkeypatch):
    """A hit of the best video is enough: the files of the others are not opened."""
    monkeypatch.setattr(collection_hits, "CANDIDATES", 2)
    opened, mapped = open_collection(own, CPU), []
    original = collection.map_index
    monkeypatch.setattr(collection, "map_index", lambda path, *rest: mapped.append(path.name) or original(path, *rest))
    best = open_index(own / "a.hnerv", CPU).embeddings[5, 3]
    (hit,) = found_in(opened, best, 1)
    assert hit[0] == "a.hnerv" and hit[3] == pytest.approx(1, abs=1e-5)
    assert "a.hnerv" in mapped and len(mapped) < 3


def test_a_second_opening_computes_and_writes_nothing(own, computed):
    first = open_collection(own, CPU)
    assert sorted(computed) == ["a.hnerv", "c.hnerv", "latest.pt"]
    before = first.path.stat()
    second = open_collection(own, CPU)
    assert len(computed) == 3 and second.path.stat() == before and second.members == first.members


def test_members_added_changed_and_removed(own, kind, computed, tmp_path, coded):
    (own / "c.hnerv").rename(tmp_path / "c.hnerv")
    shutil.rmtree(own / "c")
    checked(own, ["a.hnerv", "deep/b"])
    shutil.copy(tmp_path / "c.hnerv", own / "new.hnerv")
    del computed[:]
    opened = checked(own, ["a.hnerv", "deep/b", "new.hnerv"])
    assert computed == ["new.hnerv"]
    firsts = {member.path: member.first for member in opened.members}
    if kind == "exact":  # otherwise it may be rebuilt, since the range of so few vectors is narrow
        assert firsts["new.hnerv"] == max(firsts.values()) > firsts["deep/b"]
    shutil.copy(coded["clip"], own / "a.hnerv")
    opened = checked(own, ["a.hnerv", "deep/b", "new.hnerv"])
    if kind == "exact":
        now = {member.path: member.first for member in opened.members}
        assert now["a.hnerv"] > firsts["new.hnerv"] and now["deep/b"] == firsts["deep/b"]
    shutil.rmtree(own / "deep")
    checked(own, ["a.hnerv", "new.hnerv"])
    (own / "a.hnerv").rename(own / "other.hnerv")
    checked(own, ["new.hnerv", "other.hnerv"])


def test_a_file_that_was_only_touched_keeps_its_vectors(own, computed):
    before = open_collection(own, CPU).members
    os.utime(own / "a.hnerv", (1, 1))
    after = open_collection(own, CPU).members
    assert [member.first for member in after] == [member.first for member in before] and len(computed) == 3


def test_growth_rebuilds_the_lists(own, monkeypatch, tmp_path):
    monkeypatch.setattr(vectors, "EXACT_BELOW", 200)
    (own / "c.hnerv").rename(tmp_path / "c.hnerv")
    shutil.rmtree(own / "c")
    assert checked(own, ["a.hnerv", "deep/b"]).vectors.nlist == 1
    shutil.copy(tmp_path / "c.hnerv", own)
    assert open_collection(own, CPU).vectors.nlist > 1


@pytest.mark.parametrize("fault", ["a bit", "cut short", "empty", "of another version"])
def test_a_damaged_index_is_logged_and_rebuilt(own, warned, fault, monkeypatch, computed):
    place = open_collection(own, CPU).path
    data = bytearray(place.read_bytes())
    if fault == "a bit":
        data[40] ^= 1
    elif fault == "of another version":
        monkeypatch.setattr(vectors, "VERSION", 9)
    else:
        data = data[: len(data) // 2] if fault == "cut short" else b""
    place.write_bytes(data)
    checked(own, ["a.hnerv", "c.hnerv", "deep/b"])
    assert len(warned()) == 1 and "is unusable" in warned()[0] and len(computed) == 3
    open_collection(own, CPU)
    assert len(warned()) == 1


def test_an_embedding_file_that_is_gone_is_computed_again(own, computed):
    opened = open_collection(own, CPU)
    before = found_in(opened, directions()[0], 5)
    for path in own.rglob("*.index.safetensors"):
        path.unlink()
    del computed[:]
    assert agree(found_in(open_collection(own, CPU), directions()[0], 5), before) and computed


def test_a_video_that_changes_after_the_opening_is_refused(own):
    opened = open_collection(own, CPU)
    shutil.copy(own / "c.hnerv", own / "a.hnerv")
    open_index(own / "a.hnerv", CPU)
    with pytest.raises(UserError, match="changed while it was being read"):
        found_in(opened, directions()[0], 100)


def test_the_index_of_a_read_only_folder_is_in_the_cache(own, monkeypatch, tmp_path, warned, computed):
    monkeypatch.setenv("HNERV_CACHE", str(tmp_path / "cache"))
    (own / "index.faiss").mkdir()  # a folder: not even root can write a file there
    opened = checked(own, ["a.hnerv", "c.hnerv", "deep/b"])
    assert tmp_path / "cache" in opened.path.parents and len(computed) == 3
    assert open_collection(own, CPU).path == opened.path and warned() == []


def test_no_writable_location_is_a_warning(own, monkeypatch, tmp_path, warned):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("HNERV_CACHE", str(tmp_path / "cache"))
    (own / "index.faiss").mkdir()
    checked(own, ["a.hnerv", "c.hnerv", "deep/b"])
    assert "is not saved" in warned()[-1] and "HNERV_CACHE" in warned()[-1]


def test_a_video_with_other_targets_is_skipped(own, coded, warned):
    shutil.copy(coded["file"], own / "0first.hnerv")
    checked(own, ["a.hnerv", "c.hnerv", "deep/b"])
    assert len(warned()) == 1 and warned()[0].startswith("skipping ")
    assert "0first.hnerv: its targets are from" in warned()[0]
    open_collection(own, CPU)
    assert warned()[1] == warned()[0], "logged by each search"


def test_the_majority_decides_which_targets_are_searched(own, coded, warned, random_run):
    open_collection(own, CPU)
    for name in ("d", "e", "f", "g"):
        shutil.copy(coded["random"], own / f"{name}.hnerv")
    opened = open_collection(own, CPU)
    assert names(opened) == ["d.hnerv", "e.hnerv", "f.hnerv", "g.hnerv"]
    assert sum(text.startswith("skipping ") for text in warned()) == 3
    assert opened.teacher(CPU).record.targets.kind == "random"
    for name in ("d", "e", "f"):
        (own / f"{name}.hnerv").unlink()
    checked(own, ["a.hnerv", "c.hnerv", "deep/b"])


def test_target_files_of_one_encoder_are_comparable(tmp_path, train, flags):
    """Targets without an encoder compare only with themselves."""
    from safetensors.torch import save_file

    for name, quote in (("a", "ours"), ("b", "ours"), ("c", "theirs"), ("d", ""), ("e", "ours")):
        tensor = torch.randn(12, 8, 8, generator=torch.Generator().manual_seed(ord(name)))
        save_file({"embeddings": tensor}, tmp_path / f"{name}.safetensors", {"encoder": quote} if quote else None)
        words = flags(clip_targets=tmp_path / f"{name}.safetensors", epochs=1)
        assert train(tmp_path / "fleet", words, exp_id=name) == 0
    assert names(open_collection(tmp_path / "fleet", CPU)) == ["a", "b", "e"]


def test_models_that_cannot_be_searched_are_skipped(own, warned, train, flags):
    assert train(own, flags(clip_targets=None, clip_weights="none", epochs=1), exp_id="pixels") == 0
    (own / "broken.hnerv").write_bytes(b"\x07" * 100)
    for _ in range(2):
        checked(own, ["a.hnerv", "c.hnerv", "deep/b"])
    skipped = sorted(text.removeprefix("skipping ").split(": ")[0] for text in warned()[:2])
    assert skipped == [str(own / "broken.hnerv"), str(own / "pixels")]
    shutil.copy(own / "a.hnerv", own / "broken.hnerv")
    assert "broken.hnerv" in names(open_collection(own, CPU))


def test_refusals(tmp_path, monkeypatch, own):
    with pytest.raises(UserError, match="contains no .hnerv file and no run"):
        open_collection(tmp_path / "empty", CPU)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.hnerv").write_bytes(b"\x07" * 100)
    with pytest.raises(UserError, match="none of the 1 models under"):
        open_collection(tmp_path / "broken", CPU)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[fleet\]'"):
        open_collection(own, CPU)


def test_another_process_may_replace_the_index_meanwhile(own, monkeypatch):
    """The file that this process mapped is gone when it is to be updated: the process builds a new index."""
    (own / "c.hnerv").rename(own / "c.hidden")
    shutil.rmtree(own / "c")
    open_collection(own, CPU)
    (own / "c.hidden").rename(own / "c.hnerv")
    original = collection._current_members

    def meanwhile(folder, paths, before, device):
        found = original(folder, paths, before, device)
        monkeypatch.setattr(collection, "_current_members", original)
        (own / "index.faiss").unlink()
        open_collection(own, CPU)
        return found

    monkeypatch.setattr(collection, "_current_members", meanwhile)
    checked(own, ["a.hnerv", "c.hnerv", "deep/b"])


def test_two_processes_build_concurrently(own):
    code = (
        "import torch\nfrom pathlib import Path\nfrom hnerv.search import open_collection\n"
        f"print(len(open_collection(Path({str(own)!r}), torch.device('cpu')).members))"
    )
    words = [sys.executable, "-W", "error", "-c", code]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [process.communicate() for process in both]
    assert [(out, process.returncode) for (out, _), process in zip(ends, both, strict=True)] == [("3\n", 0)] * 2, ends
    checked(own, ["a.hnerv", "c.hnerv", "deep/b"])
    assert not list(own.glob(".*"))


def test_a_text_over_a_folder(own, search, clip_model, clip_weights, capsys):
    with torch.no_grad():
        text = normalize(clip_model.encode_text(open_clip.tokenize(["a red car"])), dim=-1)[0]
    found = search(own, "a red car", "--top", 20, "--clip-weights", clip_weights)
    hits = [(hit["video"], hit["frame"], hit["patch"], hit["score"], hit["z"]) for hit in found["hits"]]
    assert agree(hits, expected(own, ["a.hnerv", "c.hnerv", "deep/b"], text, 20))
    assert (found["folder"], found["videos"], found["query"]) == (str(own), 3, ["a red car"])
    assert all(hit["seconds"] == pytest.approx(hit["frame"] / 24) for hit in found["hits"])
    main(["search", str(own), "a red car", "--top", "4"])  # the weights are where the runs had them
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a red car" and len(lines) == 7
    assert lines[-1].startswith("targets: OpenCLIP")
    for line, hit in zip(lines[2:6], found["hits"], strict=False):
        assert line.split()[1:5] == [hit["video"], hit["time"], str(hit["frame"]), str(hit["patch"])]


def test_weights_next_to_the_index_are_found(own, search, clip_weights, capsys):
    shutil.rmtree(own / "deep")
    expected_hits = search(own, "a red car", "--clip-weights", clip_weights)["hits"]
    with pytest.raises(SystemExit):
        main(["search", str(own), "a red car"])
    assert "index.faiss are from OpenCLIP" in (error := capsys.readouterr().err) and "--clip-weights" in error
    shutil.copy(clip_weights, own)
    assert search(own, "a red car")["hits"] == expected_hits


def test_the_hits_are_drawn(own, tmp_path, capsys):
    main(["search", str(own), "a red car", "--top", "60", "--save", str(tmp_path / "sheet.png")])
    *lines, _, message = capsys.readouterr().out.splitlines()
    assert len({line.split()[1] for line in lines[2:]}) > 1, "of several videos"
    assert message == f"hits drawn to {tmp_path / 'sheet.png'}"
    assert np.array(Image.open(tmp_path / "sheet.png")).std() > 5
    with pytest.raises(SystemExit) as stop:
        main(["search", str(own), "a red car", "--heatmap", str(tmp_path / "heat.png")])
    assert stop.value.code == 2 and "--heatmap draws one video" in capsys.readouterr().err
    assert not (tmp_path / "heat.png").exists()


def test_a_video_in_segments_is_one_member(own, train, flags, clip_weights, make_film, tmp_path):
    """Frames are counted over all segments, and a retrained segment is read again."""
    film = make_film(tmp_path / "film", shift=50)
    words = flags(data=film, clip_targets=None, clip_weights=clip_weights, clip_model=NAME)
    assert train(own, [*words, "--segment-frames", "6"], exp_id="talk") == 0
    collection = open_collection(own, CPU)
    (talk,) = [member for member in collection.members if member.path == "talk"]
    assert talk.frames == 12 and not talk.fault
    target = collection.open(talk, CPU).embeddings[9, 3]
    best = find_across(collection, target[None], None, 1, CPU)[0]
    assert (best.member.path, best.hit.frame, best.hit.patch) == ("talk", 9, 3)
    assert train(own, [*words, "--segment-frames", "6", "--epochs", "4", "--overwrite"], exp_id="talk") == 0
    again = open_collection(own, CPU)
    (changed,) = [member for member in again.members if member.path == "talk"]
    assert changed.digest != talk.digest
