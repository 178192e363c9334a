"""The encoder weights that `--clip-weights` selects: a tag, a file, a folder or a random encoder."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hnerv.data.clip import hub
from hnerv.errors import UserError
from hnerv.files import read_json, sha256_of
from hnerv.storage import local_path

if TYPE_CHECKING:
    from torch import Tensor

AUTO_TAG = "openai"
RANDOM_MODEL = "random-ViT-32-w128-l3"
CONFIG_NAME = "open_clip_config.json"
OPENAI_KEYS = {"input_resolution", "context_length", "vocab_size"}  # only in files that OpenAI itself published
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")
_log = logging.getLogger("hnerv")
_NOT_CLIP = {"subject": "NOT CLIP"}
"""Both warnings about the random encoder have this subject, so `warned_once` keeps one of them."""


class Preprocess(NamedTuple):
    """Mean and deviation per channel of pixels in [0, 1], and the resize: 'bicubic' or 'bilinear'."""

    # Statistics of OpenAI's training images. An encoder is trained on (pixel - mean) / std, and weights published with
    # other values (SigLIP: 0.5 and 0.5) bring theirs along.
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"


class Weights(NamedTuple):
    """Weights to load. Known before a model is built and before the hub is contacted."""

    kind: str  # 'clip' or 'random'
    model: str  # resolved name, with -quickgelu where that is the activation
    # The fingerprint of the weights: tag, 'NAME sha256:HEX' or 'random:SEED'. It is part of the key of cached targets
    # and of the record of a run. A hash of the content, not the path: a moved file is the same encoder, and another
    # file under an old name is not.
    weights: str
    source: str  # one line for people
    architecture: str = ""  # for `open_clip.create_model`; '' for the random encoder
    quick_gelu: bool = False
    preprocess: Preprocess = Preprocess()
    path: str = ""  # file of the weights; '' for the random encoder and before `locate_weights`
    repo: str = ""  # repository of a tag on the hub
    files: tuple[str, ...] = ()  # names of its weights there, best first
    doubt: str = ""  # the warning for `warn_of_doubt`


def identify(weights: str, model: str, seed: int) -> Weights:
    """`auto` (the tag openai), TAG, FILE, FOLDER (or local-dir:FOLDER) or `random` -> the weights it selects.

    Reads local files, never the network. Raises UserError for an unknown model, tag or file.
    """
    import open_clip

    if weights == "random":
        return random_weights(seed)
    if weights.startswith("local-dir:"):
        return _of_folder(Path(weights.removeprefix("local-dir:")))
    if model not in (models := open_clip.list_models()):
        near = difflib.get_close_matches(model, models, n=3, cutoff=0.3) or ["ViT-B-32"]
        raise UserError(f"OpenCLIP has no model {model!r}: set --clip-model to one such as {', '.join(near)}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    tag = AUTO_TAG if weights == "auto" else weights.lower().replace("-", "_")
    if tag in tags:
        return _of_tag(tag, model)
    path = local_path(weights)
    if weights and path.is_dir():
        return _of_folder(path)
    if path.is_file():
        return _of_file(path, model)
    if path.name != weights or path.suffix in (".safetensors", ".pt", ".pth", ".bin"):
        raise UserError(f"--clip-weights {weights}: no such file: pass a file of weights, a tag, auto, random or none")
    known = ", ".join(difflib.get_close_matches(weights, tags, n=4, cutoff=0.0)) or "(it has none)"
    cause = f"{weights!r} is neither a file nor a tag of {model}"
    if weights == "auto":
        cause = f"auto means the tag {AUTO_TAG}, which {model} does not have"
    raise UserError(f"--clip-weights {cause}: pass a tag such as {known}, a file, auto, random or none")


def locate_weights(spec: Weights, seed: int, fall_back: bool) -> Weights:
    """`spec` with the path of its file; a tag is looked up in the Hugging Face cache, else downloaded.

    Where neither has it, `fall_back` (for `auto`) returns the random encoder, else raises UserError. The random
    encoder is always announced by a warning.
    """
    cause = fix = ""
    if spec.repo:
        try:
            return spec._replace(path=hub.cached(spec.repo, spec.files) or hub.fetch(spec.repo, spec.files))
        except hub.HubUnavailable as error:
            cause = f"the weights {spec.weights} of {spec.model} are not in the Hugging Face cache, and {error}"
            fix = ": make the hub reachable, or pass --clip-weights FILE or --clip-targets FILE"
            if not fall_back:
                raise UserError(f"{cause}{fix}, or --clip-weights auto for random targets") from error
    elif spec.kind == "clip":
        return spec
    _log.warning(
        "NOT CLIP: %sthe targets come from a RANDOM encoder (seed %d) and have no meaning; no number based on them is "
        "a CLIP number%s",
        cause and f"{cause}; ",
        seed,
        fix,
        extra=_NOT_CLIP,
    )
    return random_weights(seed)


def random_weights(seed: int) -> Weights:
    """The randomly initialised encoder that replaces CLIP where there are no weights."""
    return Weights("random", RANDOM_MODEL, f"random:{seed}", f"RANDOM encoder, seed {seed}: not CLIP")


def warn_of_doubt(spec: Weights) -> None:
    """Called when weights are in use: for those that cannot be loaded, the error is enough."""
    if spec.doubt:
        _log.warning("%s", spec.doubt, extra={"subject": spec.doubt})


@contextlib.contextmanager
def warned_once() -> Iterator[None]:
    """Within the block, log each warning about the targets once, although every segment computes its own."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        subject = getattr(record, "subject", "")
        repeated = bool(subject) and subject in seen
        seen.add(subject)
        return not repeated

    _log.addFilter(is_new)
    try:
        yield
    finally:
        _log.removeFilter(is_new)


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file or a PyTorch state dict, on the CPU. Never unpickles code.

    Raises UserError for a TorchScript archive, a damaged file and one with other objects.
    """
    import torch
    from safetensors.torch import load_file

    safe = path.suffix == ".safetensors"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about a TorchScript archive before it refuses it
            state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load documents no list of exceptions for damaged files
        reason, kind = " ".join(str(error).split())[:82], "safetensors" if safe else "a plain state dict"
        raise UserError(
            f"--clip-weights {path} cannot be read as {kind} ({reason}): pass an intact file, preferably .safetensors, "
            "or a tag such as openai"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    items = state.items() if isinstance(state, dict) else ()
    if not items or not all(isinstance(value, torch.Tensor) or key in OPENAI_KEYS for key, value in items):
        raise UserError(f"--clip-weights {path} has no state dict of tensors: pass a .safetensors file")
    return {key.removeprefix("module."): value for key, value in items}


def _of_tag(tag: str, model: str) -> Weights:
    from open_clip import get_pretrained_cfg

    config = get_pretrained_cfg(model, tag)
    repo, _, name = config["hf_hub"].rpartition("/")
    files = (re.sub(r"\.(bin|pth)$", ".safetensors", name), name) if name else WEIGHT_FILES[:2]
    built, resolved, quick = _with_activation(model, bool(config.get("quick_gelu")))
    source = f"OpenCLIP {resolved}, {tag}"
    return Weights("clip", resolved, tag, source, built, quick, _preprocess(config), repo=repo, files=files)


def _of_file(path: Path, model: str) -> Weights:
    quick, reason = _recognise(path, model)
    built, resolved, quick = _with_activation(model, quick)
    name, doubt = "QuickGELU" if quick else "GELU", ""
    if not reason and not quick and _with_activation(model, True)[0] != model:
        doubt = (
            f"it is unknown whether {path.name} was trained with QuickGELU; using GELU, as {model} does: "
            f"for weights from OpenAI, pass --clip-model {model}-quickgelu"
        )
    source = f"OpenCLIP {resolved}, file {path.name} ({name}{reason or ', as in --clip-model'})"
    preprocess = _preprocess(_config_of(path.parent).get("preprocess_cfg", {}))
    return Weights("clip", resolved, _fingerprint(path), source, built, quick, preprocess, str(path), doubt=doubt)


def _of_folder(folder: Path) -> Weights:
    """A folder as OpenCLIP saves it to the hub: its config gives architecture, activation and preprocessing."""
    config = _config_of(folder)
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if "model_cfg" not in config or path is None:
        raise UserError(
            f"--clip-weights {folder} has no {CONFIG_NAME} with a model_cfg, or no weights "
            f"({', '.join(WEIGHT_FILES)}): pass a folder with both, a file or a tag"
        )
    shape = hashlib.sha256(json.dumps(config["model_cfg"], sort_keys=True).encode()).hexdigest()[:8]
    return Weights(
        kind="clip",
        model=f"local-dir:{folder.resolve().name}@{shape}",
        weights=_fingerprint(path),
        source=f"OpenCLIP folder {folder.resolve().name} (architecture and activation from its {CONFIG_NAME})",
        architecture=f"local-dir:{folder.resolve()}",
        quick_gelu=bool(config["model_cfg"].get("quick_gelu")),
        preprocess=_preprocess(config.get("preprocess_cfg", {})),
        path=str(path),
    )


def _fingerprint(path: Path) -> str:
    return f"{path.name} sha256:{sha256_of(path)}"


# QuickGELU is x * sigmoid(1.702 x), OpenAI's approximation of GELU, x * Phi(x). It has no parameters: weights trained
# with one fit a model with the other, key by key, and the embeddings are plausible but wrong. OpenCLIP lists both as
# models (NAME and NAME-quickgelu), only warns where a tag needs the other one, and cannot know it for a file. So the
# activation is inferred from the config, keys or name of the weights, and the resolved name states it.


def _with_activation(model: str, quick_gelu: bool) -> tuple[str, str, bool]:
    """Model, and whether its weights need QuickGELU -> (name to build, resolved name, whether QuickGELU is used)."""
    from open_clip import get_model_config, list_models

    if (get_model_config(model) or {}).get("quick_gelu"):
        return model, model, True
    named = f"{model}-quickgelu" if quick_gelu else model
    return (named if named in list_models() else model), named, quick_gelu


def _recognise(path: Path, model: str) -> tuple[bool, str]:
    """Whether the weights in a file need QuickGELU, and the reason, to follow its name ('' where nothing is known)."""
    from open_clip import get_pretrained_cfg

    if "model_cfg" in (config := _config_of(path.parent)):
        return bool(config["model_cfg"].get("quick_gelu")), f" from its {CONFIG_NAME}"
    if path.suffix != ".safetensors" and read_state(path).keys() >= OPENAI_KEYS:
        return True, ": it has OpenAI's keys"
    # names of the file, its folder and, inside a Hugging Face cache, the repository
    names = [path.name, path.absolute().parent.name, *(p for p in path.absolute().parts if p.startswith("models--"))]
    plain = model.removesuffix("-quickgelu")
    if tag := _published_tag(names, plain):
        return bool(get_pretrained_cfg(plain, tag).get("quick_gelu")), f", because its name matches the weights {tag}"
    if re.search(r"quick[-_]?gelu|openai", " ".join(names), re.IGNORECASE):
        return True, ", judging by its name"
    return False, ""


def _published_tag(names: list[str], model: str) -> str:
    """The tag of `model` that one of `names` contains or that was published as a file names[0]; '' where none is."""
    from open_clip import get_pretrained_cfg, list_pretrained_tags_by_model

    tags = list_pretrained_tags_by_model(model)
    for name in (name.lower().replace("-", "_") for name in names):
        if matches := [tag for tag in tags if re.search(rf"(?<![a-z0-9]){re.escape(tag)}(?![a-z0-9])", name)]:
            return max(matches, key=len)
    published = {Path(get_pretrained_cfg(model, tag).get("url", "")).stem: tag for tag in tags}
    return published.get(Path(names[0]).stem, "")


def _config_of(folder: Path) -> dict[str, Any]:
    """Its open_clip_config.json, {} where there is none. Raises UserError for one that is damaged."""
    path = folder / CONFIG_NAME
    config = read_json(path) if path.is_file() else {}
    return config if isinstance(config, dict) else {}


def _preprocess(config: dict[str, Any]) -> Preprocess:
    """From the settings of a tag or a folder, as OpenCLIP reads them; OpenAI's values where they give none."""
    default = Preprocess()
    values = (config.get("mean") or default.mean, config.get("std") or default.std)
    mean, std = (tuple(v) if isinstance(v, list | tuple) else (v,) * 3 for v in values)
    return Preprocess(mean, std, "bilinear" if config.get("interpolation") == "bilinear" else "bicubic")
