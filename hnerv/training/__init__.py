"""Fitting a model to its video: the run folder, the optimiser, the loop."""

from hnerv.training.checks import check_scene, check_settings
from hnerv.training.faults import device_errors
from hnerv.training.folder import RunFolder
from hnerv.training.limits import Limits
from hnerv.training.report import announce, run_record
from hnerv.training.rollback import fit
from hnerv.training.trainer import Trainer

__all__ = [
    "Limits", "RunFolder", "Trainer", "announce", "check_scene", "check_settings", "device_errors", "fit", "run_record",
]  # fmt: skip
