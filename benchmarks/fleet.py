"""Fault tolerance and overhead of `hnerv fleet`.

    python benchmarks/fleet.py faults FOLDER         # 12 clips on three nodes, three faults: results stay bit-identical
    python benchmarks/fleet.py rehearsal FOLDER      # 10,000 empty tasks: time and memory
    python benchmarks/fleet.py cost FOLDER           # overhead of a task, by model size

Each prints its results as one line of JSON. FOLDER is created and must not exist.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import NamedTuple

from common import HNERV, child_environment, peak_bytes

from hnerv.flags import Parser

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

CLIPS = {"bunny": "640x1280", "bikes": "256x512", "carphone": "88x176"}
"""Named clip -> its crop; pieces starting at STARTS are cut from it."""
STARTS = (0, 24, 48, 72)
FRAMES, SIZE = 16, "64x128"
FLAGS = """
    --clip-weights none --dec-strides 2 2 2 --dec-width 24 --embed-dim 8 --clip-site 1 --lower-width 8 --batch-size 2
    --pixel-loss-warmup-epochs 2 --eval-freq 20 --precision fp32
"""
COST_FLAGS = """
    --clip-weights none --frames 0:24 --epochs 4 --checkpoint-freq 1 --pixel-loss-warmup-epochs 1 --eval-freq 4
    --threads 1
"""
NODE = {"num_cpus": 1, "object_store_memory": 200 << 20}
"""One of the three nodes of this machine."""


def main() -> None:
    args = parse()
    folder = args.folder.resolve()
    if args.measurement == "faults":
        found = faults(folder, args.epochs)
    else:
        found = rehearsal(folder, args.tasks) if args.measurement == "rehearsal" else cost(folder)
    print(json.dumps(found))


def parse() -> argparse.Namespace:
    parser = Parser(prog="fleet.py", description=__doc__)
    parser.add_argument("measurement", choices=("faults", "rehearsal", "cost"), help="measurement, see above")
    parser.add_argument("folder", type=Path, help="new folder for clips and runs")
    parser.add_argument("--tasks", type=int, default=10_000, help="tasks of `rehearsal` (10000)")
    parser.add_argument("--epochs", type=int, default=60, help="epochs of each clip of `faults` (60)")
    return parser.parse_args()


def child() -> dict[str, str]:
    """The environment of all started commands."""
    return child_environment(OMP_NUM_THREADS="1")


def faults(folder: Path, epochs: int = 60) -> dict[str, object]:
    """Kill a worker, remove a node, kill the driver and start it again -> what that cost.

    Raises AssertionError if a clip is missing or differs from the fleet without faults.
    """
    from ray.cluster_utils import Cluster

    from hnerv.fleet.table import read_rows

    cut_clips(folder / "videos")
    fleet = [*HNERV, "fleet", str(folder / "videos"), "--epochs", str(epochs), *FLAGS.split(), "-o"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    start = time.monotonic()
    subprocess.run([*fleet, str(folder / "calm")], env=child(), check=True, **quiet)
    seconds_calm = time.monotonic() - start
    print(f"fleet without faults: {seconds_calm:.0f} s")
    nodes = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        others = [nodes.add_node(**NODE) for _ in range(2)]
        nodes.wait_for_nodes()
        start = time.monotonic()
        command = [*fleet, str(folder / "faults"), "--address", nodes.address]
        seen = cause_faults(nodes, others, command, folder)
        seconds = time.monotonic() - start
    finally:
        nodes.shutdown()
    rows = read_rows(folder / "faults")
    assert len(rows) == 12 and all(row.state == "finished" for row in rows), rows
    unequal = [row.name for row in rows if not equal_runs(folder / "calm" / row.name, folder / "faults" / row.name)]
    assert not unequal, unequal
    return {
        "clips": len(rows),
        "equal": len(rows) - len(unequal),
        "faults": seen,
        "retries": sum(row.retries for row in rows),
        "steps": sum(max(line["step"] for line in metrics_of(folder / "faults" / row.name)) for row in rows),
        "steps_repeated": sum(row.repeated_steps for row in rows),
        "seconds": round(seconds, 1),
        "seconds_without_faults": round(seconds_calm, 1),
    }


def cut_clips(folder: Path) -> None:
    """12 folders of images: pieces of the named clips."""
    from PIL import Image

    from hnerv.data.video import load_video

    for name, crop in CLIPS.items():
        for start in STARTS:
            piece = folder / f"{name}{start:03d}"
            piece.mkdir(parents=True)
            video = load_video(name, crop=crop, resize=SIZE, frames=f"{start}:{start + FRAMES}")
            for number, frame in enumerate(video.frames):
                Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(piece / f"{number:03d}.png")


def cause_faults(nodes, others: list, command: list[str], folder: Path) -> list[str]:
    """Start the fleet and break it three times -> descriptions of the faults."""
    from hnerv.fleet.ledger import read_progress, read_states

    seen = []
    raylets = {process.process.pid: node for node in others for process in node.all_processes["raylet"]}

    def finished() -> int:
        states = read_states(folder / "faults" / "fleet.jsonl").values()
        return sum(one.state == "finished" for one in states)

    def training() -> int:
        progress = read_progress(folder / "faults" / "running.json").values()
        return sum(0 < job.step < job.steps for job in progress)

    def losing_steps() -> set[str]:
        """Clips that have trained beyond their last checkpoint: a kill now costs steps."""
        progress = read_progress(folder / "faults" / "running.json")
        return {name for name, job in progress.items() if 0 < job.saved < job.step < job.steps}

    def wait_for(condition: Callable[[], object], seconds: float = 600):
        """The first true value of the condition. Raises AssertionError if the driver or the time ends first."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := condition():
                return found
            assert driver.poll() is None, "the driver exited before the next fault: raise --epochs, or see driver.txt"
            time.sleep(0.1)
        raise AssertionError("timed out")

    def note(fault: str) -> None:
        seen.append(f"{fault}, {finished()} clips done")
        print(seen[-1])

    with (folder / "driver.txt").open("wb") as log:
        streams = {"env": child(), "stdout": log, "stderr": subprocess.STDOUT}
        driver = subprocess.Popen(command, **streams)
        wait_for(lambda: training() >= 2)
        pid, name, _ = wait_for(lambda: a_worker(raylets, losing_steps()))
        os.kill(pid, signal.SIGKILL)
        note(f"SIGKILL to the worker of {name}")
        wait_for(lambda: finished() >= 2 and training() >= 2)
        _, name, raylet = wait_for(lambda: a_worker(raylets, losing_steps()))
        nodes.remove_node(raylets[raylet], allow_graceful=False)
        note(f"the node of {name} removed")
        wait_for(lambda: finished() >= 5 and losing_steps())
        driver.kill()
        driver.wait()
        note("SIGKILL to the driver")
        subprocess.run(command, check=True, **streams)
    return seen


