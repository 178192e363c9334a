"""Fitting a model to its video: the run folder, the optimiser, the loop."""

from hnerv.runs.folder import RunFolder
from hnerv.training.checks import check_settings
from hnerv.training.faults import device_errors
from hnerv.training.limits import Limits
from hnerv.training.running import Finished, Found, How, train_run
from hnerv.training.segmented import train_segments
from hnerv.training.trainer import Trainer

__all__ = [
    "Finished", "Found", "How", "Limits", "RunFolder", "Trainer", "check_settings", "device_errors",
    "train_run", "train_segments",
]  # fmt: skip
