"""The FAISS index against a matrix product."""

from __future__ import annotations

import numpy as np
import pytest

from hnerv.search import vectors
from hnerv.search.vectors import (
    EXACT_BELOW,
    DamagedVectorsError,
    Moments,
    VectorStore,
    add_rows,
    create_index,
    fits,
    nearest,
    num_lists,
    outgrown,
    read_vectors,
    remove_ranges,
    sample_size,
    score_error,
    write_vectors,
)

pytest.importorskip("faiss")


def walks(count: int, dim: int = 32, seed: int = 0) -> np.ndarray:
    """(count, dim) of unit norm: 50 scenes around a common direction, in each of which one leads to the next."""
    draw = np.random.default_rng(seed)
    scenes = np.repeat(draw.normal(size=(50, dim)), count // 50, axis=0)
    rows = 2 + scenes + 0.05 * np.cumsum(draw.normal(size=scenes.shape), axis=0) / np.sqrt(count / 50)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def filled(rows: np.ndarray, first: int = 0):
    draw = np.random.default_rng(0).choice(len(rows), sample_size(len(rows)), replace=False)
    index = create_index(rows[np.sort(draw)], len(rows))
    add_rows(index, rows, first)
    return index


def stored(rows: np.ndarray, **table: object) -> VectorStore:
    return VectorStore(filled(rows), Moments.of(rows), table)


@pytest.mark.parametrize(
    ("count", "lists"),
    [(1, 1), (EXACT_BELOW - 1, 1), (EXACT_BELOW, 128), (100_000, 256), (1_000_000, 1024), (10**7, 4096)],
)
def test_lists(count, lists):
    assert num_lists(count) == lists
    assert 1 <= sample_size(count) <= count


def test_few_vectors_are_all_compared():
    rows = walks(2000)
    index, draw = filled(rows, first=7), np.random.default_rng(1)
    for direction in draw.normal(size=(20, 32)).astype(np.float32):
        scores, ids = nearest(index, direction, 50)
        exact = rows @ direction
        assert np.array_equal(ids - 7, np.argsort(-exact, kind="stable")[:50])
        assert np.allclose(scores, exact[ids - 7], atol=1e-5)


@pytest.mark.parametrize("kind", ["alike", "far"])
def test_many_vectors_are_found_nearly_all(kind, monkeypatch):
    """Recall of the ten best, for queries close to the vectors and far from all of them."""
    monkeypatch.setattr(vectors, "EXACT_BELOW", 5000)
    rows, draw = walks(20_000), np.random.default_rng(1)
    index, hits = filled(rows), []
    assert index.nlist == 128
    for _ in range(50):
        noise = draw.normal(size=32)
        direction = noise if kind == "far" else rows[draw.integers(len(rows))] + 0.1 * noise
        scores, ids = nearest(index, direction.astype(np.float32), 100)
        exact = rows @ direction.astype(np.float32)
        assert 0 < np.abs(scores - exact[ids]).max() < score_error(index, direction) < 0.01 * np.linalg.norm(direction)
        best = ids[np.argsort(-exact[ids], kind="stable")[:10]]
        hits.append(len(set(best) & set(np.argsort(-exact, kind="stable")[:10])) / 10)
    assert np.mean(hits) >= 0.95


def test_share_one_looks_into_every_list(monkeypatch):
    monkeypatch.setattr(vectors, "EXACT_BELOW", 1000)
    monkeypatch.setattr(vectors, "MIN_PROBED", 1)
    index = filled(walks(2000))
    assert index.nlist > 8
    assert len(nearest(index, np.ones(32, np.float32), 5000, share=1)[1]) == 2000
    assert 0 < len(nearest(index, np.ones(32, np.float32), 5000)[1]) < 2000


@pytest.mark.parametrize("exact_below", [1000, 100_000])
def test_removed_vectors_are_not_found(monkeypatch, exact_below):
    monkeypatch.setattr(vectors, "EXACT_BELOW", exact_below)
    rows = walks(2000)
    index = filled(rows)
    remove_ranges(index, [(0, 500), (1000, 1001)])
    ids = nearest(index, np.ones(32, np.float32), 5000, share=1)[1]
    assert sorted(ids) == [*range(500, 1000), *range(1001, 2000)]


def test_vectors_beyond_the_range_of_the_sample_do_not_fit(monkeypatch):
    monkeypatch.setattr(vectors, "EXACT_BELOW", 1000)
    rows = walks(2000)
    index, others = filled(rows), np.eye(32, dtype=np.float32)
    assert fits(index, rows) and not fits(index, others) and not fits(index, -rows)
    monkeypatch.setattr(vectors, "EXACT_BELOW", 3000)
    assert fits(filled(rows), others)


def test_moments_are_those_of_all_scores():
    parts = walks(1000), walks(500, seed=1)
    moments, rows = Moments.of(parts[0]) + Moments.of(parts[1]), np.concatenate(parts)
    for direction in np.random.default_rng(2).normal(size=(5, 32)).astype(np.float32):
        mean, deviation = moments.spread(direction)
        scores = rows.astype(np.float64) @ direction
        assert mean == pytest.approx(scores.mean(), abs=1e-5) and deviation == pytest.approx(scores.std(), rel=1e-4)


def test_moments_of_vectors_that_are_nearly_equal():
    draw = np.random.default_rng(4)
    rows = np.float32(1 / 32**0.5) + 1e-4 * draw.normal(size=(5000, 32)).astype(np.float32)
    for direction in np.eye(32, dtype=np.float32)[:5]:
        assert Moments.of(rows).spread(direction)[1] == pytest.approx(
            rows[:, direction > 0].std(dtype=np.float64), rel=1e-3
        )


def test_moments_of_equal_vectors_have_no_spread():
    mean, deviation = Moments.of(np.eye(4, dtype=np.float32)[[0, 0, 0]]).spread(np.eye(4, dtype=np.float32)[0])
    assert mean == pytest.approx(1) and deviation == 0


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("exact_below", [1000, 100_000])
def test_a_file_round_trips(tmp_path, monkeypatch, mapped, exact_below):
    monkeypatch.setattr(vectors, "EXACT_BELOW", exact_below)
    store = stored(walks(2000), name="ü")
    write_vectors(tmp_path / "x" / "a.faiss", store)
    found = read_vectors(tmp_path / "x" / "a.faiss", mapped)
    assert found.table == {"name": "ü"} and found.moments.count == 2000
    assert np.array_equal(found.moments.outer, store.moments.outer)
    direction = np.random.default_rng(3).normal(size=32).astype(np.float32)
    for ours, theirs in zip(nearest(found.index, direction, 30), nearest(store.index, direction, 30), strict=True):
        assert np.array_equal(ours, theirs)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a.faiss"]


def test_faiss_alone_opens_the_file(tmp_path):
    import faiss

    write_vectors(tmp_path / "a.faiss", stored(walks(500)))
    assert faiss.read_index(str(tmp_path / "a.faiss")).ntotal == 500


def test_the_vectors_stay_on_the_disk(tmp_path, monkeypatch):
    """A mapped index takes less of its own memory than a tenth of what it holds."""
    monkeypatch.setattr(vectors, "EXACT_BELOW", 1000)
    write_vectors(tmp_path / "a.faiss", stored(walks(50_000, dim=512)))

    def own_memory() -> int:
        words = next(line for line in open_lines("/proc/self/status") if line.startswith("RssAnon")).split()
        return 1024 * int(words[1])

    before = own_memory()
    found = read_vectors(tmp_path / "a.faiss")
    nearest(found.index, np.ones(512, np.float32), 10, share=1)
    assert own_memory() - before < (tmp_path / "a.faiss").stat().st_size / 4


def open_lines(path: str) -> list[str]:
    with open(path) as file:
        return file.readlines()


@pytest.mark.parametrize("fault", ["empty", "short", "half", "head", "sums", "table", "version", "foreign"])
def test_a_damaged_file_is_detected(tmp_path, fault, monkeypatch):
    path = tmp_path / "a.faiss"
    write_vectors(path, stored(walks(500), name="kitchen"))
    data = bytearray(path.read_bytes())
    if fault in ("head", "sums"):
        data[30 if fault == "head" else data.index(b'{"name"') - 100] ^= 1
    elif fault == "table":
        data[data.index(b"kitchen")] ^= 1
    elif fault == "version":
        monkeypatch.setattr(vectors, "VERSION", 2)
    else:
        data = {"empty": b"", "short": data[:-1], "half": data[: len(data) // 2], "foreign": b"\x07" * 500}[fault]
    path.write_bytes(data)
    for mapped in (True, False):
        with pytest.raises(DamagedVectorsError):
            read_vectors(path, mapped)


def test_when_the_lists_are_rebuilt(monkeypatch):
    monkeypatch.setattr(vectors, "EXACT_BELOW", 1000)
    few, many = filled(walks(500)), filled(walks(2000))
    assert not outgrown(few, 500, 999) and outgrown(few, 500, 1000)
    assert not outgrown(many, 2000, 8000) and outgrown(many, 2000, 8001) and outgrown(many, 2000, 999)
