"""The Python API: train, open, decode, search, evaluate, encode. `import hnerv` exports it; the commands use it.

N frames of H W pixels, P patches of h w pixels, D embedding dimensions. Patches are numbered row by row from 0.
Every function raises UserError for a wrong argument and for a file that is missing or damaged, RunError where training
or the disk fails; the message is one sentence with the cause and the fix. A frame out of range is an IndexError.

>>> import hnerv
>>> kitchen = {"crop": "", "resize": "80x160", "modelsize": 0.05, "epochs": 2, "clip_targets": "kitchen.safetensors"}
>>> run = hnerv.train("kitchen.mp4", exp_id="kitchen", preset="demo", **kitchen)
preset   demo; ...
eval     2/2 ...
>>> coded = run.encode("kitchen.hnerv", weight_bits=6)
>>> video = hnerv.open("kitchen.hnerv")
>>> video.frames[2:4].shape
(2, 80, 160, 3)
"""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hnerv.codec import (
    BitstreamFile,
    Options,
    encode_chunk,
    evaluation_folder,
    frame_times,
    frames_in_errors,
    has_several_chunks,
    join_files,
    open_chunks,
    open_stored,
    play,
    play_patch,
    play_video,
)
from hnerv.codec.comparison.bitstreams import compare_files
from hnerv.codec.comparison.codecs import parse_codecs
from hnerv.codec.comparison.table import Comparison
from hnerv.codec.description import chunks_table, info_dict, origin_lines, parts_table
from hnerv.command import pick_device, set_up_torch
from hnerv.config import Config, LogConfig
from hnerv.data.clip import warned_once
from hnerv.data.video import check_target, open_writer
from hnerv.errors import UserError
from hnerv.evaluation import (
    Evaluation,
    combine,
    compare_head,
    evaluate_chunk,
    joint_summary,
    write_joint_evaluation,
)
from hnerv.files import check_output
from hnerv.metrics import bits_per_pixel
from hnerv.model import DualHeadHNeRV
from hnerv.runs import chunks_of
from hnerv.runs.models import NO_TARGETS
from hnerv.runs.video import StoredVideo, TrainedRun
from hnerv.search import (
    Collection,
    Embeddings,
    Encoder,
    Index,
    QueryLike,
    SearchHit,
    find_across,
    find_hits,
    open_collection,
    open_index,
    query_vectors,
    score_patches,
)
from hnerv.storage import is_remote
from hnerv.training.arguments import TrainArguments
from hnerv.vmaf import can_measure_vmaf

if TYPE_CHECKING:
    from hnerv.evaluation.head_comparison import HeadComparison

    Picture = np.ndarray[Any, np.dtype[np.uint8]]


def train(
    data: str | os.PathLike[str] = "",
    *,
    exp_id: str,
    preset: str = "",
    output: str | os.PathLike[str] = "output",
    device: str = "auto",
    threads: int = 0,
    overwrite: bool = False,
    segment_frames: int = 0,
    segment_scenes: bool = False,
    segment_init: str = "none",
    deterministic: bool = False,
    compile: bool = False,
    max_minutes: float = 0.0,
    on_divergence: str = "stop",
    **settings: Any,
) -> NeuralVideo:
    """Train a network on a video, or resume the run of this name, as `train_patch_dual.py` with the same flags.

    `data` is a video file, a folder of images, an address, or the name of a clip. `settings` are the other flags by
    name, such as epochs=100 or modelsize=0.6 (docs/flags.md). Returns the finished run, output/<exp_id>.

    >>> run = hnerv.train("kitchen.mp4", exp_id="small", preset="demo", crop="", resize="80x160", modelsize=0.05,
    ...                   epochs=1, clip_weights="none", data_split="3_3_4")
    preset   demo; ...
    eval     1/1 ...
    >>> run.values["Eval/Info/num_train_frames"], run.values["Eval/Info/num_val_frames"]
    (6.0, 2.0)
    """
    logged = {f.name for f in fields(LogConfig)}
    if unknown := [name for name in settings if name not in logged and name not in Config().flat()]:
        known = [*Config().flat(), *logged]
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]}?" if close else "docs/flags.md lists them"
        raise UserError(f"no setting is called {unknown[0]!r}: {hint}")
    defaults = Config().flat() | asdict(LogConfig())
    values = {name: plain_setting(name, value, defaults[name]) for name, value in settings.items()}
    chosen = {name: value for name, value in values.items() if name not in logged}
    arguments = TrainArguments(
        exp_id=exp_id,
        preset=preset,
        settings=chosen | ({"data": os.fspath(data)} if data else {}),
        output=Path(output),
        device=device,
        threads=threads,
        overwrite=overwrite,
        logging={name: value for name, value in values.items() if name in logged},
        segment_frames=segment_frames,
        segment_scenes=segment_scenes,
        segment_init=segment_init,
        deterministic=deterministic,
        compile=compile,
        max_minutes=max_minutes,
        on_divergence=on_divergence,
    )
    return train_run(arguments)


