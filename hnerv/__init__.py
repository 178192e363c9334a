"""Patch-based video compression with a dual-head neural representation (RGB and CLIP).

`hnerv.api` defines and explains what this package exports. It is imported at first use: `import hnerv` alone, as the
commands do to print their help, needs no torch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hnerv.api import Evaluation as Evaluation
    from hnerv.api import NeuralVideo as NeuralVideo
    from hnerv.api import VideoFolder as VideoFolder
    from hnerv.api import compare as compare
    from hnerv.api import open_folder as open_folder
    from hnerv.api import open_video as open
    from hnerv.api import train as train
    from hnerv.errors import RunError as RunError
    from hnerv.errors import UserError as UserError

# OpenMP reads this once, when torch is imported. Its waiting threads would otherwise spin for long, and a step would
# take several times as long as soon as another process wants a core.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"

__all__ = [
    "Evaluation",
    "NeuralVideo",
    "RunError",
    "UserError",
    "VideoFolder",
    "compare",
    "open",
    "open_folder",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import an exported name at its first use."""
    if name not in __all__:
        raise AttributeError(f"module 'hnerv' has no attribute {name!r}")
    import importlib

    module = importlib.import_module("hnerv.errors" if name.endswith("Error") else "hnerv.api")
    value = globals()[name] = getattr(module, "open_video" if name == "open" else name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
