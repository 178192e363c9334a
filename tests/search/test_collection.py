"""Search of a collection against searches of its single videos, with changes to the folder in between."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from hnerv.cli import main
from hnerv.errors import UserError
from hnerv.search import collection, find_across, find_hits, open_collection, open_index, score_patches
from hnerv.search import index as index_module
from hnerv.search.collection import Collection, Member, open_member

pytest.importorskip("faiss")
CPU = torch.device("cpu")
ALL = ["a.hnerv", "c.hnerv", "deep/b"]
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


@pytest.fixture(params=["flat", "index"])
def kind(request, monkeypatch) -> str:
    """Both ways to search. The index returns so few candidates that not all vectors are compared."""
    monkeypatch.setattr(collection, "CANDIDATES", 2)
    if request.param == "index":
        monkeypatch.setattr(collection, "FLAT_LIMIT", 40)
    return request.param


@pytest.fixture
def indexed(monkeypatch) -> None:
    monkeypatch.setattr(collection, "FLAT_LIMIT", 40)


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
    """The direction as the difference of two queries."""
    hits = find_across(opened, direction[None] + 1, torch.ones(1, len(direction)), top, CPU)
    return [(found.video, found.frame, found.patch, found.score, found.z) for found in hits]


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
    if opened.vectors:
        assert opened.vectors.ntotal == sum(member.count for member in opened.members)
    for direction in directions():
        for top in (1, 3, 100):
            assert agree(found_in(opened, direction, top), expected(folder, paths, direction, top))
    return opened


def test_the_hits_are_those_of_each_video_merged(own, kind):
    opened = checked(own, ALL)
    assert (own / "index.faiss").exists() == bool(opened.vectors) == (kind == "index")
    assert len({found[0] for direction in directions() for found in found_in(opened, direction, 3)}) > 1


def test_few_videos_are_scored(own, indexed, monkeypatch):
    """A hit of the best video is enough: the files of the others are not opened."""
    monkeypatch.setattr(collection, "CANDIDATES", 100)
    best = open_index(own / "a.hnerv", CPU).embeddings[5, 3]
    opened, scored = open_collection(own, CPU), []
    original = collection.open_member
    monkeypatch.setattr(collection, "open_member", lambda *args: scored.append(args[1].path) or original(*args))
    (hit,) = found_in(opened, best, 1)
    assert hit[0] == "a.hnerv" and hit[3] == pytest.approx(1, abs=1e-5) and len(scored) < 3


@pytest.mark.parametrize("kind", ["alike", "far"])
def test_the_index_finds_nearly_all_of_many_vectors(tmp_path, monkeypatch, kind):
    """Recall of the ten best vectors among the candidates, and bounds of their scores, against a matrix product."""
    draw = np.random.default_rng(0)
    scenes = np.repeat(2 + draw.normal(size=(50, 32)), 400, axis=0) + 0.3 * draw.normal(size=(20_000, 32))
    rows = normalize(torch.from_numpy(scenes).float(), dim=1)
    opening = lru_cache(lambda *_: index_module.Index(tmp_path, rows[:, None], None))
    monkeypatch.setattr(collection, "open_member", opening)
    members = [Member("a", count=len(rows))]
    opened = collection._with_index(Collection(tmp_path, []), members, len(rows), CPU)
    found = []
    for _ in range(20):
        noise = torch.from_numpy(draw.normal(size=32)).float()
        direction = noise if kind == "far" else rows[draw.integers(len(rows))] + 0.1 * noise
        scores = (rows.double() @ direction.double()).numpy()
        mean, deviation, ranking = collection._rank_by_index(opened, direction, 10, CPU)
        assert (mean, deviation) == (pytest.approx(scores.mean(), abs=1e-6), pytest.approx(scores.std(), rel=1e-6))
        bounds, best = np.array([bound for _, bound in islice(ranking, 100)]), np.sort(scores)[::-1][:100]
        assert (bounds - best < 0.002 * float(direction.norm())).all()
        found.append((bounds >= best - 1e-6)[:10].mean())  # lower ones follow where a list is not searched
    assert np.mean(found) >= 0.95


def test_a_second_opening_computes_and_writes_nothing(own, kind, computed):
    first = open_collection(own, CPU)
    assert sorted(computed) == ["a.hnerv", "c.hnerv", "latest.pt"]
    before = [path.stat().st_mtime_ns for path in sorted(own.glob("index.*"))]
    second = open_collection(own, CPU)
    assert len(computed) == 3 and [path.stat().st_mtime_ns for path in sorted(own.glob("index.*"))] == before
    assert second.members == first.members and len(before) == (1 if kind == "flat" else 2)
    os.utime(own / "a.hnerv", (1, 1))
    third = open_collection(own, CPU)
    assert [member.number for member in third.members] == [member.number for member in first.members] and not computed[
        3:
    ]


def test_members_added_changed_and_removed(own, kind, computed, tmp_path, coded):
    (own / "c.hnerv").rename(tmp_path / "c.hnerv")
    shutil.rmtree(own / "c")
    checked(own, ["a.hnerv", "deep/b"])
    shutil.copy(tmp_path / "c.hnerv", own / "new.hnerv")
    del computed[:]
    opened = checked(own, ["a.hnerv", "deep/b", "new.hnerv"])
    numbers = {member.path: member.number for member in opened.members}
    assert computed == ["new.hnerv"]
    if kind == "index":
        assert numbers == {"a.hnerv": 0, "deep/b": 1, "new.hnerv": 2}
    shutil.copy(coded["clip"], own / "a.hnerv")
    opened = checked(own, ["a.hnerv", "deep/b", "new.hnerv"])
    if kind == "index":
        assert [member.number for member in opened.members] == [3, 1, 2]
    shutil.rmtree(own / "deep")
    checked(own, ["a.hnerv", "new.hnerv"])
    (own / "a.hnerv").rename(own / "other.hnerv")
    checked(own, ["new.hnerv", "other.hnerv"])


def test_growth_replaces_the_lists(own, monkeypatch, tmp_path):
    """From a flat search to an index, to one with more lists."""
    monkeypatch.setattr(collection, "FLAT_LIMIT", 100)
    for name in ("c.hnerv", "deep"):
        (own / name).rename(tmp_path / name)
    shutil.rmtree(own / "c")
    assert checked(own, ["a.hnerv"]).vectors is None
    (tmp_path / "c.hnerv").rename(own / "c.hnerv")
    few = checked(own, ["a.hnerv", "c.hnerv"]).vectors.nlist
    for n in range(20):
        shutil.copy(own / "c.hnerv", own / f"{n}.hnerv")
    assert open_collection(own, CPU).vectors.nlist > few


@pytest.mark.parametrize("name", ["index.faiss", "index.json"])
@pytest.mark.parametrize("fault", ["a bit", "cut short", "empty", "foreign", "missing"])
def test_a_damaged_index_is_logged_and_rebuilt(own, indexed, warned, fault, name, computed):
    open_collection(own, CPU)
    data = bytearray((own / name).read_bytes())
    data[40] ^= 1
    data = {"cut short": data[: len(data) // 2], "empty": b"", "foreign": b"\x07" * len(data)}.get(fault, data)
    (own / name).write_bytes(data)
    if fault == "missing":
        (own / name).unlink()
    checked(own, ALL)
    unseen = name == "index.json" and fault in ("a bit", "missing")
    assert len(computed) == 3 and (unseen or (len(warned()) == 1 and "index.faiss is unusable" in warned()[0]))
    before = (own / "index.faiss").stat().st_mtime_ns
    open_collection(own, CPU)
    assert (own / "index.faiss").stat().st_mtime_ns == before


def test_an_index_of_other_members_is_not_used(own, indexed, tmp_path, warned):
    """Two processes may write at once: the index of one, then the list of the other."""
    open_collection(own, CPU)
    shutil.copy(own / "index.json", tmp_path)
    shutil.rmtree(own / "deep")
    open_collection(own, CPU)
    shutil.copy(tmp_path / "index.json", own)
    checked(own, ["a.hnerv", "c.hnerv"])
    assert "belongs to other members" in warned()[0]


def test_an_embedding_file_that_is_gone_is_computed_again(own, computed):
    opened = open_collection(own, CPU)
    before = found_in(opened, directions()[0], 5)
    for path in own.rglob("*.index.safetensors"):
        path.unlink()
    del computed[:]
    open_member.cache_clear()
    assert agree(found_in(open_collection(own, CPU), directions()[0], 5), before) and computed


def test_a_video_that_changes_after_the_opening_is_refused(own):
    opened = open_collection(own, CPU)
    shutil.copy(own / "c.hnerv", own / "a.hnerv")
    open_index(own / "a.hnerv", CPU)
    with pytest.raises(UserError, match="changed while it was being read"):
        found_in(opened, directions()[0], 100)


def test_the_index_of_a_read_only_folder_is_in_the_cache(own, kind, monkeypatch, tmp_path, warned, computed):
    monkeypatch.setenv("HNERV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: path != own)  # root may write everywhere
    opened = checked(own, ALL)
    stored = sorted(path.suffix for path in (tmp_path / "cache" / "collections").iterdir())
    assert stored == ([".faiss", ".json"] if opened.vectors else [".json"]) and not list(own.glob("index.*"))
    assert open_collection(own, CPU).members == opened.members and len(computed) == 3 and warned() == []


def test_an_index_that_cannot_be_written_is_a_warning(own, kind, warned):
    (own / ("index.faiss" if kind == "index" else "index.json")).mkdir()  # a folder: not even root can replace it
    checked(own, ALL)
    assert "the index is not saved" in warned()[-1]


def test_the_majority_decides_which_targets_are_searched(own, coded, warned, random_run):
    open_collection(own, CPU)
    for name in ("d", "e", "f", "g"):
        shutil.copy(coded["random"], own / f"{name}.hnerv")
    opened = open_collection(own, CPU)
    assert names(opened) == ["d.hnerv", "e.hnerv", "f.hnerv", "g.hnerv"]
    assert sum("its targets are from" in text for text in warned()) == 3
    assert opened.teacher(CPU).record.targets.kind == "random"
    for name in ("d", "e", "f"):
        (own / f"{name}.hnerv").unlink()
    checked(own, ALL)


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
        checked(own, ALL)
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
    assert names(open_collection(own, CPU)) == ALL, "a flat search needs no FAISS"
    monkeypatch.setattr(collection, "FLAT_LIMIT", 40)
    with pytest.raises(UserError, match=r"pip install -e '\.\[fleet\]'"):
        open_collection(own, CPU)


def test_two_processes_build_concurrently(own, indexed):
    code = (
        "import torch\nfrom pathlib import Path\nfrom hnerv.search import collection, open_collection\n"
        "collection.FLAT_LIMIT = 40\n"
        f"print(len(open_collection(Path({str(own)!r}), torch.device('cpu')).members))"
    )
    words = [sys.executable, "-W", "error", "-c", code]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [process.communicate() for process in both]
    assert [(out, process.returncode) for (out, _), process in zip(ends, both, strict=True)] == [("3\n", 0)] * 2, ends
    checked(own, ALL)
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
    opened = open_collection(own, CPU)
    (talk,) = [member for member in opened.members if member.path == "talk"]
    target = open_member(own, talk, CPU).embeddings[9, 3]
    best = find_across(opened, target[None], None, 1, CPU)[0]
    assert (best.video, best.frame, best.patch) == ("talk", 9, 3)
    assert train(own, [*words, "--segment-frames", "6", "--epochs", "4", "--overwrite"], exp_id="talk") == 0
    (changed,) = [member for member in open_collection(own, CPU).members if member.path == "talk"]
    assert changed.digest != talk.digest
