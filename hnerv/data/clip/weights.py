"""Which weights a `--clip-weights` means: a tag, a file, a folder or a random encoder, and where its bytes lie."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import logging
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hnerv.data.clip import hub
from hnerv.errors import UserError
from hnerv.files import sha256_of

if TYPE_CHECKING:
    from torch import Tensor

AUTO_TAG = "openai"
RANDOM_MODEL = "random-ViT-32-w128-l3"
CONFIG_NAME = "open_clip_config.json"
OPENAI_KEYS = {"input_resolution", "context_length", "vocab_size"}  # only OpenAI's own files carry these
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")
_log = logging.getLogger("hnerv")
_NOT_CLIP = {"subject": "NOT CLIP"}
"""What both warnings of the random encoder are about: `auto` gives the first, then the run knows what it found."""


class Preprocess(NamedTuple):
    """Mean and deviation per channel, in [0, 1], and the interpolation ('bicubic' or 'bilinear') of the resize."""

    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"


class Weights(NamedTuple):
    """What is to be loaded, known before anything heavy is built and before the hub is asked."""

    kind: str  # 'clip' or 'random'
    model: str  # resolved name, with -quickgelu where that is the activation
    weights: str  # tag, 'NAME sha256:HEX' or 'random:SEED'
    source: str  # one line for people
    architecture: str = ""  # what OpenCLIP builds; '' for the random encoder
    quick_gelu: bool = False
    preprocess: Preprocess = Preprocess()
    path: str = ""  # file of the weights; '' for the random encoder and for a tag not located yet
    repo: str = ""  # repository of a tag on the hub
    files: tuple[str, ...] = ()  # names of its weights, best first
    doubt: str = ""  # what the user is to be warned of once they are in use


def identify(weights: str, model: str, seed: int) -> Weights:
    """`auto` (the tag openai), TAG, FILE, FOLDER (or local-dir:FOLDER) or `random` -> what is to be loaded.

    Reads local files, never the network. Raises UserError for an unknown model, tag or file.
    """
    if weights == "random":
        return random_weights(seed)
    if weights.startswith("local-dir:"):
        return _of_folder(Path(weights.removeprefix("local-dir:")))
    _check_model(model)
    if weights == "auto" or _is_tag(model, weights):
        return _of_tag(AUTO_TAG if weights == "auto" else weights, model)
    path = Path(weights)
    if weights and path.is_dir():
        return _of_folder(path)
    if path.is_file():
        return _of_file(path, model)
    if path.name != weights or path.suffix in (".safetensors", ".pt", ".pth", ".bin"):
        raise UserError(f"--clip-weights {weights}: no such file: pass a file of weights, a tag, auto, random or none")
    near = difflib.get_close_matches(weights, _tags(model), n=4, cutoff=0.0)
    raise UserError(
        f"--clip-weights {weights!r} is neither a file nor a tag of {model}: pass a tag such as "
        f"{', '.join(near) or '(it has no tags)'}, a file, auto, random or none"
    )


def locate(spec: Weights, seed: int, fall_back: bool) -> Weights:
    """`spec` with the file of its tag: out of the Hugging Face cache, else from the hub. No silent retries.

    Where neither has it, `fall_back` (what `auto` asks for) gives the random encoder with a warning; else UserError.
    """
    if spec.kind == "random":
        _log.warning(
            "NOT CLIP: the targets come from a RANDOM encoder (seed %d) and have no meaning; no number based on them "
            "is a CLIP number",
            seed,
            extra=_NOT_CLIP,
        )
    if not spec.repo:
        return spec
    if path := hub.cached(spec.repo, spec.files):
        return spec._replace(path=path)
    try:
        return spec._replace(path=hub.fetch(spec.repo, spec.files))
    except hub.HubUnavailable as error:
        if not fall_back:
            raise UserError(
                f"the weights {spec.weights} of {spec.model} are not in the Hugging Face cache, and {error}: make the "
                "hub reachable, or pass --clip-weights FILE, --clip-weights auto or --clip-targets FILE"
            ) from error
        _log.warning(
            "NOT CLIP: the weights %s of %s are not in the Hugging Face cache, and %s: a small RANDOM encoder (seed "
            "%d) is used instead. Its targets have no meaning; no number based on them is a CLIP number. "
            "For CLIP, make the hub reachable, or pass --clip-weights FILE or --clip-targets FILE",
            *(spec.weights, spec.model, error, seed),
            extra=_NOT_CLIP,
        )
        return random_weights(seed)


def random_weights(seed: int) -> Weights:
    """The seeded, randomly initialised stand-in."""
    return Weights("random", RANDOM_MODEL, f"random:{seed}", f"RANDOM encoder, seed {seed}: not CLIP")


def warn_of_doubt(spec: Weights) -> None:
    """For when the weights are in use: of weights that fail, their error says enough."""
    if spec.doubt:
        _log.warning("%s", spec.doubt, extra={"subject": spec.doubt})


@contextlib.contextmanager
def warned_once() -> Iterator[None]:
    """Within the block what the targets of a video are is warned of once, though each of its segments asks for them."""
    told: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        subject = getattr(record, "subject", "")
        known = subject in told
        told.update([subject] * bool(subject))
        return not known

    _log.addFilter(is_new)
    try:
        yield
    finally:
        _log.removeFilter(is_new)


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name out of a .safetensors file or a PyTorch state dict, on the CPU. Never unpickles code.

    Raises UserError for a TorchScript archive, a model of transformers, and a file that is damaged or holds more than
    tensors.
    """
    import torch
    from safetensors.torch import load_file

    if _is_torchscript(path):
        raise UserError(
            f"--clip-weights {path} is a TorchScript archive, which is not read because opening it runs code: "
            "pass its weights as a .safetensors file, or the tag openai"
        )
    try:
        is_safetensors = path.suffix == ".safetensors"
        state = load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no closed list of what it raises for a damaged file
        reason = " ".join(str(error).split())[:100]
        kind = "safetensors" if is_safetensors else "a plain state dict"
        raise UserError(
            f"--clip-weights {path} cannot be read as {kind} ({reason}): pass an intact file, preferably .safetensors"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not _only_tensors(state):
        raise UserError(f"--clip-weights {path} has no state dict of tensors: pass a .safetensors file")
    if any(key.startswith(("vision_model.", "text_model.")) for key in state):
        raise _of_transformers(path)
    return {key.removeprefix("module."): value for key, value in state.items()}


def _of_transformers(path: Path) -> UserError:
    return UserError(
        f"--clip-weights {path} is a model of Hugging Face transformers, which OpenCLIP does not read: pass the "
        "OpenCLIP weights of that model (open_clip_model.safetensors or open_clip_pytorch_model.bin), or a tag such as "
        "openai"
    )


def _only_tensors(state: dict[str, Any]) -> bool:
    import torch

    named = (isinstance(value, torch.Tensor) or key in OPENAI_KEYS for key, value in state.items())
    return bool(state) and all(named)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _check_model(model: str) -> None:
    if model not in _known_models():
        near = difflib.get_close_matches(model, _known_models(), n=3, cutoff=0.3) or ["ViT-B-32"]
        raise UserError(f"OpenCLIP has no model {model!r}: set --clip-model to one such as {', '.join(near)}")


def _tags(model: str) -> list[str]:
    import open_clip

    return open_clip.list_pretrained_tags_by_model(model)


def _is_tag(model: str, weights: str) -> bool:
    return weights.lower().replace("-", "_") in _tags(model)


def _of_tag(tag: str, model: str) -> Weights:
    from open_clip.pretrained import get_pretrained_cfg

    tag = tag.lower().replace("-", "_")
    config = get_pretrained_cfg(model, tag)
    if not config:
        raise UserError(
            f"--clip-weights auto means the tag {AUTO_TAG}, which {model} does not have: "
            f"pass one of {', '.join(_tags(model)) or '(none: pass a file)'}"
        )
    repo, _, name = config["hf_hub"].rpartition("/")
    files = (re.sub(r"\.(bin|pth)$", ".safetensors", name), name) if name else WEIGHT_FILES[:2]
    built, resolved, quick = _activated(model, bool(config.get("quick_gelu")))
    source = f"OpenCLIP {resolved}, {tag}"
    return Weights("clip", resolved, tag, source, built, quick, _preprocess(config), repo=repo, files=files)


def _of_file(path: Path, model: str) -> Weights:
    quick, why = _recognise(path, model)
    built, resolved, quick = _activated(model, quick)
    config = _config_beside(path.parent)
    doubt = ""
    if not why:
        why = f"{'QuickGELU' if quick else 'GELU'}, as in --clip-model"
        if not quick and f"{model}-quickgelu" in _known_models():
            doubt = (
                f"it is unknown whether {path.name} was trained with QuickGELU; using GELU, as {model} does: "
                f"for weights from OpenAI, pass --clip-model {model}-quickgelu"
            )
    preprocess = _preprocess(config.get("preprocess_cfg", {}))
    source = f"OpenCLIP {resolved}, file {path.name} ({why})"
    label = f"{path.name} sha256:{sha256_of(path)}"
    return Weights("clip", resolved, label, source, built, quick, preprocess, str(path), doubt=doubt)


def _of_folder(folder: Path) -> Weights:
    """A folder as OpenCLIP saves it to the hub: its config gives architecture, activation and preprocessing."""
    config = _config_beside(folder)
    if not config and "architectures" in _read_json(folder / "config.json"):
        raise _of_transformers(folder)
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
        weights=f"{path.name} sha256:{sha256_of(path)}",
        source=f"OpenCLIP folder {folder.resolve().name} (architecture and activation from its {CONFIG_NAME})",
        architecture=f"local-dir:{folder.resolve()}",
        quick_gelu=bool(config["model_cfg"].get("quick_gelu")),
        preprocess=_preprocess(config.get("preprocess_cfg", {})),
        path=str(path),
    )


