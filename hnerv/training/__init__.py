"""Fitting a model to its video: the run folder, the optimiser, the loop."""

from hnerv.training.checks import check_scene, check_settings
from hnerv.training.folder import RunFolder
from hnerv.training.report import announce, run_record
from hnerv.training.trainer import Trainer

__all__ = ["RunFolder", "Trainer", "announce", "check_scene", "check_settings", "run_record"]
