"""The driver: submits jobs, writes what the workers send, and retries lost tasks until all videos are done."""

from __future__ import annotations

import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from hnerv.config import LogConfig
from hnerv.errors import RunError, UserError
from hnerv.fleet import table
from hnerv.fleet.engine import Cluster, LostTask, WorkerReport
from hnerv.fleet.jobs import Attempt, Job, first_jobs, is_done, is_ready, run_folder, segment_jobs, with_width
from hnerv.fleet.ledger import JobProgress, JobState, Ledger
from hnerv.fleet.locations import archive_video, driver_location
from hnerv.fleet.manifest import FleetVideo
from hnerv.fleet.results import close_segments, run_values
from hnerv.fleet.transfers import LATEST, FolderUpdate, apply_update, pack_run
from hnerv.fleet.worker import Cost, Outcome, Task
from hnerv.runs import ChunkedFolder, ChunkPlan, write_plan
from hnerv.runs.record import read_record
from hnerv.training.signals import StopSignals

POLL_SECONDS = 0.2
"""Interval between two looks at the cluster."""
MAX_TASKS = 10_000
"""Tasks submitted to Ray at a time: their inputs are held in memory."""
STOP_SECONDS = 60.0
"""Time for tasks to save and end when the driver is stopped."""


class TaskOptions(NamedTuple):
    """Options of every task: logging, device, CPU threads, retries, recorded command, share of a GPU."""

    log: LogConfig
    device: str
    threads: int
    retries: int
    command: list[str]
    deterministic: bool = False
    gpu_share: float = 1.0


