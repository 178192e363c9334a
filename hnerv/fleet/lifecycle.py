"""A fleet from start to end: read the videos, lock the folder, connect to Ray, run the driver, write the table."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hnerv.errors import Interrupted, RunError, UserError
from hnerv.files import check_place
from hnerv.fleet import table
from hnerv.fleet.driver import Driver, TaskOptions
from hnerv.fleet.engine import TaskResources, connected
from hnerv.fleet.jobs import check_runs
from hnerv.fleet.ledger import end_last_line
from hnerv.fleet.manifest import FleetDefaults, FleetVideo, read_videos, write_manifest
from hnerv.runs.lock import locked


class RayOptions(NamedTuple):
    """Ray's address ('' starts one on this machine), resources of a task, whether Ray's own output is shown."""

    address: str
    resources: TaskResources
    debug: bool = False


def run_fleet(
    source: Path, output: Path, defaults: FleetDefaults, options: TaskOptions, ray_options: RayOptions
) -> list[table.Row]:
    """Train all videos and return the table, which is also written to fleet.csv.

    Raises UserError if nothing could be started, RunError if a video failed, Interrupted.
    """
    videos = read_videos(source, defaults)
    with locked_output(output):
        end_last_line(output / "fleet.jsonl")
        check_runs(videos, output)
        with connected(*ray_options) as cluster:
            print_dropped(output, videos)
            write_manifest(output / table.MANIFEST, videos)
            driver = Driver(cluster, output, videos, options)
            try:
                driver.run()
            except Interrupted:
                finish_table(output, videos, driver)
                raise
            except BaseException:
                with contextlib.suppress(UserError, OSError):  # the error that ended the fleet is reported instead
                    finish_table(output, videos, driver)
                raise
            rows = finish_table(output, videos, driver)
    check_failures(videos, driver)
    return rows


def print_dropped(output: Path, videos: list[FleetVideo]) -> None:
    """Print one line if the previous list of videos of this folder had videos that are not in this one."""
    previous, kept = [], {video.name for video in videos}
    with contextlib.suppress(UserError):  # there is none, or it is damaged and is replaced next
        previous = table.read_names(output)
    if dropped := [name for name in previous if name not in kept]:
        shown = ", ".join(dropped[:3]) + ", …" * (len(dropped) > 3)
        print(f"no longer in the list of videos of {output}; their runs are kept: {shown}", flush=True)


def finish_table(output: Path, videos: list[FleetVideo], driver: Driver) -> list[table.Row]:
    """Write fleet.csv and print the table."""
    rows = [driver.row(video) for video in videos]
    table.write_table(output, rows)
    driver.print(table.format_rows(rows))
    return rows


def check_failures(videos: list[FleetVideo], driver: Driver) -> None:
    """Raise UserError if no video could be started, RunError if one failed."""
    if not driver.failed:
        return
    name, cause = next(iter(driver.failed.items()))
    message = f"{len(driver.failed)} of {len(videos)} videos failed, for example {name}: {cause}"
    if len(driver.failed) == len(videos) and not driver.submitted:
        raise UserError(message)
    raise RunError(f"{message}; run the same command to retry them")


@contextlib.contextmanager
def locked_output(output: Path) -> Iterator[None]:
    """Create and lock the output folder for the block. Raises UserError."""
    check_place(output / table.MANIFEST)
    if any((output / name).is_file() for name in ("config.json", "segments.json")):
        raise UserError(f"{output} is a run folder, not a fleet folder: choose another -o")
    fresh = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if fresh:
            stack.callback(_remove_empty, output)
        try:
            stack.enter_context(locked(output))
        except UserError as error:
            raise UserError(
                f"another fleet is running in {output}: wait for it to finish, or choose another -o"
            ) from error
        for half_written in output.glob(".*.tmp"):  # left by a killed driver
            half_written.unlink(missing_ok=True)
        yield


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it is not empty
        folder.rmdir()
