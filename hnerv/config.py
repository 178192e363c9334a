"""The configuration of a run: frozen dataclasses with their checks, and their conversion to and from JSON.

One source for the flags and their help (`hnerv.flags`), `output/<exp>/config.json` and the configuration inside every
checkpoint and bitstream file.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from reprlib import repr as short
from typing import Literal, get_args

from hnerv.errors import UserError
from hnerv.geometry import parse_grid
from hnerv.losses import CLIP_LOSSES, LOSSES, compares_frames, formula
from hnerv.schedule import SCHEDULES, parse_lr

MAX_NUMBER, MAX_FREQUENCIES, MAX_STAGES, MAX_BLOCKS, MAX_LEVELS = 1 << 53, 1 << 12, 64, 128, 64
"""Beyond any model that fits a machine: a configuration from a file is refused before such a size is allocated."""

EmbeddingName = Literal["grid", "encoder", "pe"]
DecoderName = Literal["hnerv", "convnext"]
ActivationName = Literal["sin", "gelu"]
UnseenMode = Literal["interpolate", "encode"]
OptimizerName = Literal["muon", "adam", "adamw"]
PrecisionName = Literal["auto", "fp32", "bf16"]
CurveTarget = Literal["tensorboard", "none", "wandb"]


def knob(default, help: str, choices: tuple[str, ...] | None = None, metavar: str | None = None):
    """A field with the help text, choices and metavar of its flag."""
    return field(default=default, metadata={"help": help, "choices": choices, "metavar": metavar})


@dataclass(frozen=True)
class VideoConfig:
    """The video, and the frames and patches of it that are represented."""

    data: str = knob("bunny", "video file, image folder, or a named clip: bunny, bikes, carphone", metavar="PATH|CLIP")
    frames: str = knob("", "frame range START:STOP:STEP, a Python slice; empty: all frames", metavar="A:B:S")
    fps: float = knob(
        0.0,
        "frames per second of an image folder, raw video or stream without time stamps; 0: its own, else 24",
        metavar="RATE",
    )
    raw_video: str = knob(
        "",
        "geometry of a raw .yuv file, WIDTHxHEIGHT:PIX_FMT:FPS; empty: from a name such as "
        "Beauty_1920x1080_120fps_420_8bit_YUV.yuv",
        metavar="GEOMETRY",
    )
    crop: str = knob(
        "", "centre crop in source pixels; empty: the largest that fits grid, strides and --resize", metavar="HxW"
    )
    resize: str = knob("", "resize the crop to this size (bicubic, antialiased); empty: no resize", metavar="HxW")
    grid: str = knob("2x4", "patches per frame, rows x columns", metavar="RxC")
    data_split: str = knob("9_9_10", "frame i is trained on if i mod C < A, unseen if i mod C >= B", metavar="A_B_C")
    shuffle_data: bool = knob(False, "shuffle the frames (with --seed) before the split")


@dataclass(frozen=True)
class ClipConfig:
    """The targets of the CLIP head."""

    clip_weights: str = knob(
        "auto",
        "auto (cache, hub, else random with a warning), OpenCLIP tag, weights file, random, or none (RGB only)",
        metavar="auto|TAG|FILE|random|none",
    )
    clip_model: str = knob(
        "ViT-B-32", "OpenCLIP model name; with OpenAI weights, its QuickGELU variant", metavar="MODEL"
    )
    clip_targets: str = knob(
        "",
        "precomputed embeddings (N, P, D) from any encoder, instead of those of --clip-weights",
        metavar="FILE.safetensors",
    )


@dataclass(frozen=True)
class ModelConfig:
    """The network: embedding, decoder, heads."""

    embedding: EmbeddingName = knob(
        "grid",
        "decoder input: learned temporal grid, frame encoder or positional encoding",
        choices=get_args(EmbeddingName),
    )
    modelsize: float = knob(
        1.5, "millions of coded parameters (decoder, heads, embeddings); determines the width", metavar="MILLIONS"
    )
    decoder: DecoderName = knob(
        "hnerv",
        "hnerv: convolution and pixel shuffle, fast; convnext: bilinear upsampling and ConvNeXt blocks, half the "
        "parameters for the same PSNR",
        choices=get_args(DecoderName),
    )
    dec_width: int = knob(
        0, "channels after the stem, or of the first convnext stage; overrides --modelsize; 0: computed", metavar="N"
    )
    dec_strides: tuple[int, ...] = knob((5, 4, 4, 2, 2), "upsampling factor of each decoder stage")
    dec_depths: tuple[int, ...] = knob(
        (2,), "convnext: blocks of each stage; one number: the same for all", metavar="N"
    )
    expansion: float = knob(2.0, "convnext: hidden channels of a block, relative to its channels", metavar="FACTOR")
    rgb_stride: int = knob(1, "upsampling factor inside the RGB head (pixel shuffle), after the stages", metavar="S")
    ks: str = knob(
        "0_1_5",
        "kernel sizes: stage i = 0, 1, ... has min(D1 + 2i, D2); E must be 0 (ConvNeXt encoder)",
        metavar="E_D1_D2",
    )
    reduce: float = knob(1.2, "each stage divides the channels by this, down to --lower-width", metavar="FACTOR")
    lower_width: int = knob(12, "minimum channels of a stage", metavar="N")
    width_multiple: int = knob(
        1, "round the channels of every stage to a multiple of N; use 8 for tensor cores", metavar="N"
    )
    act: ActivationName = knob("sin", "decoder activation", choices=get_args(ActivationName))
    bilinear_init: bool = knob(True, "hnerv: initialise each stage close to bilinear upsampling")
    embed_dim: int = knob(16, "channels of the embedding", metavar="N")
    grid_levels: int = knob(3, "grid: number of temporal resolutions, each half the previous one", metavar="N")
    grid_knots: int = knob(
        0,
        "grid: knots of the finest level, at most, and with 0, frames / widest gap between training frames",
        metavar="N",
    )
    pe: str = knob("1.25_80", "pe: sine and cosine of pi B^i t, i < L", metavar="B_L")
    pe_stem: int = knob(128, "pe: width of the hidden layer after the encoding", metavar="N")
    enc_strides: tuple[int, ...] = knob((5, 4, 4, 2, 2), "encoder: downsampling factor of each stage")
    enc_width: int = knob(64, "encoder: channels of every stage except the last, which has --embed-dim", metavar="N")
    clip_site: int = knob(2, "decoder stage that feeds the CLIP head; 1: the first", metavar="STAGE")
    clip_pool: int = knob(1, "average-pool the features of a patch to N x N for the CLIP head", metavar="N")
    clip_hidden: int = knob(64, "hidden width of the CLIP head", metavar="N")
    unseen: UnseenMode = knob(
        "interpolate",
        "encoder: embed unseen frames from their neighbours or from the frame itself",
        choices=get_args(UnseenMode),
    )

    @property
    def strides(self) -> tuple[int, ...]:
        """Upsampling of every stage and of the RGB head, in order."""
        return (*self.dec_strides, self.rgb_stride)

    @property
    def kernels(self) -> tuple[int, ...]:
        """Kernel size of every stage."""
        first, last = parse_kernels(self.ks)
        return tuple(min(first + 2 * i, last) for i in range(len(self.dec_strides)))

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of every stage of `convnext`."""
        return self.dec_depths * len(self.dec_strides) if len(self.dec_depths) == 1 else self.dec_depths

    def __post_init__(self) -> None:
        parse_kernels(self.ks)
        parse_pe(self.pe)
        _check(self.dec_width > 0 or self.modelsize > 0, f"--modelsize {self.modelsize} must be above 0")
        _check_at_least(0, self, "dec_width")
        for flag, strides in (("--dec-strides", self.dec_strides), ("--enc-strides", self.enc_strides)):
            count = len(strides)
            _check(count <= MAX_STAGES, f"{flag} has {count} stages: pass at most {MAX_STAGES}")
            _check(strides and min(strides) >= 1, f"{flag} {strides} must be strides of at least 1")
        stages = len(self.dec_strides)
        _check(
            len(self.dec_depths) in (1, stages) and min(self.dec_depths) >= 1,
            f"--dec-depths {short(self.dec_depths)} must be one number of at least 1, or one for each of the {stages} "
            "stages of --dec-strides",
        )
        blocks = sum(self.depths)
        _check(
            blocks <= MAX_BLOCKS,
            f"--dec-depths {short(self.dec_depths)} makes {short(blocks)} blocks in {stages} stages: pass at most "
            f"{MAX_BLOCKS}",
        )
        _check(self.grid_levels <= MAX_LEVELS, f"--grid-levels {short(self.grid_levels)} must be at most {MAX_LEVELS}")
        _check(
            1 <= self.clip_site <= stages,
            f"--clip-site {self.clip_site} is not a decoder stage: choose from 1 to {stages}",
        )
        _check_above_0(self, "reduce", "expansion")
        _check_at_least(1, self, "lower_width", "width_multiple", "embed_dim", "grid_levels", "pe_stem", "enc_width")
        _check_at_least(1, self, "clip_pool", "clip_hidden", "rgb_stride")
        _check(self.grid_knots == 0 or self.grid_knots >= 2, f"--grid-knots {self.grid_knots} must be 0 or at least 2")


