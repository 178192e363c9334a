"""Search over many synthetic videos: time to build the index, its size, latency per query, recall against exact search.

    python benchmarks/collection.py --vectors 1000000 --dim 512 --threads 1 2 --json output/collection.json

The vectors of a video are random walks around scenes, and scenes are scattered around topics. All share one common
direction, and the variance falls off over the dimensions. `--targets FILE` draws the topics from real embeddings. The
vectors are stored in the index files of `hnerv search`; only the models are missing. Queries resemble either a stored
vector or a text embedding, which is far from every vector and closer to some. The folder is deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median

import numpy as np

from hnerv.command import one_line_errors, set_up_torch
from hnerv.files import write_json

FRAMES, PATCHES, SCENE, TOPICS = 1250, 8, 75, 500
"""Of a video: frames, patches in each, frames in a scene on average. Of all: topics."""
TOP = 10


def main() -> None:
    ask = parse()
    with one_line_errors("collection.py", ask.debug):
        set_up_torch(ask.threads[0])
        found = measure(ask)
        print(table(found))
        if ask.json:
            write_json(ask.json, found)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="collection.py", description=__doc__.split("\n")[0])
    parser.add_argument("--vectors", type=int, default=100_000, help=f"in full videos of {FRAMES * PATCHES} (100000)")
    parser.add_argument("--dim", type=int, default=512, help="dimensions of a vector (512)")
    parser.add_argument(
        "--targets", type=Path, metavar="FILE", help="safetensors file with `embeddings` to draw topics from"
    )
    parser.add_argument("--queries", type=int, default=100, help="queries of each kind (100)")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="measure with each; the first builds the index (1 2)"
    )
    parser.add_argument(
        "--share", type=int, nargs="+", default=[32, 16, 8, 4, 2], help="probe one list in SHARE (32 16 8 4 2)"
    )
    parser.add_argument("--folder", type=Path, help="parent of the temporary folder (default: the system's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of videos and queries (0)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers as JSON")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    return parser.parse_args(argv)


def measure(ask: argparse.Namespace) -> dict:
    """Everything that the table shows."""
    folder = Path(tempfile.mkdtemp(prefix="collection.", dir=ask.folder))
    try:
        count = max(2, round(ask.vectors / (FRAMES * PATCHES)))
        world = World(ask.dim, ask.seed, ask.targets)
        for number in range(count - 1):
            write_video(folder, number, world)
        found = {"versions": versions(), "vectors": count * FRAMES * PATCHES, "dim": ask.dim, "seed": ask.seed}
        found |= build(folder, count - 1, world)
        queries = {"like a vector": world.alike(ask.queries), "like a text": world.texts(ask.queries)}
        best = {kind: exact(folder, count, vectors) for kind, vectors in queries.items()}
        found["queries"] = [
            {"kind": kind, "threads": threads, **row}
            for threads in ask.threads
            for kind, vectors in queries.items()
            for row in ask_all(folder, vectors, best[kind], threads, ask.share)
        ]
    finally:
        shutil.rmtree(folder)
    return found


class World:
    """Where videos and queries come from; the same seed, the same world."""

    def __init__(self, dim: int, seed: int, targets: Path | None) -> None:
        draw = np.random.default_rng(seed)
        self.dim, self.seed = dim, seed
        spread = np.arange(1, dim + 1) ** -0.5
        basis = np.linalg.qr(draw.normal(size=(dim, dim)))[0]
        self.shape = ((spread / np.linalg.norm(spread))[:, None] * basis).astype(np.float32)
        self.common, self.words = unit(self.near(draw, 2))
        self.topics = (
            1.6 * self.common + self.near(draw, TOPICS) if targets is None else real_topics(targets, dim, draw)
        )

    def near(self, draw: np.random.Generator, *size: int) -> np.ndarray:
        """(*size, dim), of norm 1 on the average."""
        return self.noise(draw, *size) @ self.shape

    def noise(self, draw: np.random.Generator, *size: int) -> np.ndarray:
        return draw.standard_normal((*size, self.dim), dtype=np.float32)

    def video(self, number: int) -> np.ndarray:
        """(FRAMES, PATCHES, dim) of unit norm: three topics, scenes of them, patches apart, all moving slowly."""
        draw = np.random.default_rng((self.seed, number))
        cuts = np.sort(draw.choice(np.arange(1, FRAMES), FRAMES // SCENE, replace=False))
        scene = np.searchsorted(cuts, np.arange(FRAMES), side="right")
        topics = draw.choice(draw.choice(len(self.topics), 3), len(cuts) + 1)
        centres = self.topics[topics][:, None] + 0.8 * self.near(draw, len(topics), 1)
        centres = centres + 0.8 * self.near(draw, len(topics), PATCHES)
        walk = 0.03 * np.cumsum(self.noise(draw, FRAMES, PATCHES), axis=0)
        walk += 0.1 * self.noise(draw, FRAMES, PATCHES) - walk[np.concatenate([[0], cuts])][scene]
        return unit(centres[scene] + walk @ self.shape)

    def alike(self, count: int) -> np.ndarray:
        """(count, dim): stored vectors of the first videos, with a cosine of about 0.9 to them."""
        draw = np.random.default_rng((self.seed, 1 << 30))
        return unit(self.drawn(draw, count) + 0.5 * unit(self.near(draw, count)))

    def texts(self, count: int) -> np.ndarray:
        """(count, dim): mostly a direction of their own and noise, a third of what sets a stored vector apart."""
        draw = np.random.default_rng((self.seed, 2 << 30))
        apart, noise = unit(self.drawn(draw, count) - self.common), unit(draw.normal(size=(count, self.dim)))
        return unit(0.35 * apart + 0.75 * self.words + 0.55 * noise)

    def drawn(self, draw: np.random.Generator, count: int) -> np.ndarray:
        rows = np.concatenate([self.video(number).reshape(-1, self.dim)[::7] for number in range(4)])
        return rows[draw.choice(len(rows), count)]


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def real_topics(path: Path, dim: int, draw: np.random.Generator) -> np.ndarray:
    """(TOPICS, dim) of a file's embeddings, 1.9 long, as made-up ones are."""
    from safetensors.numpy import load_file

    rows = load_file(path)["embeddings"].reshape(-1, dim)
    return 1.9 * unit(rows[draw.choice(len(rows), TOPICS)].astype(np.float32))


