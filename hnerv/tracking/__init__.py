"""TensorBoard and metrics.jsonl: the table of tags and the run logger."""

from hnerv.tracking.logger import NullLogger, RunLogger, events_folder, metrics_file, rewind
from hnerv.tracking.projector import Points
from hnerv.tracking.tags import split_label, split_name, tags

__all__ = ["NullLogger", "Points", "RunLogger", "events_folder", "metrics_file", "rewind"]
__all__ += ["split_label", "split_name", "tags"]
