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
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Container
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

CLIPS = {"bunny": "640x1280", "bikes": "256x512", "carphone": "88x176"}
"""Named clip -> its crop; pieces are cut from it that begin at STARTS."""
STARTS = (0, 24, 48, 72)
FRAMES, SIZE = 16, (64, 128)
FLAGS = """
    --clip-weights none --dec-strides 2 2 2 --dec-width 24 --embed-dim 8 --clip-site 1 --lower-width 8 --batch-size 2
    --pixel-loss-warmup-epochs 2 --eval-freq 20 --precision fp32
"""
COST_FLAGS = """
    --clip-weights none --frames 0:24 --epochs 4 --checkpoint-freq 1 --pixel-loss-warmup-epochs 1 --eval-freq 4
    --threads 1
"""
STORE = 200 << 20
"""Bytes of Ray's object store on each node of this machine."""


def cut_clips(folder: Path) -> None:
    """12 folders of images, pieces of the named clips."""
    from PIL import Image

    from hnerv.data.video import load_video

    for name, crop in CLIPS.items():
        for start in STARTS:
            piece = folder / f"{name}{start:03d}"
            piece.mkdir(parents=True)
            size = "x".join(map(str, SIZE))
            video = load_video(name, crop=crop, resize=size, frames=f"{start}:{start + FRAMES}")
            for number, frame in enumerate(video.frames):
                Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(piece / f"{number:03d}.png")


def command(videos: Path, output: Path, epochs: int, *more: str) -> list[str]:
    """The fleet's command line."""
    code = "from hnerv.cli import main; main()"
    words = [
        sys.executable,
        "-c",
        code,
        "fleet",
        str(videos),
        "-o",
        str(output),
        "--epochs",
        str(epochs),
        *FLAGS.split(),
    ]
    return [*words, *more]


def surroundings() -> dict[str, str]:
    """Of the processes that are started."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def faults(folder: Path, epochs: int = 60, say: Callable[[str], None] = print) -> dict[str, object]:
    """A worker killed, a node removed, the driver killed and started again -> what it cost, and whether all is equal.

    Raises AssertionError where a clip is missing or differs from the fleet without faults.
    """
    from ray.cluster_utils import Cluster

    from hnerv.fleet.table import read_rows

    cut_clips(folder / "videos")
    start = time.monotonic()
    calm = command(folder / "videos", folder / "calm", epochs)
    subprocess.run(calm, env=surroundings(), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds_calm = time.monotonic() - start
    say(f"fleet without faults: {seconds_calm:.0f} s")
    nodes = Cluster(initialize_head=True, head_node_args={**node(), "include_dashboard": False})
    try:
        others = [nodes.add_node(**node()) for _ in range(2)]
        nodes.wait_for_nodes()
        start = time.monotonic()
        words = command(folder / "videos", folder / "faults", epochs, "--address", nodes.address)
        seen = break_everything(nodes, others, words, folder, say)
        seconds = time.monotonic() - start
    finally:
        nodes.shutdown()
    rows = read_rows(folder / "faults")
    assert len(rows) == 12 and all(row.state == "finished" for row in rows), rows
    unequal = [row.name for row in rows if not equal_runs(folder / "calm" / row.name, folder / "faults" / row.name)]
    assert not unequal, unequal
    steps = sum(last_step(folder / "faults" / row.name) for row in rows)
    return {
        "clips": len(rows),
        "equal": len(rows) - len(unequal),
        "faults": seen,
        "retries": sum(row.retries for row in rows),
        "steps": steps,
        "steps_repeated": sum(row.repeated_steps for row in rows),
        "seconds": round(seconds, 1),
        "seconds_without_faults": round(seconds_calm, 1),
    }


def node() -> dict[str, object]:
    """One of the three, with one CPU."""
    return {"num_cpus": 1, "object_store_memory": STORE}


def break_everything(nodes, others: list, words: list[str], folder: Path, say: Callable[[str], None]) -> list[str]:
    """Starts the fleet and breaks it three times -> what was broken, and when."""
    seen = []
    raylets = {process.process.pid: one for one in others for process in one.all_processes["raylet"]}
    with (folder / "driver.txt").open("wb") as log:
        driver = subprocess.Popen(words, env=surroundings(), stdout=log, stderr=subprocess.STDOUT)
        wait_for(lambda: at_work(folder) >= 2, driver)
        pid, name, _ = wait_for(lambda: a_worker(raylets, training(folder)), driver)
        os.kill(pid, signal.SIGKILL)
        seen.append(f"SIGKILL to the worker of {name}, {finished(folder)} clips done")
        say(seen[-1])
        wait_for(lambda: finished(folder) >= 2 and at_work(folder) >= 2, driver)
        _, name, raylet = wait_for(lambda: a_worker(raylets, training(folder)), driver)
        nodes.remove_node(raylets[raylet], allow_graceful=False)
        seen.append(f"the node of {name} removed, {finished(folder)} clips done")
        say(seen[-1])
        wait_for(lambda: finished(folder) >= 5 and training(folder), driver)
        driver.kill()
        driver.wait()
        seen.append(f"SIGKILL to the driver, {finished(folder)} clips done")
        say(seen[-1])
        subprocess.run(words, env=surroundings(), stdout=log, stderr=subprocess.STDOUT, check=True)
    return seen


def wait_for(what: Callable[[], object], driver: subprocess.Popen, seconds: float = 600):
    """Its first value that counts as true. Raises AssertionError where the driver ends first, or time does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        assert driver.poll() is None, "the driver exited before the next fault: raise --epochs, or see driver.txt"
        time.sleep(0.1)
    raise AssertionError("timed out")


