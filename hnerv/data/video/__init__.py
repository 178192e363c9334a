"""Videos as uint8 frames: reading files, folders of images and named clips, writing them, and splitting frames."""

from hnerv.data.video.loader import Video, frame_count, load_video, read_frames, seeks
from hnerv.data.video.sources import CLIPS
from hnerv.data.video.split import DataSplit, data_split, slice_positions
from hnerv.data.video.writer import FrameWriter, check_target, open_writer

__all__ = [
    "CLIPS",
    "DataSplit",
    "FrameWriter",
    "Video",
    "check_target",
    "data_split",
    "frame_count",
    "load_video",
    "open_writer",
    "read_frames",
    "seeks",
    "slice_positions",
]