class Driver:
    """A running fleet. `run` is its main loop."""

    def __init__(self, cluster: Cluster, output: Path, videos: list[FleetVideo], options: TaskOptions) -> None:
        self.cluster, self.output, self.videos, self.options = cluster, output, videos, options
        self.ledger = Ledger(output)
        self.waiting: deque[Attempt] = deque()
        self.held: dict[str, list[Attempt]] = {}
        """Video -> its segments that wait for another segment."""
        self.running: dict[str, Attempt] = {}
        self.open: dict[str, set[str]] = {}
        """Video -> its unfinished jobs. Finished videos are not in it."""
        self.jobs: dict[str, list[str]] = {}
        self.failed: dict[str, str] = {}
        self.costs: dict[str, Cost] = {}
        self.submitted = 0
        self.archives: dict[str, object] = {}
        """Video -> handle of its archive in Ray's object store, for videos that a worker did not find."""
        self.width = min(max([len(video.name) for video in videos] + [len("video")]), 40)
        self.bar = tqdm(total=len(videos), unit="video", disable=not sys.stderr.isatty())

    def run(self) -> None:
        """Run all jobs. Raises Interrupted after SIGINT or SIGTERM, with all runs saved and received."""
        self.record_lost_jobs()
        for video in self.videos:
            # An error here is not recorded as failed: a finished video stays finished once the flags are right.
            self.guarded(video, lambda video=video: self.add(video, first_jobs(video, self.output)), record=False)
        if self.waiting:
            command = f"hnerv fleet {shlex.quote(str(self.output))} --status"
            self.print(f"one line per video as it ends; `{command}` shows all (bpp*: estimate at 8 bits per parameter)")
            self.print(table.heading(self.width))
        with StopSignals() as stop, self.bar:
            while (self.waiting or self.running) and not stop.requested:
                self.submit_waiting()
                self.poll(POLL_SECONDS)
            if stop.requested:
                self.stop(stop)
        self.ledger.write_progress({}, 0)

    def add(self, video: FleetVideo, jobs: Iterable[Job]) -> None:
        """Queue the unfinished jobs of a video. Raises UserError if a finished one has other settings."""
        left = []
        for job in jobs:
            self.jobs.setdefault(video.name, []).append(job.key)
            if not is_done(job.name, self.ledger.states, self.output):
                left.append(job)
            else:
                run_folder(job, self.output)
        self.open.setdefault(video.name, set()).update(job.key for job in left)
        for job in left:
            ready = is_ready(job, self.ledger.states, self.output)
            (self.waiting if ready else self.held.setdefault(video.name, [])).append(Attempt(job))
        if not left:
            self.close_video(video)

    def submit_waiting(self) -> None:
        """Submit twice as many tasks as the nodes can run, so that a free node finds the next one at once."""
        limit = min(2 * self.cluster.slots() + 2, MAX_TASKS)
        while self.waiting and len(self.running) < limit:
            attempt = self.waiting.popleft()
            job = attempt.job
            if job.video.name not in self.failed:
                self.guarded(job.video, lambda attempt=attempt: self.submit(attempt))

    def submit(self, attempt: Attempt) -> None:
        """Submit a job as a task. Raises UserError if its run cannot be started."""
        job, options = attempt.job, self.options
        attempt.number += 1
        task = Task(
            job=job.name,
            attempt=attempt.number,
            choice=job.choice,
            log=options.log,
            device=options.device,
            threads=options.threads,
            location=driver_location(job.video.data),
            folder=str(self.output / job.name),
            command=options.command,
            frames=job.frames,
            gpu_share=options.gpu_share,
        )
        archive = self.archives.get(job.video.name)
        if job.entry == "plan":
            inputs = [job.video.chunk_options, archive]
        else:
            for half_written in (self.output / job.name).rglob(".*.tmp"):  # left by a killed driver
                half_written.unlink(missing_ok=True)
            run_folder(job, self.output)
            task = self.with_segment_inputs(task, job)
            inputs = [pack_run(self.output / job.name), archive]
        attempt.progress = JobProgress(0, 0, 0)
        attempt.handle = self.cluster.submit(job.entry, task, *inputs)
        self.running[job.key] = attempt
        self.submitted += 1

    def with_segment_inputs(self, task: Task, job: Job) -> Task:
        """Add what a segment needs from runs of other segments: width, targets, initial weights."""
        task = task._replace(choice=with_width(job, self.output), deterministic=self.options.deterministic)
        if job.shares_targets:
            task = task._replace(like=read_record(self.output / job.first / "config.json"))
        if job.continues:
            latest = self.output / job.previous / LATEST
            task = task._replace(initial=latest.read_bytes(), initial_name=latest.parent.parent.name)
        return task

    def poll(self, seconds: float) -> None:
        """Wait at most `seconds` for tasks that end, store all reports, then settle the ended tasks."""
        attempts = {attempt.handle: attempt for attempt in self.running.values()}
        ended = self.cluster.ended(list(attempts), seconds)
        self.store_reports()
        for handle, result in ended:
            attempt = attempts[handle]
            del self.running[attempt.job.key]
            self.guarded(attempt.job.video, lambda: self.settle(attempt, result))  # noqa: B023 (called at once)
        self.ledger.write_progress(self.running_progress())
        self.bar.set_postfix_str(f"{len(self.running)} running, {len(self.waiting)} waiting", refresh=False)
        self.bar.update(0)

    def running_progress(self) -> dict[str, JobProgress]:
        """Progress of the running jobs that have reported any."""
        return {key: attempt.progress for key, attempt in self.running.items() if attempt.progress.steps}

    def store_reports(self) -> None:
        """Store the reports of current attempts. A lost attempt may still run on a node that was cut off."""
        for (name, number), report in self.cluster.fetch_reports().items():
            attempt = self.running.get(name)
            if attempt and attempt.number == number:
                self.guarded(attempt.job.video, lambda: self.store(attempt, report))  # noqa: B023 (called at once)

    def store(self, attempt: Attempt, report: WorkerReport) -> None:
        """Write the files of a report into the run folder."""
        if report.update is not None:
            self.write(attempt.job, report.update)
            if LATEST in report.update.parts and report.saved > attempt.best_saved:
                attempt.best_saved, attempt.fruitless = report.saved, 0
            self.release(attempt.job.video)
        before = attempt.progress
        attempt.progress = JobProgress(
            max(before.step, report.step), max(before.saved, report.saved), report.steps or before.steps
        )

    def release(self, video: FleetVideo) -> None:
        """Queue the held segments of a video that are now ready."""
        held = self.held.pop(video.name, [])
        ready = [is_ready(attempt.job, self.ledger.states, self.output) for attempt in held]
        self.waiting.extend(attempt for attempt, now in zip(held, ready, strict=True) if now)
        if left := [attempt for attempt, now in zip(held, ready, strict=True) if not now]:
            self.held[video.name] = left

    def write(self, job: Job, update: FolderUpdate) -> None:
        """Raises RunError if the disk is not writable, which ends the fleet and not only this run."""
        try:
            apply_update(update, self.output / job.name)
        except OSError as error:
            raise RunError(
                f"cannot write {self.output / job.name} ({error}); what is already there is intact: fix the cause, "
                "then run the same command to resume"
            ) from error

    def settle(self, attempt: Attempt, result: Outcome | LostTask) -> None:
        """React to the end of an attempt."""
        job = attempt.job
        if job.video.name in self.failed:
            self.ledger.record(job.key, "stopped")
        elif isinstance(result, LostTask) or result.state == "stopped":
            self.retry(attempt, result.cause or "the task was cancelled")
        elif result.state == "missing":
            self.send_video(attempt)
        elif result.state == "failed":
            self.fail(job.video, result.cause)
        elif job.entry == "plan":
            self.divide(job.video, result.plan)
        elif attempt.is_incomplete:
            self.retry(attempt, "the last data it sent was lost")
        else:
            self.finish(job, result)

    def retry(self, attempt: Attempt, cause: str) -> None:
        """Queue a lost job again; it repeats the steps since its last checkpoint."""
        job, progress = attempt.job, attempt.progress
        attempt.fruitless += 1
        if attempt.fruitless > self.options.retries:
            ended = f"ended {attempt.fruitless} times without a new checkpoint, the last time with"
            self.fail(job.video, f"{ended}: {cause}")
        else:
            self.ledger.record(job.key, "lost", cause=cause, **progress.event_fields())
            self.waiting.appendleft(attempt)

    def send_video(self, attempt: Attempt) -> None:
        """Store a video that a worker did not find in the cluster, once for all its tasks, and queue the job again."""
        video = attempt.job.video
        if video.name not in self.archives:
            self.archives[video.name] = self.cluster.put(archive_video(driver_location(video.data)))
        self.waiting.appendleft(attempt)

    def divide(self, video: FleetVideo, plan: ChunkPlan) -> None:
        """Write the plan of a video and queue its segments."""
        write_plan(ChunkedFolder(self.output / video.name).plan, plan)
        self.open[video.name].clear()
        self.add(video, segment_jobs(video, plan))

    def finish(self, job: Job, outcome: Outcome) -> None:
        """Record a run that is trained to its end and completely received."""
        self.costs[job.video.name] = self.costs.get(job.video.name, Cost()) + outcome.cost
        if job.name != job.video.name:
            self.ledger.record(job.name, "finished")
            self.release(job.video)
        self.open[job.video.name].discard(job.key)
        if not self.open[job.video.name]:
            self.close_video(job.video)

    def close_video(self, video: FleetVideo) -> None:
        """Record a video with all runs finished."""
        self.open.pop(video.name, None)
        self.archives.pop(video.name, None)
        if not (done := self.ledger.states.get(video.name)) or done.state != "finished":
            folder = self.output / video.name
            if video.chunk_options.divides:
                values = close_segments(folder, video.choice, self.options.log.report_to)
            else:
                values = run_values(folder)
            cost = self.costs.pop(video.name, Cost())
            self.ledger.record(video.name, "finished", values=values, effort=cost.event_fields())
            self.print(table.format_video(self.row(video), self.width))
        self.bar.update(1)

    def fail(self, video: FleetVideo, cause: str, record: bool = True) -> None:
        """Give up a video; the others continue. Without `record` the ledger does not change."""
        if video.name in self.failed:
            return
        self.open.pop(video.name, None)
        self.archives.pop(video.name, None)
        self.held.pop(video.name, None)
        self.failed[video.name] = cause
        if record:
            self.ledger.record(video.name, "failed", cause=cause)
        self.cluster.cancel([one.handle for one in self.running.values() if one.job.video.name == video.name])
        self.print(f"{video.name:{self.width}}  failed: {cause}")
        self.bar.update(1)

    def guarded(self, video: FleetVideo, call: Callable[[], None], record: bool = True) -> None:
        """Call `call`; an error fails the video and not the fleet."""
        try:
            call()
        except ConnectionError:  # to the cluster
            raise
        except (UserError, OSError, ValueError) as error:
            self.fail(video, " ".join(str(error).split()), record)

    def stop(self, stop: StopSignals) -> None:
        """Let the tasks save their runs and send them, then raise Interrupted."""
        self.waiting.clear()
        handles = [one.handle for one in self.running.values() if one.job.video.name not in self.failed]
        if handles:
            tasks = "1 task; it" if len(handles) == 1 else f"{len(handles)} tasks; each"
            self.print(f"stopping {tasks} saves its run and sends it back")
        self.cluster.cancel(handles)
        deadline = time.monotonic() + STOP_SECONDS
        while self.running and time.monotonic() < deadline:
            attempts = {attempt.handle: attempt for attempt in self.running.values()}
            ended = self.cluster.ended(list(attempts), POLL_SECONDS)
            self.store_reports()
            for handle, result in ended:
                self.settle_stopped(attempts[handle], result)
        self.ledger.write_progress(self.running_progress(), 0)
        done = sum(video.name not in self.open and video.name not in self.failed for video in self.videos)
        raise stop.interruption(
            f"stopped; {done} of {len(self.videos)} videos are done; run the same command to resume"
        )

    def settle_stopped(self, attempt: Attempt, result: Outcome | LostTask) -> None:
        """Settle an attempt after a stop request; it may have finished before the request reached it."""
        job = attempt.job
        del self.running[job.key]
        finished = isinstance(result, Outcome) and result.state == "finished" and job.video.name not in self.failed
        if finished and job.entry == "train" and not attempt.is_incomplete:
            self.guarded(job.video, lambda: self.finish(job, result))
        else:
            self.ledger.record(job.key, "stopped", **attempt.progress.event_fields())

    def record_lost_jobs(self) -> None:
        """Record the jobs that were running when the last driver was killed; unreceived steps are repeated."""
        for name, progress in self.ledger.unfinished().items():
            if is_done(name, self.ledger.states, self.output):  # finished after running.json was last written
                continue
            self.ledger.record(name, "lost", cause="the driver ended", **progress.event_fields())
        self.ledger.write_progress({}, 0)

    def row(self, video: FleetVideo) -> table.Row:
        """The table row of a video."""
        names = dict.fromkeys([video.name, *self.jobs.get(video.name, ())])
        states = {name: self.ledger.states[name] for name in names if name in self.ledger.states}
        if cause := self.failed.get(video.name):
            states[video.name] = states.get(video.name, JobState())._replace(state="failed", cause=cause)
        return table.build_rows(self.output, [video.name], states, {})[0]

    def print(self, line: str) -> None:
        """Print a line without breaking the progress bar."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