def plain_setting(name: str, value: Any, default: Any) -> Any:
    """A value of `train` as the type of its default, which JSON can hold. Raises UserError for another type."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    kind = type(default)
    if (kind, type(value)) in ((tuple, list), (float, int)):
        value = kind(value)
    if type(value) is not kind:
        expected = {"tuple": "list of numbers", "str": "text"}.get(kind.__name__, kind.__name__)
        raise UserError(f"setting {name} must be of type {expected}, not {value!r}: docs/flags.md explains it")
    return value


def train_run(arguments: TrainArguments) -> NeuralVideo:
    """`train` with its arguments as one object: the chunks of the video, mostly one, are trained in order."""
    arguments.check()
    set_up_torch(arguments.threads, arguments.deterministic, benchmark=True)
    from hnerv.training.chunks import prepare_run, train_chunk
    from hnerv.training.run import RuntimeOptions, check_settings
    from hnerv.training.signals import Limits

    device, log = pick_device(arguments.device), arguments.log
    limits = Limits.of(arguments.max_minutes, arguments.on_divergence)
    options = RuntimeOptions(device, log, limits, arguments.compile)
    choice = arguments.resolve(cuda=device.type == "cuda")
    check_settings(choice.config, log)
    with prepare_run(arguments.output, arguments.exp_id, choice, arguments.chunks, arguments.overwrite) as run:
        for chunk in run.chunks():
            run.add(train_chunk(chunk, options))
        run.close(log.report_to)
    return NeuralVideo(run.folder.path, arguments.device)


def open_video(path: str | os.PathLike[str], device: str = "auto", clip_weights: str = "") -> NeuralVideo:
    """Open a .hnerv file, a run folder or a checkpoint: the same object. The source video is not needed.

    `hnerv.open` is this function. `clip_weights` is the location of the CLIP weights for texts and images as queries,
    if they have moved.

    >>> video = hnerv.open("kitchen.hnerv")
    >>> len(video), video.shape, video.fps
    (8, (8, 80, 160, 3), 24.0)
    """
    if is_remote(os.fspath(path)):
        raise UserError(f"{path} is an address: copy it to this machine and pass the copy")
    if Path(path).is_file() and Path(path).suffix not in (".pt", ".hnerv"):
        raise UserError(f"{path} is no .hnerv file and no checkpoint: pass one, or train a network on a video first")
    return NeuralVideo(Path(path), device, clip_weights)


def open_folder(path: str | os.PathLike[str], device: str = "auto", clip_weights: str = "") -> VideoFolder:
    """All .hnerv files and runs under a folder, to be searched together.

    >>> hnerv.open_folder(".").search(video.embeddings[3, 5], top=1)[0].video
    'kitchen.hnerv'
    """
    return VideoFolder(Path(path), device, clip_weights)


def compare(
    files: Sequence[str | os.PathLike[str]],
    against: str = "x264,x265,svt-av1",
    *,
    data: str | os.PathLike[str] = "",
    vmaf: bool = False,
    device: str = "auto",
) -> Comparison:
    """.hnerv files of one video and other codecs on the same frames, as `hnerv compare`; str() is its table.

    `against` lists codecs as NAME or NAME:PRESET. `ours` and `codecs` of the result hold the rate points.

    >>> result = hnerv.compare(["kitchen.hnerv"], "x264:veryfast", data="kitchen.mp4")
    >>> result.ours[0].bytes == video.size, len(result.codecs["x264 veryfast"]) > 3
    (True, True)
    """
    paths = [Path(file) for file in ([files] if isinstance(files, str | os.PathLike) else files)]
    codecs = parse_codecs(against)
    if not paths:
        raise UserError("a comparison needs a file: pass at least one written by `hnerv encode`")
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(f"{missing[0]} is not a file: pass one written by `hnerv encode`")
    set_up_torch(0, deterministic=None)
    return compare_files(paths, codecs, pick_device(device), os.fspath(data), vmaf)


class NeuralVideo:
    """A video that a network represents. Made by `hnerv.open` and `hnerv.train`."""

    def __init__(self, path: Path, device: str = "auto", clip_weights: str = "") -> None:
        set_up_torch(0, deterministic=None)
        self.path, self.device, self.clip_weights = path, pick_device(device), clip_weights
        self._stored: StoredVideo = open_stored(path)
        self._open: tuple[int, DualHeadHNeRV] | None = None

    def __repr__(self) -> str:
        frames, height, width, _ = self.shape
        return f"<NeuralVideo {self.path}: {frames} frames of {height}x{width}, {self.fps:.6g} frames/s>"

    def __len__(self) -> int:
        return self._stored.frames

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, 3)."""
        return len(self), self._stored.grid.height, self._stored.grid.width, 3

    @property
    def fps(self) -> float:
        """Frames per second of the source; the mean if it varies."""
        return self._stored.fps

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self._stored.grid.rows, self._stored.grid.cols

    @property
    def num_patches(self) -> int:
        """P."""
        return self._stored.grid.patches

    @property
    def patch_size(self) -> tuple[int, int]:
        """h, w of a patch in pixels."""
        return self._stored.grid.patch_size

    @cached_property
    def times(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Seconds at which each frame is shown, (N,)."""
        clock = frame_times(self._stored, range(len(self)))
        return np.array([clock.seconds(frame) for frame in range(len(self))])

    @property
    def config(self) -> Config:
        """The configuration that the network was trained with; of a video in segments, that of the first one."""
        return self._stored.first_chunk.record.config

    @property
    def targets(self) -> str:
        """The targets of the CLIP head in one line; only embeddings of CLIP give CLIP similarities."""
        return self._stored.first_chunk.record.targets_label

    @property
    def values(self) -> dict[str, float]:
        """{Eval/ tag: value} of the last evaluation in training; empty for a file."""
        if not isinstance(self._stored, TrainedRun):
            return {}
        parts = [self._stored.open_chunk(entry).values for entry in self._stored.chunks]
        return combine(parts) if len(parts) > 1 else parts[0]

    @property
    def size(self) -> int:
        """Bytes of a .hnerv file, everything counted; 0 for a run."""
        return self.path.stat().st_size if isinstance(self._stored, BitstreamFile) else 0

    @property
    def bpp(self) -> float:
        """Bits per pixel of a .hnerv file; 0 for a run."""
        return bits_per_pixel(self.size, *self.shape[:3])

    @cached_property
    def model(self) -> DualHeadHNeRV:
        """The network, a torch module: model(times) -> rgb (B, 3, H, W) in [0, 1] and clip (B, P, D).

        >>> type(video.model).__name__, tuple(video.model(torch.zeros(1)).rgb.shape)
        ('DualHeadHNeRV', (1, 3, 80, 160))
        """
        if (count := len(self._stored.chunks)) > 1:
            raise UserError(f"{self.path} has {count} networks, one for each segment: open one of its segments")
        return self._stored.open_chunk(self._stored.chunks[0]).model().to(self.device)

    @property
    def frames(self) -> Frames:
        """Decoded frames: an index, a slice or a list of indices gives uint8 RGB, (H, W, 3) or (n, H, W, 3).

        >>> video.frames[0].shape, video.frames[-2:].dtype, sum(1 for frame in video.frames)
        ((80, 160, 3), dtype('uint8'), 8)
        """
        return Frames(self)

    def patch(self, patch: int, frames: int | slice | Sequence[int] = slice(None)) -> Picture:
        """One patch, (n, h, w, 3) uint8, or (h, w, 3) of a single frame; only its receptive field is computed.

        >>> video.patch(3, frames=slice(0, 4)).shape
        (4, 40, 40, 3)
        """
        self._check_patch(patch)
        return self._decode([*frames] if isinstance(frames, tuple) else frames, patch)

    def at(self, time: float) -> Picture:
        """The picture (H, W, 3) uint8 at a position between frames, such as 12.5; 12.0 is frame 12.

        >>> np.array_equal(video.at(2.0), video.frames[2])
        True
        """
        if not 0 <= time <= len(self) - 1:
            raise UserError(f"time {time} is outside the video: pass a frame position from 0 to {len(self) - 1}")
        first, model = self._decoder_at(time)
        # Between two segments, the last frame of the earlier one is shown.
        return next(play(model, [min(time - first, model.scene.frames - 1)]))

    @cached_property
    def embeddings(self) -> Embeddings:
        """Embeddings that the CLIP head predicts, (N, P, D), without decoding a picture.

        >>> video.embeddings.shape, video.embeddings.time[:2].round(3).tolist()
        ((8, 8, 16), [0.0, 0.042])
        """
        return Embeddings(open_index(self.path, self.device, keep=False))

    @cached_property
    def index(self) -> Index:
        """The same embeddings for searching; they are stored next to the model file."""
        return open_index(self.path, self.device)

    @cached_property
    def encoder(self) -> Encoder:
        """The model that made the targets, which turns texts and images into queries. It is loaded at first use."""
        return Encoder(self.index, self.clip_weights, self.device)

    def scores(
        self, *queries: QueryLike, avoid: Sequence[QueryLike] = (), prompts: str = "plain"
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The score of every patch, (N, P): mean cosine with the queries minus mean cosine with those to avoid.

        >>> scores = video.scores(video.embeddings[5, 2])
        >>> np.unravel_index(scores.argmax(), scores.shape) == (5, 2)
        True
        """
        return score_patches(self.index.embeddings, *query_vectors(self.encoder, queries, avoid, prompts)).numpy()

    def search(
        self,
        *queries: QueryLike,
        avoid: Sequence[QueryLike] = (),
        top: int = 5,
        per_patch: bool = False,
        prompts: str = "plain",
    ) -> list[SearchHit]:
        """The patches with the best `scores`, best first, one hit per shot.

        A query is a text, an image (a pathlib.Path, a PIL image, uint8 (h, w, 3)) or a vector (D,). Texts need the
        weights of a CLIP model, images those of the encoder of the targets; `clip_weights` of `hnerv.open` is their
        location, if they have moved. With `per_patch` every patch is a hit of its own. `prompts` 'ensemble' averages
        several sentences for each text.

        >>> hit = video.search(video.embeddings[5, 2], top=1)[0]
        >>> hit.frame, hit.patch, hit.row, hit.col
        (5, 2, 0, 2)
        """
        scores = self.scores(*queries, avoid=avoid, prompts=prompts)
        return [SearchHit(hit, self.index) for hit in find_hits(scores, top, per_patch)]

    def evaluate(
        self,
        data: str | os.PathLike[str] = "",
        *,
        clip_targets: str = "",
        unseen: str = "",
        fractional: bool = False,
        images: bool = False,
        vmaf: bool = False,
        save: bool = False,
        progress: bool = False,
    ) -> Evaluation:
        """Measure every frame against the source, training and unseen frames apart, as `eval.py`.

        `data` and `clip_targets` are needed only where the video or the targets have moved; `clip_targets` 'none'
        measures pixels only. `fractional` also measures patches between those of the grid, `vmaf` VMAF, if an FFmpeg
        with libvmaf is installed. With `save` the tables and the Eval/ tags are written where `eval.py` writes them,
        and with `images` pictures too.

        >>> report = video.evaluate("kitchen.mp4")
        >>> report["Eval/Info/num_val_frames"], report.summary["file_bytes"] == video.size
        (2.0, True)
        """
        divided, chunks, vmaf = has_several_chunks(self.path), [], vmaf and can_measure_vmaf()
        if fractional and divided:
            raise UserError("--positions fractional works on one segment only: pass its folder or its file")
        with warned_once():
            for first, open_chunk in open_chunks(self.path, self.device, os.fspath(data), unseen, clip_targets):
                chunk = evaluate_chunk(
                    open_chunk(),
                    first,
                    fractional=fractional,
                    baselines=not divided,
                    images=images,
                    vmaf=vmaf,
                    save=save,
                    progress=progress,
                )
                chunks.append(chunk)
        if not divided:
            (chunk,) = chunks
            return Evaluation(chunk.summary, chunk.folder / "eval", self.device.type, tuple(chunk.tables))
        folder, summary = evaluation_folder(self.path), joint_summary(self.path, chunks)
        if save:
            write_joint_evaluation(folder, chunks, summary)
        return Evaluation(summary, folder / "eval", self.device.type)

    def compare_head(
        self, data: str | os.PathLike[str] = "", *, clip_targets: str = "", queries: Sequence[str] = ()
    ) -> HeadComparison:
        """The CLIP head against a PCA table of the same size and other baselines, as `hnerv semantics`.

        >>> [row.name for row in run.compare_head().rows][:2]
        ['CLIP head', 'mean']
        """
        if clip_targets == NO_TARGETS:
            raise UserError("--clip-targets none leaves out the CLIP head, which is measured: pass the target file")
        if isinstance(queries, str):
            raise UserError("the queries are not a list: pass one, as in queries=['a cat']")
        if len(self._stored.chunks) > 1:
            raise UserError(f"{self.path} has several networks, one for each segment: open one of its segments")
        with warned_once():
            ((_, open_chunk),) = open_chunks(self.path, self.device, os.fspath(data), clip_targets=clip_targets)
            return compare_head(open_chunk(), queries, progress=True)

    def encode(
        self,
        output: str | os.PathLike[str],
        *,
        weight_bits: int = 8,
        latent_bits: int = 8,
        steps: str = "",
        per_channel: bool = False,
        prune: float = 0.0,
        finetune_epochs: int = 0,
        finetune_lr: float = 2e-4,
        target_bpp: float = 0.0,
        data: str | os.PathLike[str] = "",
        clip_targets: str = "",
        measure: bool = False,
        overwrite: bool = False,
    ) -> Encoding:
        """Quantise and entropy-code the networks of a run into a .hnerv file, as `hnerv encode`, which explains these.

        The video is read only for fine-tuning and with `measure`, which evaluates before and after.

        >>> coded = run.encode("six.hnerv", weight_bits=6, measure=True)
        >>> coded.video.size == os.path.getsize("six.hnerv"), coded.after["Eval/Frame/train_psnr"] > 5
        (True, True)
        """
        coding = weight_bits, latent_bits, steps, per_channel, prune, finetune_epochs, finetune_lr, target_bpp
        options, path = Options.of(*coding), Path(output)
        if path.suffix != ".hnerv":
            raise UserError(f"{path} does not end in .hnerv: choose a name that does")
        check_output(path, "output", overwrite)
        if clip_targets == NO_TARGETS:
            raise UserError(
                "--clip-targets none would leave out the CLIP head: pass the target file, or do not measure"
            )
        if isinstance(self._stored, BitstreamFile):
            raise UserError(f"{self.path} is a .hnerv file: pass the run folder or checkpoint it was made from")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".hnerv-", dir=path.parent) as folder, warned_once():
            files, measures = [], []
            for number, chunk in enumerate(chunks_of(self.path)):
                files.append(Path(folder, f"{number:05d}.hnerv"))
                place = os.fspath(data), chunk.clip_targets(clip_targets)
                measures.append(encode_chunk(chunk, options, self.device, files[-1], place, measure))
            join_files(path, files)
        before, after = (combine(part) if measure else {} for part in zip(*measures, strict=True))
        return Encoding(NeuralVideo(path, str(self.device), self.clip_weights), before, after)

    def save(
        self,
        output: str | os.PathLike[str],
        frames: range | slice = slice(None),
        patch: int | None = None,
        overwrite: bool = False,
    ) -> None:
        """Decode to a video file (.mp4, .mov: H.264; .mkv: lossless) or a folder of PNG images, as `hnerv decode`.

        One frame after the other is decoded and written. `patch` None: full frames.

        >>> video.save("decoded", frames=range(0, 8, 4))
        >>> sorted(os.listdir("decoded"))
        ['00000.png', '00004.png']
        """
        from tqdm import tqdm

        count, path = len(self), Path(output)
        chosen = range(count)[frames] if isinstance(frames, slice) else frames
        if not chosen or min(chosen) < 0 or max(chosen) >= count:
            raise UserError(f"{frames} does not select frames from 0 to {count - 1}: pass a range of them")
        self.check_output(path, patch, overwrite)
        writer = open_writer(
            path,
            self._size_of(patch),
            frame_times(self._stored, chosen),
            display=self._stored.display,
            overwrite=overwrite,
            numbers=chosen,
        )
        pictures = play_video(self._stored, chosen, self.device, patch)
        with writer as opened:
            for picture in tqdm(pictures, desc=path.name, total=len(chosen), unit="frame", disable=None):
                opened.write(picture)

    def check_output(self, output: str | os.PathLike[str], patch: int | None = None, overwrite: bool = False) -> None:
        """Raises UserError where `save` would refuse the path."""
        if patch is not None:
            self._check_patch(patch)
        check_target(Path(output), self._size_of(patch), overwrite)

    def info(self) -> dict[str, Any]:
        """The parts of a .hnerv file with their bytes, its configuration and origin, as `hnerv info --json`.

        Every section is read and its checksum verified.

        >>> sum(part["size"] for part in video.info()["parts"]) == video.size
        True
        """
        file = self._file
        for chunk in file.opened_chunks:
            chunk.check()
        return info_dict(file)

    @property
    def description(self) -> str:
        """The same as text, as `hnerv info`."""
        file = self._file
        tables = [origin_lines(file), self.parts_table]
        return "\n\n".join([*tables, chunks_table(file)] if len(file.chunks) > 1 else tables)

    @property
    def parts_table(self) -> str:
        """The bytes of the parts of a .hnerv file, as text."""
        return parts_table(self._file)

    @property
    def _file(self) -> BitstreamFile:
        if not isinstance(self._stored, BitstreamFile):
            raise UserError(f"{self.path} is not a .hnerv file: encode the run first")
        return self._stored

    def _check_patch(self, patch: int) -> None:
        if patch not in range(self.num_patches):
            raise UserError(f"patch {patch!r} does not exist: pass one from 0 to {self.num_patches - 1}")

    def _size_of(self, patch: int | None) -> tuple[int, int]:
        """Rows and columns in pixels of a frame, or of a patch."""
        return self.shape[1:3] if patch is None else self.patch_size

    def _decoder_at(self, time: float) -> tuple[int, DualHeadHNeRV]:
        """The first frame of the chunk of this time, and its network without CLIP head; one is kept in memory."""
        entry = self._stored.chunk_at(time)
        if self._open is None or self._open[0] != entry.first:
            self._open = None
            with frames_in_errors(self._stored, entry):
                self._open = entry.first, self._stored.open_chunk(entry).model(("rgb_head",)).to(self.device)
        return self._open

    def _decode(self, frames: int | slice | Sequence[int], patch: int | None = None) -> Picture:
        """Pictures (n, H, W, 3), or (H, W, 3) of a single frame. Raises IndexError."""
        # NumPy interprets the index: masks, negative numbers and wrong types behave as for an array of frames.
        numbers = np.arange(len(self))[frames]
        if numbers.ndim > 1:
            raise IndexError(f"{frames!r} does not select frames: pass an integer, a slice or a list of integers")
        pictures = [*self._pictures(np.atleast_1d(numbers).tolist(), patch)]
        if numbers.ndim == 0:
            return pictures[0]
        return np.stack(pictures) if pictures else np.empty((0, *self._size_of(patch), 3), np.uint8)

    def _pictures(self, numbers: Sequence[int], patch: int | None = None) -> Iterator[Picture]:
        """The pictures of these frames, in order, a few in memory at a time."""
        for entry, group in self._stored.by_chunk(numbers):
            first, model = self._decoder_at(entry.first)
            inner = [number - first for number in group]
            yield from play(model, inner) if patch is None else play_patch(model, inner, patch)


