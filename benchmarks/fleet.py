"""Fault tolerance and overhead of `hnerv fleet`.

    python benchmarks/fleet.py faults FOLDER         # 12 clips on three nodes, three faults: results stay bit-identical
    python benchmarks/fleet.py rehearsal FOLDER      # 10,000 empty tasks: time and memory
    python benchmarks/fleet.py cost FOLDER           # overhead of a task, by model size

Each prints its results as one line of JSON. FOLDER must not exist; `faults` with another storage keeps its clips.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from unittest import mock

from common import HNERV, ROOT, child_environment, peak_bytes

from hnerv.flags import Parser
from hnerv.fleet.manifest import MANIFEST
from hnerv.fleet.status import Status, fleet_statuses, write_status
from hnerv.storage import Storage

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

CLIPS = {"bunny": "640x1280", "bikes": "256x512", "carphone": "88x176"}
"""Named clip -> its crop; pieces starting at STARTS are cut from it."""
STARTS = (0, 24, 48, 72)
FRAMES, SIZE = 16, "64x128"
FLAGS = """
    --clip-weights none --dec-strides 2 2 2 --dec-width 24 --embed-dim 8 --clip-site 1 --lower-width 8 --batch-size 2
    --pixel-loss-warmup-epochs 2 --eval-freq 20 --precision fp32 --threads 1
"""
SIZES = {"0.2M": 0.2, "0.6M": 0.6, "1.5M": 1.5}
COST_EPOCHS = 4
COST_FLAGS = f"""
    --preset demo --clip-weights none --frames 0:24 --epochs {COST_EPOCHS} --pixel-loss-warmup-epochs 1 --eval-freq 4
    --threads 1
