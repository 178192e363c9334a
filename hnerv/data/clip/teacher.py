"""The frozen encoder: patches or sentences in, embeddings of unit norm out.

Legend: B patches or sentences in a batch, h w patch pixels, S the model's input size, D embedding dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hnerv.data.clip.weights import OPENAI_KEYS, Preprocess, Weights, identify, locate, read_state, warn_of_doubt
from hnerv.errors import UserError

if TYPE_CHECKING:
    from open_clip import CLIP


def load_teacher(weights: str, model: str, device: str | torch.device = "cpu", seed: int = 0) -> Teacher:
    """The frozen encoder that `--clip-weights` and `--clip-model` name, on `device`.

    weights: `auto`, TAG, FILE, FOLDER or `random` (`none` is refused). `auto` without cache and hub gives the random
    encoder and a warning that begins with "NOT CLIP:". The global random state is left as it was.
    Raises UserError for what cannot be had, read or does not fit the model.
    """
    if weights == "none":
        raise UserError("--clip-weights none selects no encoder: pass auto, a tag or a file")
    return build_teacher(locate(identify(weights, model, seed), seed, fall_back=weights == "auto"), device)


def build_teacher(spec: Weights, device: str | torch.device = "cpu") -> Teacher:
    """The encoder of resolved weights (see `weights.locate`)."""
    with torch.random.fork_rng(devices=[]), _quiet_root_logger():
        if spec.kind == "random":
            torch.default_generator.manual_seed(int(spec.weights.removeprefix("random:")))
            net = _random_model()
        else:
            net = _empty_model(spec)
            _fill(net, _read(spec), spec)
    teacher = Teacher(net.to(device), spec)
    warn_of_doubt(spec)
    return teacher


def _read(spec: Weights) -> dict[str, Tensor]:
    try:
        return read_state(Path(spec.path))
    except UserError as error:
        if not spec.repo:
            raise
        raise UserError(f"{error}; it came from the hub: delete it to download it again") from error


class Teacher:
    """A frozen OpenCLIP model and its preprocessing.

    kind 'clip' or 'random', source one line for people, model the resolved name, weights tag, file or 'random:SEED',
    dim D, input_size (S, S). Only kind 'clip' may be called CLIP.
    """

    def __init__(self, net: CLIP, spec: Weights) -> None:
        self.net = net.eval().requires_grad_(False)
        self.spec = spec
        self.kind, self.model, self.weights, self.source = spec.kind, spec.model, spec.weights, spec.source
        self.device = next(net.parameters()).device
        size = net.visual.image_size
        self.input_size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        with torch.no_grad():
            self.dim: int = net.encode_image(torch.zeros(1, 3, *self.input_size, device=self.device)).shape[-1]

    @torch.no_grad()
    def encode_patches(self, patches: Tensor) -> Tensor:
        """(B, 3, h, w) uint8 on any device -> (B, D) float32 of unit norm on the teacher's device."""
        # On the CPU, whatever the teacher's device: torchvision resizes uint8 in integers there and in floats on CUDA,
        # and the pixels would differ by a level here and there.
        images = preprocess(patches.cpu(), self.input_size, self.spec.preprocess).to(self.device)
        return nn.functional.normalize(self.net.encode_image(images).float(), dim=-1)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """B sentences -> (B, D) float32 of unit norm on the teacher's device. Raises UserError for kind 'random'."""
        if self.kind != "clip":
            raise UserError(f"{self.source}; text has no meaning for it: pass a tag or a file to --clip-weights")
        tokens = self._tokenizer(list(texts))
        return nn.functional.normalize(self.net.encode_text(tokens.to(self.device)).float(), dim=-1)

    @cached_property
    def _tokenizer(self) -> Callable[[list[str]], Tensor]:
        """Kept, since it is slow to build: a search asks for one sentence after another."""
        import open_clip

        with _quiet_root_logger():
            return open_clip.get_tokenizer(self.spec.architecture)


def preprocess(patches: Tensor, size: tuple[int, int], recipe: Preprocess) -> Tensor:
    """(B, 3, h, w) uint8 -> (B, 3, S, S) float32, as OpenCLIP's own transform does for a square image.

    The whole patch is kept: one that is not square is squashed to the input, never cropped at its centre. As with
    Pillow, the resized pixels are rounded to 8 bits.
    """
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    assert patches.dtype == torch.uint8, patches.dtype
    images = resize(patches, list(size), interpolation=InterpolationMode(recipe.interpolation), antialias=True)
    mean, std = (patches.new_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (recipe.mean, recipe.std))
    return (images.float() / 255 - mean) / std


def _random_model() -> CLIP:
    """A vision tower small enough for one core (its text tower is a stub); averaging its tokens keeps patches apart."""
    from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=3, width=128, head_width=32, patch_size=32, image_size=224, pool_type="avg")
    return CLIP(128, vision, CLIPTextCfg(context_length=2, vocab_size=2, width=8, heads=1, layers=1))


def _empty_model(spec: Weights) -> CLIP:
    """The architecture of `spec` with weights yet to be filled in."""
    import open_clip

    try:
        return open_clip.create_model(
            spec.architecture, load_weights=False, force_quick_gelu=spec.quick_gelu, pretrained_text=False
        )
    except Exception as error:  # towers of timm and transformers raise what they like
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"OpenCLIP cannot build {spec.model} ({reason}): choose another --clip-model") from error


def _fill(net: CLIP, state: dict[str, Tensor], spec: Weights) -> None:
    """Load `state` into `net`, strictly: nothing missing, left over, or of another shape. Raises UserError."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = convert_state_dict(net, state)
    if "positional_embedding" in state and not hasattr(net, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    wanted = net.state_dict()
    for key in (*OPENAI_KEYS, "attn_mask", "text.transformer.embeddings.position_ids"):  # not weights
        if key not in wanted:
            state.pop(key, None)
    for key in ("logit_scale", "logit_bias"):
        if key in state and key in wanted and state[key].numel() == wanted[key].numel():
            state[key] = state[key].reshape(wanted[key].shape)
    if difference := _first_difference(wanted, state):
        where = spec.weights.split(" sha256:")[0]
        raise UserError(
            f"the weights {where} do not fit {spec.model}: {difference}: set --clip-model to their model, or pass "
            "other --clip-weights"
        )
    net.load_state_dict(state)


def _first_difference(wanted: dict[str, Tensor], state: dict[str, Tensor]) -> str:
    """What first tells `state` from what the model wants, '' when they fit."""
    for key, value in wanted.items():
        if key not in state:
            return f"{key} is missing"
        if state[key].shape != value.shape:
            return f"{key} has shape {tuple(state[key].shape)}, not {tuple(value.shape)}"
    extra = sorted(state.keys() - wanted.keys())
    return f"{extra[0]} is not part of it" if extra else ""


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Keep OpenCLIP's messages off the root logger, and `logging` from adding a handler to it for them.

    They would say "initialized randomly" of a model that is filled a moment later.
    """
    root, handler = logging.getLogger(), logging.NullHandler()

    def drop(record: logging.LogRecord) -> bool:
        return False

    root.addHandler(handler)
    root.addFilter(drop)
    try:
        yield
    finally:
        root.removeFilter(drop)
        root.removeHandler(handler)