@dataclass(frozen=True)
class LossConfig:
    """total = pixel + lambda x CLIP + W x rate."""

    pixel_loss: str = knob("L2", "reconstruction loss", choices=tuple(LOSSES))
    clip_loss: str = knob(
        "cosine",
        "1 - cosine; motion adds 0.05 x the squared relative error of the change to a nearby frame",
        choices=tuple(CLIP_LOSSES),
    )
    clip_loss_weight: float = knob(0.01, "lambda, the weight of the CLIP loss", metavar="LAMBDA")
    pixel_loss_warmup_epochs: int = knob(30, "epochs of pixel loss only, before the CLIP loss starts", metavar="N")
    clip_ramp_epochs: int = knob(
        0, "epochs over which lambda rises linearly after the warm-up; 0: immediately", metavar="N"
    )
    rate_weight: float = knob(
        0.0,
        "W, the weight of the estimated rate in bits per pixel; 0: the rate is left to hnerv encode",
        metavar="WEIGHT",
    )
    rate_ramp_epochs: int = knob(0, "epochs over which W rises linearly from 0; 0: immediately", metavar="N")
    target_bpp: float = knob(
        0.0, "steer W, from --rate-weight on, to a file of this many bits per pixel; 0: constant W", metavar="BPP"
    )

    def __post_init__(self) -> None:
        _check_at_least(0, self, "clip_loss_weight", "pixel_loss_warmup_epochs", "clip_ramp_epochs")
        _check_at_least(0, self, "rate_weight", "rate_ramp_epochs", "target_bpp")
        _check(
            self.rate_weight > 0 or not (self.target_bpp or self.rate_ramp_epochs),
            "--target-bpp and --rate-ramp-epochs need a weight of the rate to start from: pass --rate-weight, "
            "as in 0.001",
        )


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation, evaluation and checkpoints."""

    epochs: int = knob(300, "passes over the training frames", metavar="N")
    batch_size: int = knob(2, "frames per step, with all their patches", metavar="N")
    lr: float = knob(0.004, "peak learning rate; muon uses a fixed multiple of it for matrices", metavar="RATE")
    lr_type: str = knob("cosine_0.05_1_0.1", "learning-rate schedule: " + ", ".join(SCHEDULES), metavar="SCHEDULE")
    embed_lr_factor: float = knob(5.0, "grid: learning rate of the knots, relative to --lr", metavar="FACTOR")
    optimizer: OptimizerName = knob("muon", "optimiser", choices=get_args(OptimizerName))
    weight_decay: float = knob(0.0, "weight decay of the optimiser", metavar="DECAY")
    blend_freq: int = knob(
        1, "every N steps, add a frame blended from two training frames along their motion; 0: never", metavar="N"
    )
    grad_clip: float = knob(1.0, "maximum L2 norm of the gradient; 0: no clipping", metavar="NORM")
    ema_decay: float = knob(
        0.0,
        "decay of an exponential moving average of the weights, which is then evaluated, saved and coded; 0: none",
        metavar="DECAY",
    )
    rate_freq: int = knob(4, "with --rate-weight: every N-th step has the rate in its loss, N times", metavar="N")
    rounding_start: float = knob(
        0.75,
        "with --rate-weight: from this fraction of training on, weights are rounded; before, noise is added to them",
        metavar="FRACTION",
    )
    seed: int = knob(0, "seed of the initialisation, the frame order and the random encoder", metavar="N")
    precision: PrecisionName = knob(
        "auto",
        "precision of convolutions and linear layers; auto: bf16 on CUDA, fp32 elsewhere",
        choices=get_args(PrecisionName),
    )
    eval_freq: int = knob(25, "evaluate every N epochs and after the last; 0: only after the last", metavar="N")
    checkpoint_freq: int = knob(1, "write latest.pt every N epochs and after the last", metavar="N")
    checkpoint_seconds: float = knob(
        0.0, "minimum seconds between writes of latest.pt, except the last", metavar="SECONDS"
    )
    params_freq: int = knob(10, "log parameter statistics every N epochs", metavar="N")

    def __post_init__(self) -> None:
        parse_lr(self.lr_type)
        _check_at_least(1, self, "epochs", "batch_size", "checkpoint_freq", "params_freq", "rate_freq")
        _check_above_0(self, "lr", "embed_lr_factor")
        _check_at_least(0, self, "weight_decay", "blend_freq", "grad_clip", "eval_freq", "seed", "checkpoint_seconds")
        _check(0 <= self.ema_decay < 1, f"--ema-decay {self.ema_decay} must be at least 0 and below 1, as in 0.999")
        _check(0 <= self.rounding_start <= 1, f"--rounding-start {self.rounding_start} must be between 0 and 1")

    def in_bf16(self, device_type: str) -> bool:
        """Whether convolutions and linear layers run in bf16 on a device of this type ('cpu', 'cuda')."""
        return self.precision == "bf16" or (self.precision == "auto" and device_type == "cuda")


@dataclass(frozen=True)
class Config:
    """One run. On one machine, equal configurations give equal weights, unless a run is rolled back."""

    video: VideoConfig = field(default_factory=VideoConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        parse_grid(self.video.grid)
        for section in dataclasses.fields(self):
            _check_values(getattr(self, section.name))
        _check(
            self.model.embedding != "encoder" or not compares_frames(self.loss.clip_loss),
            f"--clip-loss {self.loss.clip_loss} needs embeddings of frames that the step does not decode, and "
            "--embedding encoder has none: pass --clip-loss cosine",
        )
        _check(
            not self.loss.rate_weight or self.model.embedding != "encoder",
            "--rate-weight needs parameters that are coded, but the file of --embedding encoder has codes that the "
            "encoder computes: pass --embedding grid or pe",
        )
        _check(
            not self.loss.rate_weight or not self.train.ema_decay,
            "--ema-decay averages weights, which undoes the rounding of --rate-weight: remove one of them",
        )

    def to_dict(self) -> dict:
        """Plain nested dictionary, one key per section. Inverse of `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> Config:
        """Inverse of `to_dict`, also after JSON. Raises UserError naming every unknown or missing key."""
        sections = {s.name: s.default_factory for s in dataclasses.fields(cls)}
        _check_keys("the configuration", data, set(sections))
        return cls(**{name: _section(name, kind, data[name]) for name, kind in sections.items()})

    def flat(self) -> dict[str, object]:
        """{field: value} of all sections; field names are unique over the sections."""
        return {key: value for section in self.to_dict().values() for key, value in section.items()}

    def replaced(self, changes: dict[str, object]) -> Config:
        """This configuration with the fields named in `changes` set. Raises UserError for an unknown field."""
        _check_keys("this set of settings", changes, set(self.flat()), missing=False)
        sections = {}
        for section in dataclasses.fields(self):
            values = getattr(self, section.name)
            names = {f.name for f in dataclasses.fields(values)}
            sections[section.name] = dataclasses.replace(values, **{k: v for k, v in changes.items() if k in names})
        return Config(**sections)


@dataclass(frozen=True)
class LogConfig:
    """Logging of a run. Not a section of `Config`, because it does not affect training.

    It may change on resume, and neither `{params}` nor checkpoints include it; environment.json has the command of
    each start.
    """

    report_to: CurveTarget = knob(
        "tensorboard", "where to log curves and images; metrics.jsonl is always written", choices=get_args(CurveTarget)
    )
    images_freq: int = knob(1, "log images at every N-th evaluation and at the last; 0: never", metavar="N")
    histogram_freq: int = knob(
        0, "log histograms of all parameters and gradients every N epochs (slow); 0: never", metavar="N"
    )
    projector: bool = knob(True, "at the end, log predicted and true embeddings for the projector")
    graph: bool = knob(False, "log the model graph; tracing the model takes seconds")
    profile: str = knob(
        "", "write a trace of these steps for Perfetto; they take several times as long", metavar="START:STOP"
    )

    def __post_init__(self) -> None:
        _check_values(self)
        _check_at_least(0, self, "images_freq", "histogram_freq")
        parse_steps(self.profile)


def parse_steps(text: str) -> range:
    """'10:15' -> range(10, 15), step numbers from 0; '' -> empty range. Raises UserError."""
    if not text:
        return range(0)
    parts = text.split(":")
    good = len(parts) == 2 and all(_is_number(p) for p in parts) and int(parts[0]) < int(parts[1])
    _check(good, f"--profile {text!r} must be START:STOP, two step numbers with START below STOP, as in 10:15")
    return range(int(parts[0]), int(parts[1]))


def differences(ours: Config, theirs: Config) -> dict[str, tuple[object, object]]:
    """{field: (ours, theirs)} where two configurations differ."""
    other = theirs.flat()
    return {key: (value, other[key]) for key, value in ours.flat().items() if value != other[key]}


def parse_kernels(ks: str) -> tuple[int, int]:
    """'0_1_5' -> (1, 5): HNeRV's --ks without its encoder part. Raises UserError."""
    parts = ks.split("_")
    _check(len(parts) == 3 and all(_is_number(p, 4) for p in parts), f"--ks {ks!r} must be E_D1_D2, as in 0_1_5")
    encoder, first, last = map(int, parts)
    _check(encoder == 0, f"--ks {ks!r}: the ConvNeXt encoder always has 7x7 kernels: write 0_{first}_{last}")
    _check(first % 2 == 1 and last % 2 == 1, f"--ks {ks!r}: decoder kernel sizes must be odd")
    return first, last


def parse_pe(pe: str) -> tuple[float, int]:
    """'1.25_80' -> (1.25, 80), base and number of frequencies. Raises UserError."""
    try:
        base, levels = pe.split("_")
        values = float(base), int(levels[:9])
    except ValueError:
        raise UserError(f"--pe {pe!r} must be BASE_LEVELS, as in 1.25_80") from None
    _check(values[0] > 0 and values[1] > 0, f"--pe {pe!r}: base and number of frequencies must be above 0")
    _check(
        values[1] <= MAX_FREQUENCIES,
        f"--pe {pe[:40]!r} has more than {MAX_FREQUENCIES} frequencies: lower the number",
    )
    top = math.log10(math.pi) + (values[1] - 1) * math.log10(values[0])
    _check(top < 38, f"--pe {pe!r}: the highest frequency, pi B^(L - 1), is above 1e38: lower the base or the number")
    return values


def pixel_loss_help() -> str:
    """The formula of every pixel loss, one line each."""
    return "\n".join(f"  {name:14} {formula(name)}" for name in LOSSES)


def _section(name: str, kind: type, data: dict):
    hints = typing.get_type_hints(kind)
    _check_keys(f"section {name!r} of the configuration", data, set(hints))
    return kind(**{key: _typed(f"{name}.{key}", hints[key], value) for key, value in data.items()})


def _typed(name: str, hint, value):
    if typing.get_origin(hint) is Literal:
        hint = str
    if hint == tuple[int, ...]:
        fits = isinstance(value, list | tuple) and all(type(v) is int for v in value)
        value = tuple(value) if fits else value
    elif hint is float:
        fits = type(value) in (int, float)
        value = float(value) if fits else value
    else:
        fits = type(value) is hint
    _check(fits, f"{name} in the configuration is {short(value)}, not of type {getattr(hint, '__name__', hint)}")
    return value


def _check_keys(where: str, data: dict, want: set[str], missing: bool = True) -> None:
    _check(isinstance(data, dict), f"{where} is {short(data)}, not a dictionary")
    have = set(data)
    faults = [f"unknown {', '.join(sorted(str(key)[:80] for key in have - want))}"] if have - want else []
    if missing and want - have:
        faults.append(f"missing {', '.join(sorted(want - have))}")
    _check(not faults, f"{where} does not fit this version: {'; '.join(faults)}")


def _check_values(section) -> None:
    """Choices, and the range of numbers, of every field."""
    for knob_ in dataclasses.fields(section):
        value, choices, flag = getattr(section, knob_.name), knob_.metadata["choices"], _flag(knob_.name)
        if choices:
            _check(value in choices, f"{flag} {short(value)} does not exist: choose from {', '.join(choices)}")
        for number in value if isinstance(value, tuple) else (value,):
            in_range = not isinstance(number, int) or abs(number) <= MAX_NUMBER
            _check(in_range, f"{flag} {short(value)} is out of range: choose a smaller number")
        _check(not isinstance(value, float) or math.isfinite(value), f"{flag} {value} must be a finite number")


def _check_at_least(minimum: int, section, *names: str) -> None:
    for name in names:
        _check(getattr(section, name) >= minimum, f"{_flag(name)} {getattr(section, name)} must be at least {minimum}")


def _check_above_0(section, *names: str) -> None:
    for name in names:
        _check(getattr(section, name) > 0, f"{_flag(name)} {getattr(section, name)} must be above 0")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _is_number(text: str, digits: int = 18) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= digits


def _check(good: object, message: str) -> None:
    if not good:
        raise UserError(message)