"""
NODE = {"num_cpus": 1, "object_store_memory": 200 << 20}
"""One of the three nodes of this machine."""
TRAIN = [sys.executable, str(ROOT / "train_patch_dual.py")]
Steps = dict[Path, tuple[int, int]]
"""{local run folder: first and last step in its log}, in the order in which the attempts began."""


def main() -> None:
    parser = Parser(prog="fleet.py", description=__doc__)
    add = parser.add_argument
    add("measurement", choices=("faults", "rehearsal", "cost"), help="measurement, see above")
    add("folder", type=Path, help="folder for clips and runs")
    add("--epochs", type=int, default=100, help="epochs of each clip of `faults` (100)")
    add("--storage", choices=("folder", "s3"), default="folder", help="place of the fleet of `faults`; s3: a local one")
    add("--failing-writes", type=float, default=0.0, metavar="SHARE", help="share of writes that S3 refuses (0)")
    add("--tasks", type=int, default=10_000, help="tasks of `rehearsal` (10000)")
    args = parser.parse_args()
    folder = args.folder.resolve()
    if args.measurement == "faults":
        found = faults(folder, args.epochs, args.storage, args.failing_writes)
    else:
        found = rehearsal(folder, args.tasks) if args.measurement == "rehearsal" else cost(folder)
    print(json.dumps(found))


def start(command: list[str], log: Path) -> subprocess.Popen:
    """A command of one thread. Its output is appended to `log`."""
    with log.open("ab") as stream:
        environment = child_environment(Path(__file__).parent, OMP_NUM_THREADS="1")
        return subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)


def faults(folder: Path, epochs: int = 100, storage: str = "folder", failing: float = 0.0) -> dict[str, object]:
    """Kill a worker, remove a node, kill the driver and start it again -> what that cost.

    Raises AssertionError if a clip is missing or differs from a single run, or if the driver printed a traceback.
    """
    import fsspec
    from ray.cluster_utils import Cluster

    flags = ["--epochs", str(epochs), *FLAGS.split()]
    if not folder.exists():
        cut_clips(folder / "videos")
        for clip in (folder / "videos").iterdir():
            place = ["--data", str(clip), "--exp-id", clip.name, "--output", str(folder / "single")]
            assert start([*TRAIN, *place, *flags], folder / "single.txt").wait() == 0
    place = folder / f"{storage}-{failing:g}"
    log, requests, scratch = (place.with_name(place.name + end) for end in (".txt", ".requests.txt", ".scratch"))
    scratch.mkdir()
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(local_s3(requests, failing)) if storage == "s3" else str(place)
        stack.enter_context(mock.patch.dict(os.environ, TMPDIR=str(scratch), RAY_TMPDIR="/tmp"))
        nodes = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        stack.callback(nodes.shutdown)
        others = [nodes.add_node(**NODE) for _ in range(2)]
        nodes.wait_for_nodes()
        steps, ended = {}, threading.Event()
        threading.Thread(target=watch, args=(scratch, steps, ended), daemon=True).start()
        stack.callback(ended.set)
        command = [*HNERV, "fleet", str(folder / "videos"), *flags, "-o", address, "--address", nodes.address]
        began = time.monotonic()
        seen, commands = cause_faults(nodes, others, command, Storage(address), log)
        seconds = time.monotonic() - began
        statuses = fleet_statuses(Storage(address))
        if storage == "s3":
            files, root = fsspec.url_to_fs(address)
            files.get(f"{root}/", f"{place}/", recursive=True)
    assert len(statuses) == 12 and all(one.state == "finished" for one in statuses.values()), statuses
    unequal = [name for name in statuses if not equal_runs(folder / "single" / name, place / name)]
    assert not unequal, unequal
    assert "Traceback" not in log.read_text(), log
    lines = requests.read_text().splitlines() if storage == "s3" else []
    return {
        "clips": len(statuses),
        "equal": len(statuses) - len(unequal),
        "faults": seen,
        "commands": commands,
        "retries": sum(one.retries for one in statuses.values()),
        "steps": sum(metrics_of(place / name)[-1]["step"] for name in statuses),
        "steps_repeated": repeated(steps),
        "steps_repeated_by_status": sum(one.repeated_steps for one in statuses.values()),
        "seconds": round(seconds, 1),
        "requests": Counter(word for line in lines for word in ("GET", "HEAD", "PUT", "DELETE") if f'"{word} ' in line),
        "writes_refused": sum('"PUT ' in line and '" 403 ' in line for line in lines),
    }


def cut_clips(folder: Path) -> None:
    """12 folders of images: pieces of the named clips."""
    from PIL import Image

    from hnerv.data.video import load_video

    for name, crop in CLIPS.items():
        for first in STARTS:
            piece = folder / f"{name}{first:03d}"
            piece.mkdir(parents=True)
            video = load_video(name, crop=crop, resize=SIZE, frames=f"{first}:{first + FRAMES}")
            for number, frame in enumerate(video.frames):
                Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(piece / f"{number:03d}.png")


def watch(scratch: Path, steps: Steps, ended: threading.Event) -> None:
    """Follow the logs of all attempts of workers. A log that is resumed is cut back to the checkpoint first."""
    while not ended.wait(0.02):
        for path in scratch.glob("hnerv-scratch-*/run-*/*"):
            with contextlib.suppress(OSError, ValueError, IndexError):  # not written yet, or removed
                step = json.loads((path / "metrics.jsonl").read_bytes().splitlines()[-1])["step"]
                first, last = steps.get(path, (step, 0))
                steps[path] = min(first, step), max(last, step)


def repeated(steps: Steps) -> int:
    """Steps that an attempt logged and the next one did not find in storage. A log has a line per epoch."""
    clips = [[steps[path] for path in steps if path.name == name] for name in {path.name for path in steps}]
    return sum(max(one[1] - other[0], 0) for clip in clips for one, other in zip(clip, clip[1:], strict=False))


def cause_faults(nodes, others: list, command: list[str], storage: Storage, log: Path) -> tuple[list[str], int]:
    """Start the fleet and break it three times -> descriptions of the faults, commands until all have finished."""
    seen, raylets = [], {process.process.pid: node for node in others for process in node.all_processes["raylet"]}

    def statuses() -> dict[str, Status]:
        return fleet_statuses(storage) if storage.exists(MANIFEST) else {}

    def finished() -> int:
        return sum(one.state == "finished" for one in statuses().values())

    def training() -> set[str]:
        """Clips with a checkpoint in storage that are trained further."""
        return {name for name, one in statuses().items() if one.state == "running" and one.kept}

    def wait_for(condition: Callable[[], object], seconds: float = 600):
        """The first true value of the condition. Raises AssertionError if the driver or the time ends first."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := condition():
                return found
            assert driver.poll() is None, f"the driver exited before the next fault: raise --epochs, or see {log}"
            time.sleep(0.05)
        raise AssertionError("timed out")

    def note(fault: str) -> None:
        seen.append(f"{fault}, {finished()} clips done")
        print(seen[-1], flush=True)

    driver = start(command, log)
    pid, name, _ = wait_for(lambda: a_worker(raylets, training()))
    os.kill(pid, signal.SIGKILL)
    note(f"SIGKILL to the worker of {name}")
    wait_for(lambda: finished() >= 2)
    _, name, raylet = wait_for(lambda: a_worker(raylets, training()))
    nodes.remove_node(raylets.pop(raylet), allow_graceful=False)
    note(f"the node of {name} removed")
    wait_for(lambda: finished() >= 5 and training())
    driver.kill()
    driver.wait()
    note("SIGKILL to the driver")
    # A write that is refused in all its attempts ends a task or a driver.
    commands = next((number for number in range(2, 6) if start(command, log).wait() == 0), None)
    assert commands, f"the fleet does not finish, see {log}"
    return seen, commands