def _known_models() -> list[str]:
    import open_clip

    return open_clip.list_models()


def _activated(model: str, quick_gelu: bool) -> tuple[str, str, bool]:
    """Model and what its weights want -> (name to build, resolved name, whether QuickGELU is used).

    OpenCLIP itself only warns when a tag wants QuickGELU and the model has GELU, and says nothing for files.
    """
    from open_clip import get_model_config

    own = bool((get_model_config(model) or {}).get("quick_gelu"))
    if own or not quick_gelu:
        return model, model, own
    named = f"{model}-quickgelu"
    return (named if named in _known_models() else model), named, True


def _recognise(path: Path, model: str) -> tuple[bool, str]:
    """Whether the weights in a file want QuickGELU, and what says so ('' when nothing does)."""
    from open_clip.pretrained import get_pretrained_cfg

    if "model_cfg" in (config := _config_beside(path.parent)):
        quick = bool(config["model_cfg"].get("quick_gelu"))
        return quick, f"{'QuickGELU' if quick else 'GELU'} from its {CONFIG_NAME}"
    if path.suffix != ".safetensors" and read_state(path).keys() >= OPENAI_KEYS:
        return True, "QuickGELU: it has OpenAI's keys"
    if tag := _tag_by_name(path, model.removesuffix("-quickgelu")):
        quick = bool(get_pretrained_cfg(model.removesuffix("-quickgelu"), tag).get("quick_gelu"))
        return quick, f"{'QuickGELU' if quick else 'GELU'}, because its name matches the weights {tag}"
    if re.search(r"quick[-_]?gelu|openai", " ".join(_names(path)), re.IGNORECASE):
        return True, "QuickGELU, judging by its name"
    return False, ""


