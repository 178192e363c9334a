"""`hnerv rate-distortion`: train and encode the points of a curve, and compare it with video codecs."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hnerv.cli import add_device
from hnerv.command import pick_device, set_up_torch
from hnerv.config import LogConfig
from hnerv.errors import RunError, UserError
from hnerv.flags import Parser, add_arithmetic, add_config_flags, add_limits, split_settings
from hnerv.presets import PRESETS, Choice

if TYPE_CHECKING:
    from hnerv.runs.folder import RunFolder
    from hnerv.training.run import RuntimeOptions
    from hnerv.training.trainer import Trainer

USES_TORCH = False
"""Set up by `run`, because training has other settings than decoding."""

PRESET = "demo-codec"
ALL_FRAMES = "1_1_1"
"""--data-split without unseen frames: the other codecs code all frames."""
SIZE_SPAN = 2.0
"""The models have --modelsize times f, with f from 1 / SIZE_SPAN to SIZE_SPAN in equal ratios."""
MAX_POINTS = 64
"""Neighbours differ by more than 2 %, so that sizes of 3 digits, and the names of the points, are distinct."""
WEIGHT_EXPONENT = -1.5
"""A model of f times the base size has --rate-weight times f^WEIGHT_EXPONENT.

Training minimises D + w R, so it ends where the curve D(R) has the slope -w. The slope falls by about 3 = 2^1.5 per
doubling of the rate, as that of D ~ R^-0.5, and the rate is roughly proportional to the size. One w for all sizes would
draw the points together.
"""


def add_arguments(parser: Parser) -> None:
    """The flags of the verb and of a training run."""
    group = parser.add_argument_group("curve")
    add = group.add_argument
    output = "folder of the curve: a run folder and a file per point, the comparison as CSV, JSON and a plot"
    add("-o", "--output", type=Path, required=True, metavar="FOLDER", help=output)
    points = "points, half to twice --modelsize in equal ratios; BD-rates need 4 (4)"
    add("--points", type=int, default=4, metavar="N", help=points)
    preset = f"one of {', '.join(PRESETS)}; flags override it ({PRESET}; with --data, without its crop)"
    add("--preset", default="", metavar="NAME", help=preset)
    codecs = "as in `hnerv compare` (x264,x265,svt-av1)"
    add("--against", default="x264,x265,svt-av1", metavar="CODECS", help=codecs)
    add_device(group)
    add_arithmetic(group)
    add("--overwrite", action="store_true", help="move existing runs of these points aside and start over")
    add_limits(group)
    one_network = "remove it; the comparison reads files with one network"
    rejected = {
        "exp_id": "remove it; each point is named after its size",
        "target_bpp": "set --rate-weight, from which that of each point follows",
        "dec_width": "set --modelsize, from which the width of each point follows",
        **dict.fromkeys(("segment_frames", "segment_scenes", "segment_init"), one_network),
    }
    add_config_flags(parser, rejected)


def run(args: argparse.Namespace) -> None:
    """Trains and encodes the points that are missing, then compares. Raises UserError before anything is written."""
    settings, logging = split_settings(vars(args))
    choice, log = curve_choice(args.preset, settings), LogConfig(**logging)
    points = ladder(choice, args.points)
    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output} is a file: pass a folder")
    set_up_torch(args.threads)
    import hnerv
    from hnerv.codec.comparison.codecs import check_codecs, check_encoders, parse_codecs
    from hnerv.codec.comparison.table import write_comparison
    from hnerv.runs.folder import RunFolder
    from hnerv.training.run import RuntimeOptions, check_settings
    from hnerv.training.signals import Limits

    codecs, device = parse_codecs(args.against), pick_device(args.device)
    check_encoders(codecs)
    check_settings(choice.config, log)

    def check_size(trainer: Trainer) -> None:
        """Before the first step, so that no curve is trained that the codecs cannot be compared with."""
        check_codecs(codecs, (trainer.model.scene.height, trainer.model.scene.width))

    limits = Limits.of(args.max_minutes, args.on_divergence)
    options = RuntimeOptions(device, log, limits, args.compile, on_save=check_size)
    with renamed_flags():
        folders = [RunFolder.at(args.output, point.name, point.choice, args.overwrite) for point in points]
        for number, (point, folder) in enumerate(zip(points, folders, strict=True), 1):
            print(f"\npoint {number} of {len(points)}: {point}", flush=True)
            set_up_torch(args.threads, args.deterministic, benchmark=True)  # encoding the last point has changed it
            train_point(point, folder, options)
            encode_point(folder, file_of(folder), options)
    files = [file_of(folder) for folder in folders]
    comparison = hnerv.compare(files, args.against, data=choice.config.video.data, device=args.device)
    print(f"\n{comparison}")
    written = [path.name for path in write_comparison(args.output, comparison)]
    print(f"files: {', '.join(written)} in {args.output}")


class CurvePoint(NamedTuple):
    """A model of the curve: the name of its run, such as 0.12m for 0.12 million parameters, and its settings."""

    name: str
    choice: Choice

    def __str__(self) -> str:
        config = self.choice.config
        weight = f" --rate-weight {config.loss.rate_weight:g}" if config.loss.rate_weight else ""
        return f"{self.name}, --modelsize {config.model.modelsize:g}{weight}"


def curve_choice(preset: str, settings: dict[str, object]) -> Choice:
    """The settings that the points are derived from. Raises UserError.

    The crop of the default preset is that of its clip, so another video is cropped as little as possible.
    """
    defaults: dict[str, object] = {"data_split": ALL_FRAMES}
    if not preset and "data" in settings:
        defaults["crop"] = ""
    return Choice.of(preset or PRESET, defaults | settings)


def ladder(choice: Choice, points: int) -> list[CurvePoint]:
    """The points in order of size. Raises UserError for a number of them that is out of range."""
    if not 2 <= points <= MAX_POINTS:
        raise UserError(f"--points {points} must be at least 2, and at most {MAX_POINTS}")
    size, weight, found = choice.config.model.modelsize, choice.config.loss.rate_weight, []
    for number in range(points):
        factor = SIZE_SPAN ** (2 * number / (points - 1) - 1)
        changes = {"modelsize": _rounded(size * factor), "rate_weight": _rounded(weight * factor**WEIGHT_EXPONENT)}
        moved = choice._replace(config=choice.config.replaced(changes))
        found.append(CurvePoint(f"{changes['modelsize']:g}m", moved))
    return found


def train_point(point: CurvePoint, folder: RunFolder, options: RuntimeOptions) -> None:
    """Train a point to its end, or resume it; a finished one is kept. Raises as `fit`, and Interrupted after a stop."""
    from hnerv.training.chunks import finished_run, train_chunk
    from hnerv.training.run import ChunkRun

    if not folder.overwrite and finished_run(folder):
        print("already trained")
        return
    result = train_chunk(ChunkRun(point.choice, folder), options)
    if result.stop:
        again = "the same command without --overwrite" if folder.overwrite else "the same command"
        raise result.stop.interruption(f"stopped after training {folder.path}, which is saved; run {again} to resume")


def encode_point(folder: RunFolder, file: Path, options: RuntimeOptions) -> None:
    """Write the file of a trained point with the defaults of `hnerv encode`, unless one newer than the run exists."""
    import hnerv

    if file.is_file() and file.stat().st_mtime_ns > folder.latest.stat().st_mtime_ns:
        print("already encoded")
        return
    hnerv.open(folder.path, str(options.device)).encode(file, overwrite=True)
    print(f"{file}  {file.stat().st_size:,} bytes", flush=True)


def file_of(folder: RunFolder) -> Path:
    """FOLDER/0.12m -> FOLDER/0.12m.hnerv."""
    return folder.path.with_name(f"{folder.path.name}.hnerv")


@contextlib.contextmanager
def renamed_flags() -> Iterator[None]:
    """Errors of a run in the block that propose another --exp-id propose another -o."""
    try:
        yield
    except (UserError, RunError) as error:
        error.args = tuple(str(text).replace("--exp-id", "-o") for text in error.args)
        raise


def _rounded(value: float) -> float:
    """To 3 significant digits, for short names and settings."""
    return float(f"{value:.3g}")
