"""Videos from files, folders of images and named clips as uint8 frames, and back; which frames train and validate."""

from hnerv.data.video.clips import CLIPS
from hnerv.data.video.loading import Video, frame_count, load_video, read_frames, seeks
from hnerv.data.video.remote import is_remote
from hnerv.data.video.split import DataSplit, data_split, slice_positions
from hnerv.data.video.writing import FrameWriter, check_target, open_writer

__all__ = [
    "CLIPS",
    "DataSplit",
    "FrameWriter",
    "Video",
    "check_target",
    "data_split",
    "frame_count",
    "is_remote",
    "load_video",
    "open_writer",
    "read_frames",
    "seeks",
    "slice_positions",
]
