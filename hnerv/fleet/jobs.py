"""Jobs of a video, one per run: which are done, and which wait for another job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hnerv.errors import OtherRun, UserError
from hnerv.fleet.ledger import JobProgress, JobState
from hnerv.fleet.manifest import FleetVideo
from hnerv.fleet.transfers import LATEST
from hnerv.presets import Choice
from hnerv.runs import ChunkedFolder, ChunkPlan, read_plan
from hnerv.runs.folder import RunFolder
from hnerv.runs.record import read_record
from hnerv.training.chunks import chunk_choice


class Job(NamedTuple):
    """One task: train a run, or plan the segments of a video. `name` is its folder relative to the fleet folder.

    `first` and `previous` are the folders of the video's first segment and of the preceding one, '' if there is none.
    """

    name: str
    video: FleetVideo
    choice: Choice
    entry: str = "train"
    first: str = ""
    previous: str = ""
    frames: int = 0
    """Number of frames that the video must have for this job; 0: any number."""

    @property
    def key(self) -> str:
        """Name of the job in the ledger. A plan is not a run, so it has a line of its own."""
        return self.name if self.entry == "train" else f"{self.name}/segments/plan"

    @property
    def continues(self) -> bool:
        """Whether its weights are initialised from the preceding segment."""
        return bool(self.previous) and self.video.chunk_options.init == "previous"

    @property
    def shares_targets(self) -> bool:
        """Whether the first segment's run decides which targets this segment is trained on."""
        clip = self.choice.config.clip
        return bool(self.first) and clip.clip_weights == "auto" and not clip.clip_targets


@dataclass
class Attempt:
    """A job that waits or runs. `fruitless` counts consecutive lost attempts without a newer checkpoint.

    `number` counts all attempts; `best_saved` is the step of the newest checkpoint received from any of them.
    """

    job: Job
    number: int = 0
    fruitless: int = 0
    best_saved: int = 0
    progress: JobProgress = JobProgress(0, 0, 0)
    handle: object = None

    @property
    def is_incomplete(self) -> bool:
        """Whether the last checkpoint is missing on the driver's disk, although the worker has finished the run."""
        return self.progress.saved < self.progress.steps or not self.progress.steps


def first_jobs(video: FleetVideo, output: Path) -> list[Job]:
    """The jobs of a video that are known now: its run, its segments, or their plan. Raises UserError."""
    if not video.chunk_options.divides:
        return [Job(video.name, video, video.choice)]
    folder = ChunkedFolder(output / video.name)
    if folder.plan.is_file():
        return segment_jobs(video, _existing_plan(video, folder))
    if folder.path.is_dir() and any(not path.name.startswith(".") for path in folder.path.iterdir()):
        raise OtherRun(f"{folder.path} is not a segmented run: move it aside, or give the video another name")
    return [Job(video.name, video, video.choice, "plan")]


def segment_jobs(video: FleetVideo, plan: ChunkPlan) -> list[Job]:
    """One training job per segment."""
    names = [f"{video.name}/segments/{segment.name}" for segment in plan.chunks]
    choices = [chunk_choice(segment, video.choice) for segment in plan.chunks]
    return [
        Job(name, video, choice, "train", "" if name == names[0] else names[0], previous, segment.count)
        for name, choice, previous, segment in zip(names, choices, ["", *names], plan.chunks, strict=False)
    ]


def _existing_plan(video: FleetVideo, folder: ChunkedFolder) -> ChunkPlan:
    """The plan on disk. Raises OtherRun if it was made with other flags."""
    plan = read_plan(folder.plan)
    if plan.options != video.chunk_options or plan.frames != video.choice.config.video.frames:
        raise OtherRun(
            f"{folder.path} was divided with different --segment-* flags or --frames: pass those, move it aside, or "
            "choose another name"
        )
    return plan


def is_done(name: str, states: dict[str, JobState], output: Path) -> bool:
    """Whether a job is finished and its run still exists."""
    return name in states and states[name].state == "finished" and (output / name / LATEST).is_file()


def is_ready(job: Job, states: dict[str, JobState], output: Path) -> bool:
    """Whether the inputs from other segments exist: initial weights, and the targets found by the first segment."""
    if job.continues and not is_done(job.previous, states, output):
        return False
    return not job.shares_targets or (output / job.first / "config.json").is_file()


def with_width(job: Job, output: Path) -> Choice:
    """The job's choice, with the decoder width of the run that provides its initial weights."""
    if not job.continues:
        return job.choice
    width = read_record(output / job.previous / "config.json").width
    return job.choice._replace(config=job.choice.config.replaced({"dec_width": width}))


def run_folder(job: Job, output: Path) -> RunFolder:
    """The folder of the job's run. Raises UserError if it contains another run."""
    try:
        return RunFolder.at(output, job.name, with_width(job, output), False, same_path=True)
    except UserError as error:
        settings = "pass its settings, " * isinstance(error, OtherRun)
        raise type(error)(error.cause, f"{settings}choose another name, or move it aside") from error


def check_runs(videos: list[FleetVideo], output: Path) -> None:
    """Raise UserError if every started run has other settings: the output folder belongs to another command.

    A video that cannot be resumed for another reason does not count here; it fails alone when it is submitted.
    """
    differing = []
    for video in videos:
        if not any((output / video.name / name).is_file() for name in ("config.json", "segments.json")):
            continue
        try:
            for job in first_jobs(video, output):
                if not video.chunk_options.divides or (output / job.name / "config.json").is_file():
                    run_folder(job, output)
            return
        except OtherRun as error:
            differing.append(str(error))
        except (UserError, OSError):
            return
    if differing:
        raise UserError(f"no run in {output} can be resumed with these settings: {differing[0]}, or choose another -o")