class Frames:
    """The frames of a video, decoded when they are read; see `NeuralVideo.frames`."""

    def __init__(self, video: NeuralVideo) -> None:
        self._video = video

    def __len__(self) -> int:
        return len(self._video)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, 3)."""
        return self._video.shape

    def __getitem__(self, frames: int | slice | Sequence[int]) -> Picture:
        return self._video._decode(frames)

    def __iter__(self) -> Iterator[Picture]:
        return self._video._pictures(range(len(self)))


class Encoding(NamedTuple):
    """The file of `NeuralVideo.encode`; with `measure`, {Eval/ tag: value} before and after coding, else empty."""

    video: NeuralVideo
    before: Mapping[str, float]
    after: Mapping[str, float]


class VideoFolder:
    """Videos that are searched together. Made by `hnerv.open_folder`."""

    def __init__(self, path: Path, device: str = "auto", clip_weights: str = "") -> None:
        set_up_torch(0, deterministic=None)
        self.path, self.device, self.clip_weights = path, pick_device(device), clip_weights
        self._collection: Collection = open_collection(path, self.device)

    def __len__(self) -> int:
        return len(self._collection.members)

    @cached_property
    def encoder(self) -> Encoder:
        """As `NeuralVideo.encoder`: all videos of a folder have the same one."""
        return Encoder(self._collection.teacher(self.device), self.clip_weights, self.device)

    def search(
        self, *queries: QueryLike, avoid: Sequence[QueryLike] = (), top: int = 5, prompts: str = "plain"
    ) -> list[SearchHit]:
        """As `NeuralVideo.search`, over all videos; `video` of a hit is its path in the folder."""
        return find_across(self._collection, *query_vectors(self.encoder, queries, avoid, prompts), top, self.device)