def write_video(folder: Path, number: int, world: World) -> None:
    """A file that stands for a model, and beside it the index of that model, as `hnerv search` keeps it."""
    import torch

    from hnerv.config import Config
    from hnerv.files import sha256_of
    from hnerv.model import Scene
    from hnerv.search.index import Index, _write, index_places

    path = folder / f"{number:05d}.hnerv"
    path.write_text(f"stands for video {number}\n")
    scene = Scene(FRAMES, 320, 640, 2, 4, 25.0, tuple(range(FRAMES)), (), world.dim)
    targets = {"source": "made up", "kind": "file", "model": "", "weights": "made up"}
    record = {"config": Config().to_dict(), "scene": scene.to_dict(), "targets": targets}
    digest = sha256_of(path)
    _write(index_places(path, digest), Index(path, torch.from_numpy(world.video(number)), record), digest)


def build(folder: Path, number: int, world: World) -> dict:
    """Seconds to build the index of all videos but one, to add that one, and to open what is there; bytes."""
    import torch

    from hnerv.search import open_collection

    times = {}
    for name in ("build", "reopen", "add one video"):
        if name == "add one video":
            write_video(folder, number, world)
        begin = now()
        collection = open_collection(folder, torch.device("cpu"))
        times[name] = list(now() - begin)
        lists = collection.vectors.nlist
        del collection
    size = (folder / "index.faiss").stat().st_size
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": times, "lists": lists, "bytes": size, "peak_memory": peak}


