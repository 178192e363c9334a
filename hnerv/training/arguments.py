"""The arguments of a training, as given on the command line or to `hnerv.train`. Imports no torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hnerv.config import LogConfig
from hnerv.data.chunks import ChunkOptions
from hnerv.files import read_json
from hnerv.presets import PRESETS, Choice


@dataclasses.dataclass(frozen=True)
class TrainArguments:
    """The command line of `train_patch_dual.py`, or the arguments of `hnerv.train`.

    `settings` and `logging` hold the fields of `Config` and of `LogConfig` that were given; `preset` may be empty.
    """

    exp_id: str
    preset: str = ""
    settings: dict[str, object] = dataclasses.field(default_factory=dict)
    output: Path = Path("output")
    device: str = "auto"
    threads: int = 0
    overwrite: bool = False
    debug: bool = False
    logging: dict[str, object] = dataclasses.field(default_factory=dict)
    segment_frames: int = 0
    segment_scenes: bool = False
    segment_init: str = "none"
    deterministic: bool = False
    compile: bool = False
    max_minutes: float = 0.0
    on_divergence: str = "stop"

    def resolve(self, cuda: bool) -> Choice:
        """Defaults, changed by the preset, changed by the flags that were given.

        Without --preset and --data: the preset of the run that is resumed, else Bunny at the size that the machine
        can train. Raises UserError.
        """
        name = self.preset
        if not name and "data" not in self.settings:
            name = self._preset_of_run() or ("bunny-1.5m-fast" if cuda else "demo")
        return Choice.of(name, self.settings)

    @property
    def chunks(self) -> ChunkOptions:
        """The --segment- flags. Raises UserError where they contradict each other."""
        return ChunkOptions(self.segment_frames, self.segment_scenes, self.segment_init).checked()

    def check(self) -> None:
        """Raises UserError for settings that are refused before anything is loaded."""
        _ = self.chunks, self.resolve(cuda=False), self.log

    @property
    def log(self) -> LogConfig:
        """Raises UserError."""
        return LogConfig(**self.logging)

    def _preset_of_run(self) -> str:
        folder = self.output / self.exp_id
        path = folder / ("segments/00000/config.json" if self.segment_frames or self.segment_scenes else "config.json")
        record = read_json(path) if path.is_file() and not self.overwrite else None
        name = record.get("preset", "") if isinstance(record, dict) else ""
        return name if name in PRESETS else ""