class Process(NamedTuple):
    """A process of this machine. `title` is its command line, `bytes` its resident memory."""

    pid: int
    parent: int
    title: str
    bytes: int


def processes() -> Iterator[Process]:
    """From Linux's /proc."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            title = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            pages = int((path / "statm").read_text().split()[1])
        except OSError:  # it has ended
            continue
        yield Process(int(path.name), parent, title, pages * os.sysconf("SC_PAGE_SIZE"))


def a_worker(
    raylets: Container[int], names: Container[str], begins: str = "ray::hnerv "
) -> tuple[int, str, int] | None:
    """(pid, clip, raylet) of a worker that trains one of these clips: a child of a raylet, named by its task."""
    for process in processes():
        name = process.title.removeprefix("ray::hnerv ").split(".")[0]
        if process.title.startswith(begins) and process.parent in raylets and name in names:
            return process.pid, name, process.parent
    return None


def equal_runs(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same bits, and with the same lines in metrics.jsonl except for times."""
    import torch

    for name in ("latest.pt", "best.pt"):
        ours, theirs = (torch.load(run / "checkpoints" / name) for run in (one, other))
        if not all(same(ours[key], theirs[key]) for key in ("run", "model", "optimizer", "evaluation")):
            return False
    return timeless(one) == timeless(other)


def same(one, other) -> bool:
    """Equality; of tensors bit by bit."""
    import torch

    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def metrics_of(run: Path) -> list[dict]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def timeless(run: Path) -> list[dict]:
    """The lines of metrics.jsonl without values that depend on the clock and on memory."""
    return [{k: v for k, v in line.items() if k != "seconds" and "/Performance/" not in k} for line in metrics_of(run)]


