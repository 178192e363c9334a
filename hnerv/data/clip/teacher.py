"""The frozen encoder: patches or sentences -> embeddings of unit norm.

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

from hnerv.data.clip.weights import (
    OPENAI_KEYS,
    Preprocess,
    Weights,
    identify,
    locate_weights,
    read_state,
    warn_of_doubt,
)
from hnerv.errors import UserError

if TYPE_CHECKING:
    from open_clip import CLIP


def load_teacher(weights: str, model: str, device: str | torch.device = "cpu", seed: int = 0) -> Teacher:
    """The frozen encoder that `--clip-weights` and `--clip-model` select, on `device`.

    weights: `auto`, TAG, FILE, FOLDER or `random`. `auto` without cache and hub is the random encoder, with a warning
    that begins with "NOT CLIP:". The global random state is unchanged. Raises UserError.
    """
    if weights == "none":
        raise UserError("--clip-weights none selects no encoder: pass auto, a tag or a file")
    return build_teacher(locate_weights(identify(weights, model, seed), seed, fall_back=weights == "auto"), device)


def build_teacher(spec: Weights, device: str | torch.device = "cpu") -> Teacher:
    """The encoder of located weights. Raises UserError for weights that cannot be read or do not fit the model."""
    with torch.random.fork_rng(devices=[]), _no_logging():
        if spec.kind == "random":
            torch.default_generator.manual_seed(int(spec.weights.removeprefix("random:")))
            net = _random_model()
        else:
            net = _empty_model(spec)
            _fill(net, spec)
    teacher = Teacher(net.to(device), spec)
    warn_of_doubt(spec)
    return teacher


class Teacher:
    """A frozen OpenCLIP model and its preprocessing.

    kind: 'clip' or 'random', and only 'clip' may be called CLIP. source, model, weights: as in `Weights`. dim: D;
    input_size: (S, S).
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
        # Always on the CPU: torchvision resizes uint8 in integers there and in floats on CUDA, and some pixels would
        # differ by one level.
        images = preprocess(patches.cpu(), self.input_size, self.spec.preprocess).to(self.device)
        # CLIP compares by the cosine a . b / (|a| |b|); with unit norm it is the dot product.
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
        """Slow to build, and a search encodes one sentence after another."""
        import open_clip

        with _no_logging():
            return open_clip.get_tokenizer(self.spec.architecture)


def preprocess(patches: Tensor, size: tuple[int, int], recipe: Preprocess) -> Tensor:
    """(B, 3, h, w) uint8 -> (B, 3, S, S) float32, equal to OpenCLIP's own transform for a square image."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    assert patches.dtype == torch.uint8, patches.dtype
    # A vision transformer has one position embedding for each of its (S / 32)^2 tokens (ViT-B/32), so the patch is
    # resized to S, and not the embeddings to the patch. OpenCLIP resizes the shorter side and crops the centre; a
    # target must see every pixel of its patch, so one that is not square is squashed. As in Pillow, which OpenCLIP
    # uses, the filter is widened where it shrinks (antialias), and the result is rounded to 8 bits before it is
    # normalised.
    images = resize(patches, list(size), interpolation=InterpolationMode(recipe.interpolation), antialias=True)
    mean, std = (patches.new_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (recipe.mean, recipe.std))
    return (images.float() / 255 - mean) / std


def _random_model() -> CLIP:
    """A vision tower small enough for one core, with a text tower that is a stub."""
    from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg

    # The class token of an untrained transformer hardly depends on the image; the mean of all tokens does.
    vision = CLIPVisionCfg(layers=3, width=128, head_width=32, patch_size=32, image_size=224, pool_type="avg")
    return CLIP(128, vision, CLIPTextCfg(context_length=2, vocab_size=2, width=8, heads=1, layers=1))


def _empty_model(spec: Weights) -> CLIP:
    """The architecture of `spec`, its weights not yet loaded."""
    import open_clip

    try:
        return open_clip.create_model(
            spec.architecture, load_weights=False, force_quick_gelu=spec.quick_gelu, pretrained_text=False
        )
    except Exception as error:  # towers of timm and transformers have exceptions of their own
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"OpenCLIP cannot build {spec.model} ({reason}): choose another --clip-model") from error


def _fill(net: CLIP, spec: Weights) -> None:
    """Load the weights of `spec` into `net`, strictly. Raises UserError."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    try:
        state = convert_state_dict(net, read_state(Path(spec.path)))
    except UserError as error:
        if not spec.repo:
            raise
        raise UserError(f"{error}; it came from the hub: delete it to download it again") from error
    # The steps of `open_clip.load_checkpoint`, but for its interpolation of position embeddings: weights of another
    # input size are of another model.
    if "positional_embedding" in state and not hasattr(net, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    expected = net.state_dict()
    for key in (*OPENAI_KEYS, "attn_mask", "text.transformer.embeddings.position_ids"):  # not weights
        if key not in expected:
            state.pop(key, None)
    for key in ("logit_scale", "logit_bias"):  # () or (1,), by the version that saved them
        if key in state and key in expected and state[key].numel() == expected[key].numel():
            state[key] = state[key].reshape(expected[key].shape)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n\t", 1)[-1].split())[:160]  # after "Error(s) in loading state_dict"
        name = spec.weights.split(" sha256:")[0]
        raise UserError(
            f"the weights {name} do not fit {spec.model} ({reason}): set --clip-model to their model, or pass other "
            "--clip-weights (OpenCLIP does not read those of Hugging Face transformers)"
        ) from error


@contextmanager
def _no_logging() -> Iterator[None]:
    """OpenCLIP would warn "initialized randomly" about a model that is filled a moment later."""
    level = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(level)
