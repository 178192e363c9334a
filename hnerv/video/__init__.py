"""Videos from files, folders of images and named clips, as uint8 frames; which frames train and which validate."""

from hnerv.video.clips import CLIPS
from hnerv.video.loading import Video, load_video
from hnerv.video.split import DataSplit, data_split

__all__ = ["CLIPS", "DataSplit", "Video", "data_split", "load_video"]
