"""Fitting a model to its video: the run folder, the optimiser, the loop."""

from hnerv.training.folder import RunFolder
from hnerv.training.report import announce, run_record
from hnerv.training.trainer import Trainer

__all__ = ["RunFolder", "Trainer", "announce", "run_record"]
