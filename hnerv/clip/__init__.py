"""The frozen OpenCLIP teacher, and the targets it gives for the patches of a video, computed once and cached."""

from hnerv.clip.targets import Targets, clip_targets
from hnerv.clip.teacher import Teacher, load_teacher
from hnerv.clip.weights import warned_once

__all__ = ["Targets", "Teacher", "clip_targets", "load_teacher", "warned_once"]