def finished(folder: Path) -> int:
    """Clips of the fleet with faults that are finished."""
    from hnerv.fleet.ledger import read_standing

    return sum(one.state == "finished" for one in read_standing(folder / "faults" / "fleet.jsonl").values())


def at_work(folder: Path) -> int:
    """Its tasks that have trained a step."""
    return sum(0 < mark.step < mark.steps for mark in marks(folder).values())


def training(folder: Path) -> set[str]:
    """The clips that have trained beyond a checkpoint that is handed over: what is killed now costs steps."""
    return {name for name, mark in marks(folder).items() if 0 < mark.saved < mark.step < mark.steps}


def marks(folder: Path) -> dict:
    """How far the clips at work are."""
    from hnerv.fleet.ledger import read_marks

    return read_marks(folder / "faults" / "running.json")


def a_worker(
    raylets: Container[int], names: Container[str], begins: str = "ray::hnerv "
) -> tuple[int, str, int] | None:
    """(pid, clip, raylet) of a worker that trains one of these clips: a child of one of these, named by its task."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            parent = int(path.with_name("stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        name = title.removeprefix("ray::hnerv ").split(".")[0]
        if title.startswith(begins) and parent in raylets and name in names:
            return int(path.parent.name), name, parent
    return None


def equal_runs(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same bits, and with the same lines in metrics.jsonl but for times."""
    import torch

    for name in ("latest.pt", "best.pt"):
        ours, theirs = (torch.load(run / "checkpoints" / name) for run in (one, other))
        if not all(same(ours[key], theirs[key]) for key in ("run", "model", "optimizer", "evaluation")):
            return False
    return timeless(one) == timeless(other)


def same(one, other) -> bool:
    """Equality, of tensors bit by bit."""
    import torch

    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def timeless(run: Path) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock and on memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds" and "/Performance/" not in k} for line in lines]


def last_step(run: Path) -> int:
    """Steps of a finished run."""
    return max(json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines())