def videos(folder: Path, count: int) -> Iterator[np.ndarray]:
    """(FRAMES x PATCHES, dim) each, in the order of their ids."""
    from safetensors.numpy import load_file

    for number in range(count):
        rows = load_file(folder / f"{number:05d}.hnerv.index.safetensors")["embeddings"]
        yield rows.reshape(-1, rows.shape[-1])


def exact(folder: Path, count: int, queries: np.ndarray) -> np.ndarray:
    """Ids (Q, TOP) of the best of all vectors."""
    scores, ids = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for number, rows in enumerate(videos(folder, count)):
        own = queries @ rows.T
        scores = np.concatenate([scores, own], 1)
        ids = np.concatenate([ids, np.broadcast_to(number * len(rows) + np.arange(len(rows)), own.shape)], 1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
        scores, ids = np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)
    return ids


def ask_all(folder: Path, queries: np.ndarray, best: np.ndarray, threads: int, shares: list[int]) -> Iterator[dict]:
    """A row per share of lists, and one for the whole answer: videos scored by their own files, hits merged."""
    import torch

    from hnerv.search import find_across, open_collection
    from hnerv.search.across import CANDIDATES
    from hnerv.search.vectors import nearest

    torch.set_num_threads(threads)
    collection = open_collection(folder, torch.device("cpu"))
    for share in shares:
        times, recall, plain = [], [], []
        for query, ids in zip(queries, best, strict=True):
            begin = now()
            found = nearest(collection.vectors, query, CANDIDATES * TOP, share)[1]
            times.append(now() - begin)
            recall.append(len(set(ids) & set(found)) / TOP)
            plain.append(len(set(ids) & set(found[:TOP])) / TOP)
        yield {
            "share": share,
            **spread(times),
            "recall": float(np.mean(recall)),
            "recall_by_code": float(np.mean(plain)),
        }
    times = []
    for query in torch.from_numpy(queries):
        begin = now()
        find_across(collection, query[None], None, TOP, torch.device("cpu"))
        times.append(now() - begin)
    yield {"share": 0, **spread(times)}


def now() -> np.ndarray:
    """Seconds by the clock, and of processor in all threads: the latter hardly knows what else the machine does."""
    return np.array([time.perf_counter(), time.process_time()])


def spread(seconds: list[np.ndarray]) -> dict[str, float]:
    """In milliseconds."""
    clock, processor = 1e3 * np.array(seconds).T
    at_95 = float(np.percentile(clock, 95))
    return {"ms": median(clock), "ms_p95": at_95, "ms_first": clock[0], "processor_ms": median(processor)}


def versions() -> dict[str, str]:
    import faiss
    import torch

    processor = ""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    modules = {"torch": torch.__version__, "numpy": np.__version__, "faiss": faiss.__version__}
    return {"python": platform.python_version(), **modules, "processor": processor}


def table(found: dict) -> str:
    """In Markdown."""
    seconds = ", ".join(
        f"{name} {clock:.1f} s ({processor:.1f} s processor time)"
        for name, (clock, processor) in found["seconds"].items()
    )
    size = f"{found['bytes'] / 1e6:,.0f} MB; peak memory {found['peak_memory'] / 1e9:.1f} GB"
    lines = [
        f"{found['vectors']:,} vectors of {found['dim']}, {found['lists']} lists: {seconds}; index {size}",
        json.dumps(found["versions"]),
        "",
        f"| query | threads | lists probed | ms, median | p95 | first | processor | recall@{TOP} | without rescoring |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["queries"]:
        share = f"1 in {row['share']}" if row["share"] else "full answer"
        recall = f"{row['recall']:.3f} | {row['recall_by_code']:.3f}" if row["share"] else " | "
        times = " | ".join(f"{row[key]:.1f}" for key in ("ms", "ms_p95", "ms_first", "processor_ms"))
        lines.append(f"| {row['kind']} | {row['threads']} | {share} | {times} | {recall} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
