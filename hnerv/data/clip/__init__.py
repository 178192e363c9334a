"""The frozen OpenCLIP teacher, and the targets it gives for the patches of a video, computed once and cached."""

from hnerv.data.clip.targets import Targets, clip_targets
from hnerv.data.clip.teacher import Teacher, load_teacher
from hnerv.data.clip.weights import warned_once

__all__ = ["Targets", "Teacher", "clip_targets", "load_teacher", "warned_once"]
