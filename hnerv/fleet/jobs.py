"""Videos -> jobs, one for each run: which are still to be done, and which wait for another."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hnerv.errors import OtherRun, UserError
from hnerv.fleet.ledger import Standing
from hnerv.fleet.manifest import Video
from hnerv.fleet.parcels import LATEST
from hnerv.presets import Choice
from hnerv.runs import ChunkedFolder, ChunkPlan, read_plan
from hnerv.runs.folder import RunFolder
from hnerv.runs.record import read_record
from hnerv.training.chunks import chunk_choice


class Job(NamedTuple):
    """One task: to train a run, or to plan the segments of a video. `name` is its folder inside the fleet's.

    `first` and `before` are the folders of a video's first segment and of the one in front, '' where there is none.
    """

    name: str
    video: Video
    choice: Choice
    entry: str = "train"
    first: str = ""
    before: str = ""
    frames: int = 0
    """How many the video has to give for it; 0: any number."""

    @property
    def standing_as(self) -> str:
        """Under what the ledger keeps it: a plan is no run, so it has a line of its own."""
        return self.name if self.entry == "train" else f"{self.name}/segments/plan"

    @property
    def follows(self) -> bool:
        """Whether its weights begin as those of the segment in front."""
        return bool(self.before) and self.video.wishes.init == "previous"


def first_jobs(video: Video, output: Path) -> list[Job]:
    """What can be begun of a video: its run, its segments, or the plan of these. Raises UserError."""
    if not in_segments(video):
        return [Job(video.name, video, video.choice)]
    folder = ChunkedFolder(output / video.name)
    if folder.plan.is_file():
        return segment_jobs(video, known_plan(video, folder))
    if folder.path.is_dir() and any(not path.name.startswith(".") for path in folder.path.iterdir()):
        raise OtherRun(f"{folder.path} is not a segmented run: move it aside, or give the video another name")
    return [Job(video.name, video, video.choice, "plan")]


def in_segments(video: Video) -> bool:
    """Whether it is divided."""
    return video.wishes.divides


def segment_jobs(video: Video, plan: ChunkPlan) -> list[Job]:
    """A run for each segment."""
    names = [f"{video.name}/segments/{segment.name}" for segment in plan.chunks]
    choices = [chunk_choice(segment, video.choice) for segment in plan.chunks]
    befores = ["", *names]
    return [
        Job(name, video, choice, "train", "" if name == names[0] else names[0], before, segment.count)
        for name, choice, before, segment in zip(names, choices, befores, plan.chunks, strict=False)
    ]


def known_plan(video: Video, folder: ChunkedFolder) -> ChunkPlan:
    """The plan that is there. Raises UserError for one that was made by other flags."""
    plan = read_plan(folder.plan)
    if plan.options != video.wishes or plan.frames != video.choice.config.video.frames:
        raise OtherRun(
            f"{folder.path} was divided with different --segment-* flags or --frames: pass those, move it aside, or "
            "choose another name"
        )
    return plan


def is_done(name: str, standing: dict[str, Standing], output: Path) -> bool:
    """Whether a job is finished, and its run is still there."""
    return name in standing and standing[name].state == "finished" and (output / name / LATEST).is_file()


def is_ready(job: Job, standing: dict[str, Standing], output: Path) -> bool:
    """Whether what it needs of other segments is there: the targets that the first one found, weights to begin with."""
    if job.follows and not is_done(job.before, standing, output):
        return False
    return not (job.first and finds_targets(job.choice)) or (output / job.first / "config.json").is_file()


def finds_targets(choice: Choice) -> bool:
    """Whether the first run decides on what targets the others are trained."""
    return choice.config.clip.clip_weights == "auto" and not choice.config.clip.clip_targets


def with_width(job: Job, output: Path) -> Choice:
    """Its choice, of the same width as the run whose weights it begins with."""
    if not job.follows:
        return job.choice
    width = read_record(output / job.before / "config.json").width
    return job.choice._replace(config=job.choice.config.replaced({"dec_width": width}))


def run_folder(job: Job, output: Path) -> RunFolder:
    """Where its run is kept. Raises UserError where another run is there."""
    try:
        return RunFolder.at(output, job.name, with_width(job, output), False, same_path=True)
    except UserError as error:
        settings = "pass its settings, " * isinstance(error, OtherRun)
        raise type(error)(error.cause, f"{settings}choose another name, or move it aside") from error


def check_runs(videos: list[Video], output: Path) -> None:
    """Raises UserError where all that has begun was made by other settings: the command is another fleet's.

    A video that cannot be gone on with for another reason says nothing of that; it fails alone, in its turn.
    """
    differing = []
    for video in videos:
        if not any((output / video.name / name).is_file() for name in ("config.json", "segments.json")):
            continue
        try:
            for job in first_jobs(video, output):
                if not in_segments(video) or (output / job.name / "config.json").is_file():
                    run_folder(job, output)
            return
        except OtherRun as error:
            differing.append(str(error))
        except (UserError, OSError):
            return
    if differing:
        raise UserError(f"no run in {output} can be resumed with these settings: {differing[0]}, or choose another -o")
