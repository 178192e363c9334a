"""The frozen OpenCLIP encoder, and its embeddings of the patches of a video: the targets of the CLIP head."""

from hnerv.data.clip.targets import Targets, clip_targets
from hnerv.data.clip.teacher import Teacher, load_teacher
from hnerv.data.clip.weights import warned_once

__all__ = ["Targets", "Teacher", "clip_targets", "load_teacher", "warned_once"]
