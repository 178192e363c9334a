"""The driver: submits jobs, keeps what workers hand over, begins anew what a fault ended, until all is done."""

from __future__ import annotations

import shlex
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from hnerv.config import LogConfig
from hnerv.errors import RunError, UserError
from hnerv.fleet import table
from hnerv.fleet.engine import Cluster, Fault, News
from hnerv.fleet.jobs import (
    Job,
    finds_targets,
    first_jobs,
    in_segments,
    is_done,
    is_ready,
    run_folder,
    segment_jobs,
    with_width,
)  # fmt: skip
from hnerv.fleet.ledger import Ledger, Mark, Standing
from hnerv.fleet.manifest import Video
from hnerv.fleet.numbers import close_segments, numbers_of
from hnerv.fleet.parcels import LATEST, Parcel, pack, unpack
from hnerv.fleet.places import place_of, send
from hnerv.fleet.work import Effort, Outcome, Task
from hnerv.runs import ChunkedFolder, ChunkPlan, write_plan
from hnerv.runs.record import read_record
from hnerv.training.signals import StopSignals

PAUSE = 0.2
"""Seconds between two looks at the cluster."""
MOST = 10_000
"""Tasks that Ray holds at a time: what each is given lies in memory."""
PATIENCE = 60.0
"""Seconds that tasks have to save and end when the driver is stopped."""


class Orders(NamedTuple):
    """What holds for every task: what is logged, where it computes and with how much of it, retries, command."""

    log: LogConfig
    device: str
    threads: int
    retries: int
    command: list[str]
    deterministic: bool = False
    gpu_share: float = 1.0


@dataclass
class Attempt:
    """A job at work. `fruitless` counts the attempts in a row that ended by a fault and brought no newer checkpoint.

    `kept` is the step of the newest checkpoint that came, by whatever attempt; `sent`: it was given the video.
    """

    job: Job
    number: int = 0
    fruitless: int = 0
    kept: int = 0
    sent: bool = False
    mark: Mark = Mark(0, 0, 0)
    handle: object = None

    @property
    def is_short(self) -> bool:
        """Whether the end of the run is not on the driver's disk, though its worker says that it is reached."""
        return self.mark.saved < self.mark.steps or not self.mark.steps