def rehearsal(folder: Path, count: int = 10_000) -> dict[str, object]:
    """`count` videos whose tasks do nothing, through the driver with its ledger and its table -> time and memory."""
    from hnerv.config import Config, LogConfig
    from hnerv.fleet import table
    from hnerv.fleet.driving import Driver, Orders
    from hnerv.fleet.engine import Needs, connected
    from hnerv.fleet.manifest import Video, write_manifest
    from hnerv.presets import Choice
    from hnerv.runs import Wishes

    class Rehearsal(Driver):
        def settle(self, attempt, result) -> None:
            # Empty tasks write no checkpoint, and the driver repeats a task until it has the last one.
            attempt.mark = attempt.mark._replace(saved=1, steps=1)
            super().settle(attempt, result)

        def finish(self, job, outcome) -> None:
            self.open.pop(job.video.name)
            self.ledger.note(job.name, "finished")

    folder.mkdir(parents=True)
    config = Config()
    choice = Choice("", config, config.replaced({"data": "bunny"}))
    videos = [Video(f"clip{number:06d}", "bunny", choice, Wishes()) for number in range(count)]
    start = time.monotonic()
    write_manifest(folder / table.MANIFEST, videos)
    with connected("", Needs()) as cluster:
        up = time.monotonic()
        driver = Rehearsal(Emptied(cluster), folder, videos, Orders(LogConfig(), "cpu", 1, 0, ["rehearsal"]))
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
        "driver_peak_MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "ray_MB": {name: round(size / 2**20) for name, size in ray_bytes.items()},
        "ledger_bytes_a_task": round((folder / "fleet.jsonl").stat().st_size / count),
        "cores": os.cpu_count(),
    }


class Emptied:
    """A cluster whose tasks are given all that a run is given, and do nothing."""

    def __init__(self, cluster) -> None:
        self._cluster = cluster

    def __getattr__(self, name: str):
        return getattr(self._cluster, name)

    def submit(self, entry: str, task, *given):
        return self._cluster.submit("nothing", task, *given)


def memory_of_ray() -> dict[str, int]:
    """Resident bytes of Ray's processes that descend from this one, by kind."""
    found: dict[str, int] = {}
    tree = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            tree[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    for pid in tree:
        chain, at = [], pid
        while at in tree:
            at = tree[at]
            chain.append(at)
        if os.getpid() not in chain:
            continue
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode().rsplit("/", 1)[-1]
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
        kind = title if title in ("raylet", "gcs_server") else "workers" if title.startswith("ray::") else "others"
        found[kind] = found.get(kind, 0) + pages * os.sysconf("SC_PAGE_SIZE")
    return found


def cost(folder: Path) -> dict[str, object]:
    """One task for each of some sizes of model, on bunny at 160x320 -> what it took beside its training."""
    sizes = {"0.2M": 0.2, "0.6M": 0.6, "1.5M": 1.5}
    folder.mkdir(parents=True)
    rows = [{"data": "bunny", "name": name, "preset": "demo", "modelsize": size} for name, size in sizes.items()]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code = "from hnerv.cli import main; main()"
    words = [sys.executable, "-c", code, "fleet", str(folder / "manifest.jsonl"), "-o", str(folder / "out")]
    words += [*COST_FLAGS.split(), "--cpus-per-task", str(os.cpu_count())]  # one task at a time
    subprocess.run(words, env=surroundings(), check=True, stdout=subprocess.DEVNULL)
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


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("faults", "rehearsal", "cost"), help="measurement, see above")
    parser.add_argument("folder", type=Path, help="new folder for clips and runs")
    parser.add_argument("--tasks", type=int, default=10_000, help="tasks of `rehearsal` (10000)")
    parser.add_argument("--epochs", type=int, default=60, help="epochs of each clip of `faults` (60)")
    return parser.parse_args()


def main() -> None:
    ask = parse()
    folder = ask.folder.resolve()
    if ask.what == "faults":
        found = faults(folder, ask.epochs)
    else:
        found = rehearsal(folder, ask.tasks) if ask.what == "rehearsal" else cost(folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
