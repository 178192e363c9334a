"""A fleet from start to end: read the videos, take the lease, train what is left, write the table.

The state of a fleet lies in its storage alone: the same command resumes after any failure.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

from hnerv.errors import RunError, UserError
from hnerv.files import check_place
from hnerv.fleet import table
from hnerv.fleet.cluster import Cluster, RayOptions, connected
from hnerv.fleet.manifest import MANIFEST, FleetDefaults, FleetVideo, manifest_text, read_videos, rows_of
from hnerv.fleet.status import Status, read_status, read_statuses, write_status
from hnerv.fleet.task import TaskOptions, train_video
from hnerv.storage import Lease, Storage, StorageError
from hnerv.training.signals import StopSignals

Ended = Iterator[tuple[FleetVideo, Status]]
MAX_TASKS = 2000
"""Tasks submitted to Ray at a time: it holds their inputs in memory."""
STOP_SECONDS = 60.0
"""Time for tasks to hand over their runs when the driver is stopped."""


def run_fleet(
    source: str,
    address: str,
    defaults: FleetDefaults,
    options: TaskOptions,
    ray_options: RayOptions = RayOptions(),  # noqa: B008 (a tuple)
    part: tuple[int, int] | None = None,
    task: Callable[..., Status] = train_video,
) -> None:
    """Train all videos with Ray, or the I-th of N parts (`part`) in this process; write and print the table.

    `task(video, address, options)` is called for each video. Raises UserError if nothing could be started, RunError if
    a video failed, Interrupted.
    """
    videos, storage = read_videos(source, defaults), Storage(address)
    mine = videos[part[0] - 1 :: part[1]] if part else videos
    if storage.path:
        check_place(storage.path / MANIFEST)
    if storage.exists("config.json") or storage.exists("segments.json"):
        raise UserError(f"{storage.address} is a run folder, not a fleet folder: choose another -o")
    with contextlib.ExitStack() as stack:
        lease = None if part else stack.enter_context(Lease(storage))
        statuses = _checked_statuses(storage, videos)
        left = [video for video in mine if statuses[video.name].state != "finished"]
        work = functools.partial(task, address=storage.address, options=options)
        cluster = stack.enter_context(connected(ray_options, work)) if left and not part else None
        if lease:
            lease.renew()
        storage.write(MANIFEST, manifest_text(videos))
        ended = _train_on_ray(left, storage, cluster, lease) if cluster else _train_here(left, work)
        try:
            failed = dict(_failures(ended, left, len(mine)))
        finally:
            try:
                statuses = read_statuses(storage, statuses)
                table.write_table(storage, statuses)
                print(table.fleet_table(statuses), flush=True)
            except StorageError as error:  # which must not hide how the fleet ended
                logging.getLogger("hnerv").warning("no table: %s", error)
    if failed:
        name, cause = next(iter(failed.items()))
        message = f"{len(failed)} of {len(mine)} videos failed, for example {name}: {cause}"
        raise RunError(f"{message}; fix the cause, then run the same command")


def _checked_statuses(storage: Storage, videos: list[FleetVideo]) -> dict[str, Status]:
    """{name: status}. Raises UserError if a video that was started has other settings than its line has now."""
    before, statuses = rows_of(storage.read(MANIFEST)), read_statuses(storage, [video.name for video in videos])
    for name, row in rows_of(manifest_text(videos)).items():
        old = before.get(name, row)
        changed = [key for key in row if key not in ("data", "preset") and old.get(key) != row[key]]
        if changed and statuses[name].state not in ("waiting", "failed"):
            key, hint = changed[0], "pass those, on its line of a manifest if others differ, or choose another -o"
            raise UserError(
                f"{name} in {storage.address} was started with other settings ({key} is {old.get(key)!r}, this command "
                f"has {row[key]!r}): {hint}"
            )
    return statuses


def _failures(ended: Ended, left: list[FleetVideo], count: int) -> Iterator[tuple[str, str]]:
    """Print a line for each of the videos that end; yield (name, cause) of those that failed."""
    width = max(5, *(len(video.name) for video in left)) if left else 0
    if left:
        print(f"training {len(left)} of {count} videos; --status with the fleet folder shows their progress")
        print(table.heading(width), flush=True)
    with tqdm(total=count, initial=count - len(left), unit="video", disable=None) as bar:
        for video, status in ended:
            bar.write(table.format_video(video.name, status, width), file=sys.stdout)
            sys.stdout.flush()
            bar.update()
            if status.state == "failed":
                yield video.name, status.cause


def _train_here(left: list[FleetVideo], work: Callable[[FleetVideo], Status]) -> Ended:
    """One video after the other, in this process."""
    for video in left:
        try:
            yield video, work(video)
        except RunError as error:
            yield video, Status("failed", str(error))


def _status_of_lost(storage: Storage, name: str, cause: str) -> Status:
    """The status of a video after its task was lost: that task may have finished the video before."""
    lost = Status("failed", cause)
    with contextlib.suppress(StorageError):  # the next command finds out
        stored = read_status(storage, name)
        lost = stored if stored.state == "finished" else stored._replace(state="failed", cause=cause)
        write_status(storage, name, lost)
    return lost


def _train_on_ray(left: list[FleetVideo], storage: Storage, cluster: Cluster, lease: Lease) -> Ended:
    """Tasks of Ray, in the order in which they end. Raises Interrupted after a stop, with all runs handed over."""
    waiting, running = list(reversed(left)), {}
    with StopSignals() as stop:
        while (waiting or running) and not stop.requested:
            lease.renew()
            while waiting and len(running) < MAX_TASKS:
                video = waiting.pop()
                running[cluster.submit(video)] = video
            for handle, status in cluster.ended(list(running)):
                video = running.pop(handle)
                yield video, status if status.owner else _status_of_lost(storage, video.name, status.cause)
        if stop.requested:
            print("stopping; the tasks that train hand over their runs", flush=True)
            cluster.cancel(list(running))
            end = time.monotonic() + STOP_SECONDS
            while running and time.monotonic() < end:
                lease.renew()
                for handle, _ in cluster.ended(list(running)):
                    del running[handle]
            raise stop.interruption("stopped; run the same command to resume")