@contextlib.contextmanager
def local_s3(log: Path, failing: float) -> Iterator[str]:
    """A local S3 that refuses a share of the writes -> address of a fleet there. os.environ names it for the block."""
    import fsspec

    server = start([sys.executable, "-c", f"import fleet; fleet.serve_s3({failing})"], log)
    try:
        while b"\n" not in (content := log.read_bytes()):
            assert server.poll() is None, log
            time.sleep(0.1)
        keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "test")
        keys |= {"AWS_ENDPOINT_URL": content.split()[0].decode(), "AWS_DEFAULT_REGION": "us-east-1"}
        with mock.patch.dict(os.environ, keys):
            fsspec.get_filesystem_class("s3").clear_instance_cache()  # of other endpoints
            fsspec.filesystem("s3").mkdir("bucket")
            yield "s3://bucket/fleet"
    finally:
        server.kill()
        server.wait()


def serve_s3(failing: float) -> None:
    """moto's server; prints its URL. It refuses a share of the writes to objects with 403, which no client retries."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app, dice = DomainDispatcherApplication(create_backend_app), random.Random(0)

    def flaky(environ: dict, start_response: Callable) -> object:
        write = environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].count("/") > 1
        if not write or dice.random() >= failing:
            return app(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("403 Forbidden", [("Content-Type", "application/xml")])
        return [b"<Error><Code>AccessDenied</Code><Message>the write was refused</Message></Error>"]

    server = make_server("127.0.0.1", 0, flaky, threaded=True)
    print(f"http://127.0.0.1:{server.port}", flush=True)
    server.serve_forever()


def processes() -> Iterator[tuple[int, int, str, int]]:
    """(pid, parent, command line, resident bytes) of the processes of this machine, from Linux's /proc."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            title = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            pages = int((path / "statm").read_text().split()[1])
            yield int(path.name), parent, title, pages * os.sysconf("SC_PAGE_SIZE")