class Driver:
    """One fleet under way. `run` is the loop."""

    def __init__(self, cluster: Cluster, output: Path, videos: list[Video], orders: Orders) -> None:
        self.cluster, self.output, self.videos, self.orders = cluster, output, videos, orders
        self.ledger = Ledger(output)
        self.waiting: deque[Attempt] = deque()
        self.held: dict[str, list[Attempt]] = {}
        """Video -> its segments that wait for another one."""
        self.at_work: dict[str, Attempt] = {}
        self.open: dict[str, set[str]] = {}
        """Video -> its jobs that are not finished; a video that is not in it is."""
        self.jobs: dict[str, list[str]] = {}
        self.failed: dict[str, str] = {}
        self.efforts: dict[str, Effort] = {}
        self.begun = 0
        self.posted: dict[str, object] = {}
        self.width = min(max([len(video.name) for video in videos] + [len("video")]), 40)
        self.bar = tqdm(total=len(videos), unit="video", disable=not sys.stderr.isatty())

    def run(self) -> None:
        """Until no job is left. Raises Interrupted after SIGINT or SIGTERM, everything saved and handed over."""
        self.tell_lost_by_the_last_driver()
        for video in self.videos:
            # A refusal is no event: with the right flags what is finished still is.
            self.guarded(video, lambda video=video: self.add(video, first_jobs(video, self.output)), note=False)
        if self.waiting:
            again = f"hnerv fleet {shlex.quote(str(self.output))} --status"
            self.say(f"one line per video as it ends; `{again}` shows all (bpp*: estimate at 8 bits per parameter)")
            self.say(table.heading(self.width))
        with StopSignals() as stop, self.bar:
            while (self.waiting or self.at_work) and not stop.requested:
                self.submit_some()
                self.look(PAUSE)
            if stop.requested:
                self.stop(stop)
        self.ledger.mark({}, 0)

    def add(self, video: Video, jobs: Iterable[Job]) -> None:
        """Puts the jobs of a video in line that are not done. Raises UserError for one done by other flags."""
        left = []
        for job in jobs:
            self.jobs.setdefault(video.name, []).append(job.standing_as)
            if not is_done(job.name, self.ledger.standing, self.output):
                left.append(job)
            else:
                run_folder(job, self.output)
        self.open.setdefault(video.name, set()).update(job.standing_as for job in left)
        for job in left:
            ready = is_ready(job, self.ledger.standing, self.output)
            (self.waiting if ready else self.held.setdefault(video.name, [])).append(Attempt(job))
        if not left:
            self.close_video(video)

    def submit_some(self) -> None:
        """As many tasks as the nodes can run, and as many again that wait there."""
        most = min(2 * self.cluster.slots() + 2, MOST)
        while self.waiting and len(self.at_work) < most:
            attempt = self.waiting.popleft()
            job = attempt.job
            if job.video.name not in self.failed:
                self.guarded(job.video, lambda attempt=attempt: self.submit(attempt))

    def submit(self, attempt: Attempt) -> None:
        """Raises UserError for a run that cannot be begun."""
        job, orders = attempt.job, self.orders
        attempt.number += 1
        place = place_of(job.video.data)
        task = Task(
            job.name, attempt.number, job.choice, orders.log, orders.device, orders.threads, place,
            str(self.output / job.name), orders.command, job.frames, gpu_share=orders.gpu_share,
        )  # fmt: skip
        sent = self.posted.get(job.video.name)
        attempt.sent = sent is not None
        if job.entry == "plan":
            given = [job.video.wishes, sent]
        else:
            for half in (self.output / job.name).rglob(".*.tmp"):  # of a driver that was killed while it wrote
                half.unlink(missing_ok=True)
            run_folder(job, self.output)
            task = self.with_neighbours(task, job)
            given = [pack(self.output / job.name), sent]
        attempt.mark = Mark(0, 0, 0)
        attempt.handle = self.cluster.submit(job.entry, task, *given)
        self.at_work[job.standing_as] = attempt
        self.begun += 1

    def with_neighbours(self, task: Task, job: Job) -> Task:
        """With what a segment needs of the runs of others."""
        task = task._replace(choice=with_width(job, self.output), deterministic=self.orders.deterministic)
        if job.first and finds_targets(job.choice):
            task = task._replace(like=read_record(self.output / job.first / "config.json"))
        if job.follows:
            latest = self.output / job.before / LATEST
            task = task._replace(initial=latest.read_bytes(), initial_name=latest.parent.parent.name)
        return task

    def look(self, seconds: float) -> None:
        """Waits a little for tasks that end, keeps the news, then settles those that have ended."""
        handles = {attempt.handle: attempt for attempt in self.at_work.values()}
        ended = self.cluster.ended(list(handles), seconds)
        self.keep_news()
        for handle, result in ended:
            attempt = handles[handle]
            del self.at_work[attempt.job.standing_as]
            self.guarded(attempt.job.video, lambda: self.settle(attempt, result))  # noqa: B023 (called at once)
        self.ledger.mark({name: one.mark for name, one in self.at_work.items() if one.mark.steps})
        self.bar.set_postfix_str(f"{len(self.at_work)} running, {len(self.waiting)} waiting", refresh=False)
        self.bar.update(0)

    def keep_news(self) -> None:
        """Of the attempts that are still ours: one that was given up for dead may be alive behind a broken line."""
        for (name, number), news in self.cluster.news().items():
            attempt = self.at_work.get(name)
            if attempt and attempt.number == number:
                self.guarded(attempt.job.video, lambda: self.keep(attempt, news))  # noqa: B023 (called at once)

    def keep(self, attempt: Attempt, news: News) -> None:
        """Writes what was handed over into the run's folder."""
        if news.parcel is not None:
            self.write(attempt.job, news.parcel)
            if LATEST in news.parcel.pieces and news.saved > attempt.kept:
                attempt.kept, attempt.fruitless = news.saved, 0
            self.release(attempt.job.video)
        mark = attempt.mark
        attempt.mark = Mark(max(mark.step, news.step), max(mark.saved, news.saved), news.steps or mark.steps)

    def release(self, video: Video) -> None:
        """Puts those segments of a video in line whose turn has come."""
        held = self.held.pop(video.name, [])
        ready = [is_ready(attempt.job, self.ledger.standing, self.output) for attempt in held]
        self.waiting.extend(attempt for attempt, now in zip(held, ready, strict=True) if now)
        if left := [attempt for attempt, now in zip(held, ready, strict=True) if not now]:
            self.held[video.name] = left

    def write(self, job: Job, parcel: Parcel) -> None:
        """Raises RunError when the disk does not take it: that ends the fleet, not the run alone."""
        try:
            unpack(parcel, self.output / job.name)
        except OSError as error:
            raise RunError(
                f"cannot write {self.output / job.name} ({error}); what is already there is intact: fix the cause, "
                "then run the same command to resume"
            ) from error

    def settle(self, attempt: Attempt, result: Outcome | Fault) -> None:
        """What follows from the end of an attempt."""
        job = attempt.job
        if job.video.name in self.failed:
            self.ledger.note(job.standing_as, "stopped")
        elif isinstance(result, Fault) or result.state == "stopped":
            self.begin_again(attempt, result.cause or "the task was cancelled")
        elif result.state == "absent":
            self.post(attempt, result.cause)
        elif result.state == "failed":
            self.fail(job.video, result.cause)
        elif job.entry == "plan":
            self.divide(job.video, result.plan)
        elif attempt.is_short:
            self.begin_again(attempt, "the last data it sent was lost")
        else:
            self.finish(job, result)

    def begin_again(self, attempt: Attempt, cause: str) -> None:
        """A fault of a worker or node: the work since the last checkpoint is done again."""
        job, mark = attempt.job, attempt.mark
        attempt.fruitless += 1
        if attempt.fruitless > self.orders.retries:
            ended = f"ended {attempt.fruitless} times without a new checkpoint, the last time with"
            self.fail(job.video, f"{ended}: {cause}")
        else:
            self.ledger.note(job.standing_as, "lost", cause=cause, **mark.facts())
            self.waiting.appendleft(attempt)

    def post(self, attempt: Attempt, cause: str) -> None:
        """The worker does not see the video: sends it, once for all tasks."""
        video = attempt.job.video
        if attempt.sent:
            raise UserError(f"{cause}, even though it was sent")
        if video.name not in self.posted:
            self.posted[video.name] = self.cluster.put(send(place_of(video.data)))
        self.waiting.appendleft(attempt)

    def divide(self, video: Video, plan: ChunkPlan) -> None:
        """The plan of a video is there: its segments are in line."""
        write_plan(ChunkedFolder(self.output / video.name).plan, plan)
        self.open[video.name].clear()
        self.add(video, segment_jobs(video, plan))

    def finish(self, job: Job, outcome: Outcome) -> None:
        """A run is trained to its end, and all of it is here."""
        self.efforts[job.video.name] = added(self.efforts.get(job.video.name, Effort()), outcome.effort)
        if job.name != job.video.name:
            self.ledger.note(job.name, "finished")
            self.release(job.video)
        self.open[job.video.name].discard(job.standing_as)
        if not self.open[job.video.name]:
            self.close_video(job.video)

    def close_video(self, video: Video) -> None:
        """Every run of a video is finished."""
        self.open.pop(video.name, None)
        self.posted.pop(video.name, None)
        if not (done := self.ledger.standing.get(video.name)) or done.state != "finished":
            folder = self.output / video.name
            if in_segments(video):
                values = close_segments(folder, video.choice, self.orders.log.report_to)
            else:
                values = numbers_of(folder)
            effort = self.efforts.pop(video.name, Effort())
            self.ledger.note(video.name, "finished", values=values, effort=effort._asdict())
            self.say(table.line(self.row(video), self.width))
        self.bar.update(1)

    def fail(self, video: Video, cause: str, note: bool = True) -> None:
        """A video that cannot be trained; the others go on. The ledger keeps it if `note`."""
        if video.name in self.failed:
            return
        self.open.pop(video.name, None)
        self.posted.pop(video.name, None)
        self.held.pop(video.name, None)
        self.failed[video.name] = cause
        if note:
            self.ledger.note(video.name, "failed", cause=cause)
        self.cluster.cancel([one.handle for one in self.at_work.values() if one.job.video.name == video.name])
        self.say(f"{video.name:{self.width}}  failed: {cause}")
        self.bar.update(1)

    def guarded(self, video: Video, call, note: bool = True) -> None:
        """A fault of one video is no fault of the others."""
        try:
            call()
        except ConnectionError:  # of the cluster
            raise
        except (UserError, OSError, ValueError) as error:
            self.fail(video, " ".join(str(error).split()), note)

    def stop(self, stop: StopSignals) -> None:
        """Lets the tasks save and hand over, and raises Interrupted."""
        self.waiting.clear()
        going = [one.handle for one in self.at_work.values() if one.job.video.name not in self.failed]
        if going:
            tasks = "1 task; it" if len(going) == 1 else f"{len(going)} tasks; each"
            self.say(f"stopping {tasks} saves its run and sends it back")
        self.cluster.cancel(going)
        deadline = time.monotonic() + PATIENCE
        while self.at_work and time.monotonic() < deadline:
            handles = {attempt.handle: attempt for attempt in self.at_work.values()}
            ended = self.cluster.ended(list(handles), PAUSE)
            self.keep_news()
            for handle, result in ended:
                self.settle_stopped(handles[handle], result)
        self.ledger.mark({name: one.mark for name, one in self.at_work.items() if one.mark.steps}, 0)
        done = sum(video.name not in self.open and video.name not in self.failed for video in self.videos)
        raise stop.interruption(
            f"stopped; {done} of {len(self.videos)} videos are done; run the same command to resume"
        )

    def settle_stopped(self, attempt: Attempt, result: Outcome | Fault) -> None:
        """One that had ended before it heard of the stop counts as done."""
        mark, job = attempt.mark, attempt.job
        del self.at_work[job.standing_as]
        ended = isinstance(result, Outcome) and result.state == "finished" and job.video.name not in self.failed
        if ended and job.entry == "train" and not attempt.is_short:
            self.guarded(job.video, lambda: self.finish(job, result))
        else:
            self.ledger.note(job.standing_as, "stopped", **mark.facts())

    def tell_lost_by_the_last_driver(self) -> None:
        """A driver that was killed left marks: what its workers had not handed over is done again."""
        for name, mark in self.ledger.left().items():
            if is_done(name, self.ledger.standing, self.output):  # after the marks were last written
                continue
            self.ledger.note(name, "lost", cause="the driver ended", **mark.facts())
        self.ledger.mark({}, 0)

    def row(self, video: Video) -> table.Row:
        """Of the table."""
        names = dict.fromkeys([video.name, *self.jobs.get(video.name, ())])
        standing = {name: self.ledger.standing[name] for name in names if name in self.ledger.standing}
        if cause := self.failed.get(video.name):
            standing[video.name] = standing.get(video.name, Standing())._replace(state="failed", cause=cause)
        return table.rows_of(self.output, [video.name], standing, {})[0]

    def say(self, line: str) -> None:
        """A line that does not break the bar."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


def added(one: Effort, other: Effort) -> Effort:
    """What two attempts took together."""
    return Effort(*(a + b for a, b in zip(one, other, strict=True)))