def _names(path: Path) -> list[str]:
    """The file's name, its folder's, and the repository's inside a Hugging Face cache."""
    whole = path.absolute()
    return [path.name, whole.parent.name, *(part for part in whole.parts if part.startswith("models--"))]


def _tag_by_name(path: Path, model: str) -> str:
    """The published tag of `model` that a file's or folder's name speaks of, or whose own file name it wears."""
    from open_clip.pretrained import get_pretrained_cfg

    for name in _names(path):
        plain = name.lower().replace("-", "_")
        found = [tag for tag in _tags(model) if re.search(rf"(?<![a-z0-9]){re.escape(tag)}(?![a-z0-9])", plain)]
        if found:
            return max(found, key=len)
    published = {Path(get_pretrained_cfg(model, tag).get("url", "")).stem: tag for tag in _tags(model)}
    return published.get(path.stem, "") if path.stem else ""


def _config_beside(folder: Path) -> dict[str, Any]:
    """The open_clip_config.json of a folder, {} where there is none."""
    return _read_json(folder / CONFIG_NAME)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): fix it, or delete it") from error
    return config if isinstance(config, dict) else {}


def _preprocess(config: dict[str, Any]) -> Preprocess:
    """Out of a tag's or a folder's settings, read as OpenCLIP reads them; what they leave out is OpenAI's."""
    default = Preprocess()
    values = (config.get("mean") or default.mean, config.get("std") or default.std)
    mean, std = (tuple(v) if isinstance(v, list | tuple) else (v,) * 3 for v in values)
    return Preprocess(mean, std, "bilinear" if config.get("interpolation") == "bilinear" else "bicubic")