def a_worker(raylets: Container[int], names: Container[str]) -> tuple[int, str, int] | None:
    """(pid, clip, raylet) of a worker that trains one of these clips: a child of a raylet, named by its task."""
    for pid, parent, title, _ in processes():
        name = title.removeprefix("ray::hnerv ").split(".")[0]
        if title.startswith("ray::hnerv ") and parent in raylets and name in names:
            return pid, name, parent
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
    """A fleet of `count` videos with empty tasks -> time and memory."""
    from hnerv.config import LogConfig
    from hnerv.fleet.driver import run_fleet
    from hnerv.fleet.manifest import FleetDefaults, read_videos
    from hnerv.fleet.task import TaskOptions

    folder.mkdir(parents=True)
    source, place, ended, ray_bytes = folder / "videos.jsonl", folder / "fleet", threading.Event(), [0]
    source.write_text("".join(f'{{"data": "bunny", "name": "clip{number:06d}"}}\n' for number in range(count)))

    def measure() -> None:
        while not ended.wait(1):
            ray_bytes.append(descendants_bytes())

    threading.Thread(target=measure, daemon=True).start()
    options = TaskOptions(LogConfig(), "cpu", 1, ["rehearsal"])
    times = [time.monotonic()]
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        run_fleet(str(source), str(place), FleetDefaults(), options, task=empty)
    ended.set()
    peak = peak_bytes()
    times.append(time.monotonic())
    read_videos(str(source), FleetDefaults())
    times.append(time.monotonic())
    statuses = fleet_statuses(Storage(str(place)))
    times.append(time.monotonic())
    assert len(statuses) == count and all(one.state == "finished" for one in statuses.values())
    written = [one.time for one in statuses.values()]
    total, manifest, reading = (round(after - before, 2) for before, after in zip(times, times[1:], strict=False))
    return {
        "tasks": count,
        "seconds": total,
        "milliseconds_a_task": round(1000 * (max(written) - min(written)) / count, 2),
        "seconds_to_read_the_manifest": manifest,
        "seconds_to_read_all_statuses": reading,
        "driver_peak_MB": round(peak / 2**20),
        "ray_peak_MB": round(max(ray_bytes) / 2**20),
        "status_bytes_a_task": (place / "clip000000" / "status.json").stat().st_size,
        "manifest_bytes_a_task": round((place / MANIFEST).stat().st_size / count),
        "table_bytes_a_task": round((place / "fleet.csv").stat().st_size / count),
        "cores": os.cpu_count(),
    }


def empty(video, address: str, options) -> Status:
    """A task that only writes its status."""
    status = Status("finished", owner="rehearsal", time=time.time(), progress=1.0)
    write_status(Storage(address), video.name, status)
    return status


def descendants_bytes() -> int:
    """Resident memory of all processes that this one has started, directly or not."""
    rows = list(processes())
    found = {os.getpid()}
    while more := {pid for pid, parent, *_ in rows if parent in found} - found:
        found |= more
    return sum(row[3] for row in rows if row[0] in found and row[0] != os.getpid())


def cost(folder: Path) -> dict[str, object]:
    """A task for each model size, on bunny at 160x320 -> time and bytes of its hand-overs."""
    folder.mkdir(parents=True)
    rows = [{"data": "bunny", "name": name, "modelsize": size} for name, size in SIZES.items()]
    (folder / "videos.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [*HNERV, "fleet", str(folder / "videos.jsonl"), "-o", str(folder / "fleet"), *COST_FLAGS.split()]
    command += ["--cpus-per-task", str(os.cpu_count())]  # one task at a time
    assert start(command, folder / "log.txt").wait() == 0, folder / "log.txt"
    found = {}
    for name, one in fleet_statuses(Storage(str(folder / "fleet"))).items():
        latest = folder / "fleet" / name / "checkpoints" / "latest.pt"
        found[name] = {
            "checkpoint_MB": round(latest.stat().st_size / 1e6, 1),
            "seconds": round(one.seconds, 1),
            "seconds_handing": round(one.handing, 3),
            "seconds_a_checkpoint": round(one.handing / COST_EPOCHS, 4),
        }
    return found


if __name__ == "__main__":
    main()
