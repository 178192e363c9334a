"""The video, scene and targets of a configuration, and a store that serves its frames to training steps.

N frames, F of them for training, B batch, K blends, P patches, H W pixels, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hnerv.config import Config
from hnerv.data.clip import Targets, clip_targets
from hnerv.data.cuts import cuts_of, frame_changes
from hnerv.data.video import Video, data_split, load_video
from hnerv.geometry import PatchGrid, parse_grid
from hnerv.model.predict import to_uint8
from hnerv.model.scene import Scene, frame_multiple
from hnerv.motion import between as between_frames


class Material(NamedTuple):
    """The data that a configuration refers to."""

    video: Video
    scene: Scene
    targets: Targets | None


def load_material(config: Config, device: torch.device, progress: bool = False) -> Material:
    """Read the video, split its frames and get the targets, from the cache if they are there. Raises UserError."""
    knobs = config.video
    multiple = frame_multiple(knobs, config.model)
    video = load_video(
        knobs.data,
        crop=knobs.crop,
        resize=knobs.resize,
        frames=knobs.frames,
        multiple=multiple,
        raw_video=knobs.raw_video,
        fps=knobs.fps,
    )
    count, _, height, width = video.frames.shape
    split = data_split(count, knobs.data_split, config.train.seed if knobs.shuffle_data else None)
    grid = PatchGrid(height, width, *parse_grid(knobs.grid))
    targets = clip_targets(
        video.frames,
        grid,
        weights=config.clip.clip_weights,
        model=config.clip.clip_model,
        targets_file=config.clip.clip_targets,
        digest=video.digest,
        device=device,
        seed=config.train.seed,
        progress=progress,
    )
    scene = Scene(
        frames=count,
        height=height,
        width=width,
        rows=grid.rows,
        cols=grid.cols,
        fps=video.fps,
        train=tuple(split.train.tolist()),
        val=tuple(split.val.tolist()),
        clip_dim=0 if targets is None else targets.embeddings.shape[-1],
        times=video.times,
    )
    return Material(video, scene, targets)


class Near(NamedTuple):
    """Frames for the CLIP loss only, without pixels: times (B,), clip (B, P, D) of unit norm."""

    times: Tensor
    clip: Tensor


class Batch(NamedTuple):
    """times (B,) frame positions, frames (B, 3, H, W) in [0, 1], clip (B, P, D) of unit norm or None.

    The first `real` of them are frames of the video, the others are blends of two. `near` are training frames near the
    real ones, for CLIP losses that compare frames.
    """

    times: Tensor
    frames: Tensor
    clip: Tensor | None
    real: int
    near: Near | None = None

    @property
    def embedded(self) -> Tensor | None:
        """Times (N,) of the near frames, which are embedded and not drawn."""
        return None if self.near is None else self.near.times


class FrameStore:
    """The frames as uint8 and the targets: on the device if they fit, otherwise in host memory.

    Row r of the store is frame r of the video for r < N. With `blend_seed`, row N + k is blend k, at the time
    `between[k]`: the motion-compensated picture between the two nearest training frames, and the normalised blend of
    their targets. There are none where every frame is trained.
    """

    # A blend never reads a frame that is not trained. Blends are computed once, when a step first needs them, and kept
    # as uint8 like frames.

    SHARE_OF_DEVICE_MEMORY = 0.5

    def __init__(
        self, material: Material, device: torch.device, share_of_device: float = 1.0, blend_seed: int | None = None
    ) -> None:
        """`share_of_device` is the part of a GPU that this process may use. `blend_seed` None: no blends."""
        self.device, scene = device, material.scene
        frames = material.video.frames.permute(0, 2, 3, 1)
        self._train = torch.tensor(scene.train)
        self.between = torch.empty(0)
        has_gaps = len(scene.train) <= scene.train[-1] - scene.train[0]
        if blend_seed is not None and has_gaps:
            cuts = cuts_of(frame_changes(frames[frame].numpy() for frame in scene.train))
            self.between = blend_times(self._train, cuts, blend_seed)
        pictures = len(frames) + len(self.between)
        self.resident = device.type == "cpu" or pictures * frames[0].nbytes < _room(device, share_of_device)
        # Channels last, as the network computes: converting between layouts costs several times the arithmetic.
        self._frames = _copied_in_parts(frames, device if self.resident else torch.device("cpu"))
        self._blends = self._frames[:0]
        self._missing = set(range(len(self.between)))
        self._clip = None if material.targets is None else self._with_blends(material.targets.embeddings.to(device))

    @property
    def num_frames(self) -> int:
        """N, the row of the first blend."""
        return len(self._frames)

    def frames(self, positions: Tensor) -> Tensor:
        """Positions (B,) -> frames (B, 3, H, W) in [0, 1] on the device, channels last in memory."""
        return self._unit(self._levels(positions))

    def clip(self, rows: Tensor) -> Tensor | None:
        """Rows (B,) -> targets (B, P, D) on the device; None without targets."""
        return None if self._clip is None else self._clip.index_select(0, rows.to(self.device, non_blocking=True))

    def batch(self, positions: Tensor) -> Batch:
        """Frames at the positions (B,) of the video -> a Batch on the device."""
        return self.gather(positions.to(self.device, non_blocking=True).float(), positions, len(positions))

    def gather(self, times: Tensor, rows: Tensor, real: int, clip: bool = True) -> Batch:
        """The Batch of `rows` at `times`: `real` frames, then blends that `make` has computed.

        No operation waits for the device, and with `rows` on the device no shape depends on their values: a CUDA graph
        can hold it.
        """
        levels = self._levels(rows[:real])
        if len(rows) > real:
            levels = torch.cat([levels, _select(self._blends, rows[real:] - len(self._frames))])
        return Batch(times, self._unit(levels), self.clip(rows) if clip else None, real)

    @torch.no_grad()
    def make(self, rows: Tensor) -> None:
        """Compute the blends of these rows (E,), a tensor on the CPU, that are still missing."""
        # One at a time, so that a blend does not depend on those computed with it: a resumed run has the same.
        for blend in self._missing.intersection((rows - len(self._frames)).tolist() if self._missing else ()):
            low, high, share = self._neighbours(self.between[blend : blend + 1])
            picture = between_frames(self.frames(low), self.frames(high), share)
            if not len(self._blends):
                self._blends = self._frames.new_empty(len(self.between), *self._frames.shape[1:])
            self._blends[blend] = to_uint8(picture)[0].permute(1, 2, 0)
            self._missing.remove(blend)

    def _with_blends(self, targets: Tensor) -> Tensor:
        """Targets (N, P, D) of the frames -> targets of all rows."""
        low, high, share = self._neighbours(self.between)
        blends = torch.lerp(targets[low.to(targets.device)], targets[high.to(targets.device)], share.view(-1, 1, 1))
        return torch.cat([targets, F.normalize(blends, dim=-1)])

    def _neighbours(self, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Times (E,) -> the training frames before and after, and the share (E,) of the way, on the device."""
        after = torch.searchsorted(self._train.float(), times).clamp(min=1)
        low, high = self._train[after - 1], self._train[after]
        return low, high, ((times - low) / (high - low)).to(self.device)

    def _levels(self, positions: Tensor) -> Tensor:
        return _select(self._frames, positions)

    def _unit(self, levels: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, 3, H, W) in [0, 1] on the device, channels last in memory."""
        if levels.device.type != self.device.type:
            levels = levels.pin_memory().to(self.device, non_blocking=True)
        return levels.permute(0, 3, 1, 2).float().div_(255)


def training_store(
    material: Material, config: Config, device: torch.device, share_of_device: float = 1.0
) -> FrameStore:
    """The store of a training run: with blends, unless `--blend-freq` is 0."""
    return FrameStore(material, device, share_of_device, config.train.seed if config.train.blend_freq else None)


def blend_times(train: Tensor, cuts: Sequence[int], seed: int) -> Tensor:
    """Times (K,), ascending, uniform from the first to the last of the training frames (F,); K <= F.

    `cuts` are indices into `train` of frames that start a scene: between two scenes there is nothing to blend.
    """
    # One time is drawn from each of F equal intervals: the density is the same everywhere, less than one blend for each
    # frame of the video, whether a position is trained, held out or unused. A draw that depended on the positions of
    # held-out frames would show the model pictures of exactly the times that it is tested on.
    first, last = train[0].item(), train[-1].item()
    draw = torch.rand(len(train), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    times = (first + (last - first) * (torch.arange(len(train)) + draw) / len(train)).float()
    after = torch.searchsorted(train.float(), times).clamp(min=1)
    return times[~torch.isin(after, torch.tensor(cuts, dtype=torch.long))]


def _room(device: torch.device, share: float) -> float:
    """Bytes that frames may take of a CUDA device."""
    free, total = torch.cuda.mem_get_info(device)
    return FrameStore.SHARE_OF_DEVICE_MEMORY * min(free, share * total)


def _copied_in_parts(frames: Tensor, device: torch.device) -> Tensor:
    """Contiguous on the device, copied in parts: no second copy of all frames exists at any time."""
    if frames.device.type == device.type:
        return frames.contiguous()
    copy = torch.empty(frames.shape, dtype=frames.dtype, device=device)
    for part, source in zip(copy.split(16), frames.split(16), strict=True):
        part.copy_(source)
    return copy


def _select(pictures: Tensor, rows: Tensor) -> Tensor:
    """Rows (B,) of pictures (N, H, W, 3), on their device."""
    # A copy of `rows` to the CPU has to wait, because they are read at once.
    return pictures.index_select(0, rows.to(pictures.device, non_blocking=pictures.is_cuda))
