"""Videos -> jobs, one for each run: which are still to be done, and what each follows from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hnerv.errors import UserError
from hnerv.flags import Choice
from hnerv.fleet.ledger import Standing
from hnerv.fleet.manifest import Video
from hnerv.fleet.parcels import LATEST
from hnerv.segments import Plan, Segment, SegmentedFolder, read_plan
from hnerv.training import RunFolder


class Job(NamedTuple):
    """One task: to train a run, or to plan the segments of a video. `name` is its folder inside the fleet's."""

    name: str
    video: Video
    choice: Choice
    entry: str = "train"

    @property
    def standing_as(self) -> str:
        """Under what the ledger keeps it: a plan is no run, so it has a line of its own."""
        return self.name if self.entry == "train" else f"{self.name}/segments/plan"


def first_jobs(video: Video, output: Path) -> list[Job]:
    """What can be begun of a video: its run, its segments, or the plan of these. Raises UserError."""
    if not video.wishes.wanted:
        return [Job(video.name, video, video.choice)]
    folder = SegmentedFolder(output / video.name)
    if not folder.plan.is_file():
        return [Job(video.name, video, video.choice, "plan")]
    return segment_jobs(video, known_plan(video, folder))


def segment_jobs(video: Video, plan: Plan) -> list[Job]:
    """A run for each segment."""
    return [Job(segment_name(video, one), video, of_segment(video.choice, one)) for one in plan.segments]


def segment_name(video: Video, segment: Segment) -> str:
    """Of its folder, inside the fleet's."""
    return f"{video.name}/segments/{segment.name}"


def of_segment(choice: Choice, segment: Segment) -> Choice:
    """The choice of the whole video, for the frames of one segment."""
    return choice._replace(config=choice.config.replaced({"frames": segment.frames}))


def known_plan(video: Video, folder: SegmentedFolder) -> Plan:
    """The plan that is there. Raises UserError for one that was made by other flags."""
    plan = read_plan(folder.plan)
    if plan.wishes != video.wishes or plan.frames != video.choice.config.video.frames:
        raise UserError(
            f"{folder.path} is divided by other --segment- flags or --frames: give those, or move it aside, or choose "
            "another name"
        )
    return plan


def is_done(name: str, standing: dict[str, Standing], output: Path) -> bool:
    """Whether a job is finished, and its run is still there."""
    return name in standing and standing[name].state == "finished" and (output / name / LATEST).is_file()


def run_folder(job: Job, output: Path) -> RunFolder:
    """Where its run is kept. Raises UserError where another run is there."""
    return RunFolder.at(output, job.name, job.choice, False)