def rehearsal(folder: Path, count: int = 10_000) -> dict[str, object]:
    """`count` videos with empty tasks, through the driver with its ledger and its table -> time and memory."""
    from hnerv.config import Config, LogConfig
    from hnerv.fleet import table
    from hnerv.fleet.driver import Driver, TaskOptions
    from hnerv.fleet.engine import TaskResources, connected
    from hnerv.fleet.manifest import FleetVideo, write_manifest
    from hnerv.presets import Choice
    from hnerv.runs import ChunkOptions

    class Rehearsal(Driver):
        def settle(self, attempt, result) -> None:
            # Empty tasks write no checkpoint, and the driver repeats a task until it has the last one.
            attempt.progress = attempt.progress._replace(saved=1, steps=1)
            super().settle(attempt, result)

        def finish(self, job, outcome) -> None:
            self.open.pop(job.video.name)
            self.ledger.record(job.name, "finished")

    folder.mkdir(parents=True)
    config = Config()
    choice = Choice("", config, config.replaced({"data": "bunny"}))
    videos = [FleetVideo(f"clip{number:06d}", "bunny", choice, ChunkOptions()) for number in range(count)]
    start = time.monotonic()
    write_manifest(folder / table.MANIFEST, videos)
    with connected("", TaskResources()) as cluster:
        up = time.monotonic()
        driver = Rehearsal(Emptied(cluster), folder, videos, TaskOptions(LogConfig(), "cpu", 1, 0, ["rehearsal"]))
        driver.run()
        done = time.monotonic()
        ray_bytes = memory_of_ray()
    rows = table.read_rows(folder)
    table.write_table(folder, rows)
    assert all(row.state == "finished" for row in rows)
    return {
        "tasks": count,
        "seconds_to_start_ray": round(up - start, 1),
        "seconds": round(done - up, 1),
        "milliseconds_a_task": round(1000 * (done - up) / count, 2),
        "seconds_for_the_table": round(time.monotonic() - done, 1),
        "driver_peak_MB": round(peak_bytes() / 2**20),
        "ray_MB": {name: round(size / 2**20) for name, size in ray_bytes.items()},
        "ledger_bytes_a_task": round((folder / "fleet.jsonl").stat().st_size / count),
        "cores": os.cpu_count(),
    }


class Emptied:
    """A cluster whose tasks receive the input of a run and do nothing."""

    def __init__(self, cluster) -> None:
        self._cluster = cluster

    def __getattr__(self, name: str):
        return getattr(self._cluster, name)

    def submit(self, entry: str, task, *inputs):
        return self._cluster.submit("no_op", task, *inputs)


def memory_of_ray() -> Counter[str]:
    """Resident bytes of Ray's processes that descend from this one, by kind."""
    found, tree = Counter(), {process.pid: process for process in processes()}
    for process in tree.values():
        ancestor = process.parent
        while ancestor != os.getpid() and ancestor in tree:
            ancestor = tree[ancestor].parent
        if ancestor == os.getpid():
            program = process.title.split(" ")[0].rsplit("/", 1)[-1]
            other = "workers" if program.startswith("ray::") else "others"
            found[program if program in ("raylet", "gcs_server") else other] += process.bytes
    return found


def cost(folder: Path) -> dict[str, object]:
    """A task for each model size, on bunny at 160x320 -> time and bytes that it took in addition to training."""
    sizes = {"0.2M": 0.2, "0.6M": 0.6, "1.5M": 1.5}
    folder.mkdir(parents=True)
    rows = [{"data": "bunny", "name": name, "preset": "demo", "modelsize": size} for name, size in sizes.items()]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [*HNERV, "fleet", str(folder / "manifest.jsonl"), "-o", str(folder / "out"), *COST_FLAGS.split()]
    command += ["--cpus-per-task", str(os.cpu_count())]  # one task at a time
    subprocess.run(command, env=child(), check=True, stdout=subprocess.DEVNULL)
    found = {}
    for line in (folder / "out" / "fleet.jsonl").read_text().splitlines():
        event = json.loads(line)
        effort, latest = event["effort"], folder / "out" / event["job"] / "checkpoints" / "latest.pt"
        found[event["job"]] = {
            "checkpoint_MB": round(latest.stat().st_size / 1e6, 1),
            "seconds_in_worker": effort["seconds"],
            "seconds_of_epochs": event["values"]["seconds"],
            "hand_overs": effort["times"],
            "seconds_a_hand_over": round(effort["handing"] / effort["times"], 3),
            "MB_handed": round(effort["bytes"] / 1e6, 1),
        }
    return found


if __name__ == "__main__":
    main()
