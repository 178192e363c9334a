"""A fleet from its start to its end: videos, lock, cluster, driver, table."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hnerv.errors import Interrupted, RunError, UserError
from hnerv.files import check_place
from hnerv.fleet import table
from hnerv.fleet.driving import Driver, Orders
from hnerv.fleet.engine import Needs, connected
from hnerv.fleet.jobs import check_runs
from hnerv.fleet.ledger import mend_end
from hnerv.fleet.manifest import Defaults, Video, read_videos, write_manifest
from hnerv.runs.lock import locked


class Where(NamedTuple):
    """Ray's address ('' for one of this machine), what a task takes, whether Ray's own words are shown."""

    address: str
    needs: Needs
    debug: bool = False


def run_fleet(source: Path, output: Path, defaults: Defaults, orders: Orders, where: Where) -> list[table.Row]:
    """Trains all videos -> the table, which is fleet.csv too.

    Raises UserError where nothing could begin, RunError where a video failed, Interrupted.
    """
    videos = read_videos(source, defaults)
    with held(output):
        mend_end(output / "fleet.jsonl")
        check_runs(videos, output)
        with connected(where.address, where.needs, where.debug) as cluster:
            tell_dropped(output, videos)
            write_manifest(output / table.MANIFEST, videos)
            driver = Driver(cluster, output, videos, orders)
            try:
                driver.run()
            except Interrupted:
                write_table(output, videos, driver)
                raise
            except BaseException:
                with contextlib.suppress(UserError, OSError):  # what ended the fleet is told first
                    write_table(output, videos, driver)
                raise
            rows = write_table(output, videos, driver)
    check_failures(videos, driver)
    return rows


def tell_dropped(output: Path, videos: list[Video]) -> None:
    """One line where the folder's former list has videos that are not in this one."""
    former, kept = [], {video.name for video in videos}
    with contextlib.suppress(UserError):  # there is none, or it is damaged and is about to be written anew
        former = table.names_of(output)
    if dropped := [name for name in former if name not in kept]:
        shown = ", ".join(dropped[:3]) + ", …" * (len(dropped) > 3)
        print(f"no longer in the list of videos of {output}; their runs are kept: {shown}", flush=True)


def write_table(output: Path, videos: list[Video], driver: Driver) -> list[table.Row]:
    """fleet.csv, printed too."""
    rows = [driver.row(video) for video in videos]
    table.write_table(output, rows)
    driver.say(table.lines(rows))
    return rows


def check_failures(videos: list[Video], driver: Driver) -> None:
    """Raises UserError where no video could begin, RunError where one failed."""
    if not driver.failed:
        return
    name, cause = next(iter(driver.failed.items()))
    told = f"{len(driver.failed)} of {len(videos)} videos failed, for example {name}: {cause}"
    if len(driver.failed) == len(videos) and not driver.begun:
        raise UserError(told)
    raise RunError(f"{told}; run the same command to retry them")


@contextlib.contextmanager
def held(output: Path) -> Iterator[None]:
    """The output folder, kept from another fleet for the block. Raises UserError."""
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
        for half in output.glob(".*.tmp"):  # of a driver that was killed while it wrote
            half.unlink(missing_ok=True)
        yield


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it is not empty
        folder.rmdir()
