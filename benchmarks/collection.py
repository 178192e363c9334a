"""Search over many synthetic videos, with the FAISS index and without: build time, size, latency, recall.

    python benchmarks/collection.py --vectors 1000000 --dim 512 --threads 1 2 --json output/collection.json

The vectors of a video are random walks around scenes, and scenes are scattered around topics. All share one common
direction, and the variance falls off over the dimensions. The vectors are stored in the index files of `hnerv search`;
only the models are missing. Queries resemble either a stored vector or a text embedding, which is far from every vector
and closer to some. The folder is deleted at the end.

V videos of F frames with P patches, D dimensions, Q queries.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from common import markdown, peak_bytes

from hnerv.command import one_line_errors, set_up_torch
from hnerv.files import sha256_of, write_json
from hnerv.flags import Parser

FRAMES, PATCHES, SCENE, TOPICS = 1250, 8, 75, 500
"""F, P, mean frames of a scene, topics of all videos."""
TOP = 10


def main() -> None:
    args = parse()
    with one_line_errors("collection.py", args.debug):
        set_up_torch(args.threads[0])
        found = measure(args)
        print(table(found))
        if args.json:
            write_json(args.json, found)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="collection.py", description=__doc__)
    add = parser.add_argument
    add("--vectors", type=int, default=100_000, help=f"in full videos of {FRAMES * PATCHES} (100000)")
    add("--dim", type=int, default=512, help="dimensions of a vector (512)")
    add("--queries", type=int, default=100, help="queries of each kind (100)")
    add("--threads", type=int, nargs="+", default=[1, 2], help="measure with each; the first builds the index (1 2)")
    add("--folder", type=Path, help="parent of the temporary folder (default: the system's)")
    add("--seed", type=int, default=0, help="seed of videos and queries (0)")
    add("--json", type=Path, metavar="OUT", help="write all numbers as JSON")
    add("--debug", action="store_true", help="print the traceback of an error")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> dict:
    """All numbers of the table."""
    from hnerv.runs.environment import environment
    from hnerv.search import collection

    collection.FLAT_LIMIT = 0  # an index at any size
    count, world = max(2, round(args.vectors / (FRAMES * PATCHES))), World(args.dim, args.seed)
    found = {"environment": environment(), "vectors": count * FRAMES * PATCHES, "dim": args.dim, "seed": args.seed}
    with tempfile.TemporaryDirectory(prefix="collection.", dir=args.folder) as name:
        folder = Path(name)
        for number in range(count - 1):
            write_video(folder, number, world)
        found |= build(folder, count - 1, world)
        queries = {"like a vector": world.queries_like_vectors(args.queries)}
        queries["like a text"] = world.queries_like_texts(args.queries)
        best = {kind: exact(folder, count, vectors) for kind, vectors in queries.items()}
        found["queries"] = [
            {"kind": kind, "threads": threads, **row}
            for threads in args.threads
            for kind, vectors in queries.items()
            for row in search(folder, vectors, best[kind], threads)
        ]
    return found


class World:
    """The distribution of videos and queries, determined by the seed."""

    def __init__(self, dim: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.dim, self.seed = dim, seed
        # Standard deviations fall as 1 / sqrt(i) along the axes of a random rotation.
        scales = np.arange(1, dim + 1) ** -0.5
        basis = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
        self.shape = ((scales / np.linalg.norm(scales))[:, None] * basis).astype(np.float32)
        self.common, self.words = unit(self.near(rng, 2))
        self.topics = 1.6 * self.common + self.near(rng, TOPICS)

    def noise(self, rng: np.random.Generator, *size: int) -> np.ndarray:
        return rng.standard_normal((*size, self.dim), dtype=np.float32)

    def near(self, rng: np.random.Generator, *size: int) -> np.ndarray:
        """(*size, D), of norm 1 on average."""
        return self.noise(rng, *size) @ self.shape

    def video(self, number: int) -> np.ndarray:
        """(F, P, D) of unit norm: three topics, scenes around them, patches around these, all moving slowly."""
        rng = np.random.default_rng((self.seed, number))
        cuts = np.sort(rng.choice(np.arange(1, FRAMES), FRAMES // SCENE, replace=False))
        scene = np.searchsorted(cuts, np.arange(FRAMES), side="right")
        topics = rng.choice(rng.choice(len(self.topics), 3), len(cuts) + 1)
        centres = self.topics[topics][:, None] + 0.8 * self.near(rng, len(topics), 1)
        centres = centres + 0.8 * self.near(rng, len(topics), PATCHES)
        walk = 0.03 * np.cumsum(self.noise(rng, FRAMES, PATCHES), axis=0)
        walk += 0.1 * self.noise(rng, FRAMES, PATCHES) - walk[np.concatenate([[0], cuts])][scene]
        return unit(centres[scene] + walk @ self.shape)

    def queries_like_vectors(self, count: int) -> np.ndarray:
        """(Q, D): stored vectors of the first videos plus noise, cosine about 0.9 to them."""
        rng = np.random.default_rng((self.seed, 1 << 30))
        return unit(self.stored(rng, count) + 0.5 * unit(self.near(rng, count)))

    def queries_like_texts(self, count: int) -> np.ndarray:
        """(Q, D): mostly a common direction of texts and noise; a third is what is special about a stored vector."""
        rng = np.random.default_rng((self.seed, 2 << 30))
        special, noise = unit(self.stored(rng, count) - self.common), unit(rng.normal(size=(count, self.dim)))
        return unit(0.35 * special + 0.75 * self.words + 0.55 * noise)

    def stored(self, rng: np.random.Generator, count: int) -> np.ndarray:
        rows = np.concatenate([self.video(number).reshape(-1, self.dim)[::7] for number in range(4)])
        return rows[rng.choice(len(rows), count)]


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def write_video(folder: Path, number: int, world: World) -> None:
    """A file in place of a model, and the index of the model next to it, as `hnerv search` keeps it."""
    import torch

    from hnerv.config import Config
    from hnerv.geometry import CropPlan
    from hnerv.model import Scene
    from hnerv.runs.record import RunRecord, TargetsRecord, VideoRecord
    from hnerv.search.index import Index, _write_index, index_paths

    path = folder / f"{number:05d}.hnerv"
    path.write_text(f"in place of video {number}\n")
    scene = Scene(FRAMES, 320, 640, 2, 4, 25.0, tuple(range(FRAMES)), (), world.dim)
    video, targets = (
        VideoRecord("synthetic", "", CropPlan(0, 0, 320, 640, 320, 640)),
        TargetsRecord("synthetic", "file", "synthetic"),
    )
    record = RunRecord(Config(), video, scene, targets, 8, {})
    digest = sha256_of(path)
    _write_index(index_paths(path, digest), Index(path, torch.from_numpy(world.video(number)), record), digest)


def build(folder: Path, number: int, world: World) -> dict:
    """Seconds to build the index of all videos but one, to open it, and to add the last video; bytes."""
    import torch

    from hnerv.search import open_collection

    times = {}
    for name in ("build", "reopen", "add one video"):
        if name == "add one video":
            write_video(folder, number, world)
        start = now()
        collection = open_collection(folder, torch.device("cpu"))
        times[name] = list(now() - start)
        lists = collection.vectors.nlist
        del collection
    size = (folder / "index.faiss").stat().st_size
    return {"seconds": times, "lists": lists, "bytes": size, "peak_memory": peak_bytes()}


def exact(folder: Path, count: int, queries: np.ndarray) -> np.ndarray:
    """Ids (Q, TOP) of the best of all vectors, best first. Ids count all patches of all videos in order."""
    from safetensors.numpy import load_file

    scores, ids = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for number in range(count):
        rows = load_file(folder / f"{number:05d}.hnerv.index.safetensors")["embeddings"]
        rows = rows.reshape(-1, rows.shape[-1])
        own = queries @ rows.T
        scores = np.concatenate([scores, own], 1)
        ids = np.concatenate([ids, np.broadcast_to(number * len(rows) + np.arange(len(rows)), own.shape)], 1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
        scores, ids = np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)
    return ids


def search(folder: Path, queries: np.ndarray, best: np.ndarray, threads: int) -> Iterator[dict]:
    """A row for answers without the index, one for its candidates, with the recall of the `best` vectors, and one for
    answers with it, with the recall of the hits of those without.
    """
    import torch

    from hnerv.search import find_across, open_collection
    from hnerv.search.collection import CANDIDATES, MIN_PROBED, PROBED, ROW_BITS, _faiss

    torch.set_num_threads(threads)
    device = torch.device("cpu")
    collection = open_collection(folder, device)
    index, flat = collection.vectors, collection._replace(vectors=None)
    probes = _faiss().SearchParametersIVF(nprobe=min(index.nlist, max(MIN_PROBED, index.nlist // PROBED)))

    def candidates(query: np.ndarray) -> set[int]:
        ids = index.search(query[None], min(CANDIDATES * TOP, index.ntotal), params=probes)[1][0]
        return set(((ids >> ROW_BITS) * FRAMES * PATCHES + ids % (1 << ROW_BITS)).tolist())

    def answer(where, query: np.ndarray) -> set[tuple]:
        hits = find_across(where, torch.from_numpy(query)[None], None, TOP, device)
        return {(found.member.path, found.hit.frame, found.hit.patch) for found in hits}

    calls = {"flat answer": partial(answer, flat), "candidates": candidates, "answer": partial(answer, collection)}
    wanted = {"candidates": [set(ids.tolist()) for ids in best]}
    for name, call in calls.items():
        times, found = [], []
        for query in queries:
            start = now()
            found.append(call(query))
            times.append(now() - start)
        pairs = zip(wanted.setdefault(name, wanted.get("answer", found)), found, strict=True)
        wanted.setdefault("answer", found)
        recalls = [len(true & own) / len(true) for true, own in pairs]
        yield {"what": name, **milliseconds(times), "recall": float(np.mean(recalls))}


def now() -> np.ndarray:
    """(wall clock, processor time of all threads) in seconds. Other processes hardly change the second."""
    return np.array([time.perf_counter(), time.process_time()])


def milliseconds(seconds: list[np.ndarray]) -> dict[str, float]:
    wall, processor = 1e3 * np.array(seconds).T
    at_95 = float(np.percentile(wall, 95))
    return {"ms": median(wall), "ms_p95": at_95, "ms_first": wall[0], "processor_ms": median(processor)}


def table(found: dict) -> str:
    """In Markdown."""
    times = (f"{name} {wall:.1f} s ({cpu:.1f} s processor time)" for name, (wall, cpu) in found["seconds"].items())
    size = f"{found['bytes'] / 1e6:,.0f} MB; peak memory {found['peak_memory'] / 1e9:.1f} GB"
    rows = []
    for row in found["queries"]:
        numbers = [f"{row[key]:.1f}" for key in ("ms", "ms_p95", "ms_first", "processor_ms")]
        rows.append([row["kind"], str(row["threads"]), row["what"], *numbers, f"{row['recall']:.3f}"])
    header = ["query", "threads", "what", "ms, median", "p95", "first", "processor", f"recall@{TOP}"]
    return "\n".join(
        [
            f"{found['vectors']:,} vectors of {found['dim']}, {found['lists']} lists: {', '.join(times)}; index {size}",
            json.dumps(found["environment"]),
            "",
            markdown(header, rows),
        ]
    )


if __name__ == "__main__":
    main()
