"""What --clip-weights selects: tags, files and folders, their activation, and every refusal."""

from __future__ import annotations

import json
import time
import warnings

import open_clip
import pytest
import torch
from huggingface_hub import constants

from hnerv.data.clip.weights import (
    OPENAI_KEYS,
    Preprocess,
    Weights,
    identify,
    locate_weights,
    read_state,
    warn_of_doubt,
    warned_once,
)
from hnerv.errors import UserError

CONFIG = {"preprocess_cfg": {"mean": 0.5, "std": [0.1, 0.2, 0.3]}}


@pytest.mark.parametrize(
    ("weights", "model", "resolved"),
    [
        ("OpenAI", "ViT-B-32", "ViT-B-32-quickgelu"),
        ("openai", "ViT-B-32-quickgelu", "ViT-B-32-quickgelu"),
        ("auto", "ViT-L-14", "ViT-L-14-quickgelu"),
        ("metaclip_400m", "ViT-B-32", "ViT-B-32-quickgelu"),
        ("laion2B-s34B-b79K", "ViT-B-32", "ViT-B-32"),
    ],
)
def test_tags_get_the_activation_they_were_trained_with(weights, model, resolved):
    spec, quick = identify(weights, model, 0), resolved.endswith("-quickgelu")
    assert (spec.kind, spec.model, spec.quick_gelu) == ("clip", resolved, quick)
    assert bool(open_clip.get_model_config(spec.architecture).get("quick_gelu")) == quick
    assert spec.repo and spec.files[0].endswith(".safetensors")


def test_every_published_tag_is_understood_as_openclip_records_it():
    for model, tag in open_clip.list_pretrained():
        spec, published = identify(tag, model, 0), open_clip.get_pretrained_cfg(model, tag)
        own = open_clip.get_model_config(model).get("quick_gelu", False)
        assert spec.repo and all(spec.files), (model, tag)
        assert spec.quick_gelu == bool(published.get("quick_gelu") or own), (model, tag)
        assert spec.preprocess.mean == tuple(published.get("mean", Preprocess().mean)), (model, tag)


@pytest.mark.parametrize(
    ("name", "quick", "reason"),
    [
        ("openai_tiny.safetensors", True, "QuickGELU, because its name matches the weights openai"),
        ("openai/model.safetensors", True, "QuickGELU, because its name matches the weights openai"),
        ("models--timm--tiny.openai/snapshots/abc/w.safetensors", True, "because its name matches the weights openai"),
        ("tiny-quickgelu.safetensors", True, "QuickGELU, judging by its name"),
        ("laion2B-s1B.safetensors", False, "(GELU, because its name matches the weights laion2b_s1b"),
        ("tiny-laion.safetensors", False, "(GELU, because its name matches the weights laion2b_s1b"),
        ("some.pt", True, "QuickGELU: it has OpenAI's keys"),
        ("openai/config.safetensors", False, "(GELU from its open_clip_config.json"),
        ("laion2b_s1b/config-quick.safetensors", True, "(QuickGELU from its open_clip_config.json"),
    ],
)
def test_a_file_gets_the_activation_that_its_config_keys_or_name_tell(put, warned, name, quick, reason):
    path = put(name)
    if path.suffix == ".pt":
        torch.save({"a": torch.zeros(1), **dict.fromkeys(OPENAI_KEYS, 7)}, path)
    if path.name.startswith("config"):
        config = CONFIG | {"model_cfg": {"quick_gelu": quick}}
        (path.parent / "open_clip_config.json").write_text(json.dumps(config))
    spec = identify(str(path), "hnerv-tiny", 0)
    assert (spec.quick_gelu, spec.model) == (quick, "hnerv-tiny" + "-quickgelu" * quick)
    assert reason in spec.source and not spec.doubt and warned() == []
    if path.name.startswith("config"):
        assert spec.preprocess == Preprocess((0.5, 0.5, 0.5), (0.1, 0.2, 0.3), "bicubic")


def test_a_file_that_nothing_describes_follows_the_model_and_carries_a_doubt(put, warned):
    path = str(put("unknown.safetensors"))
    certain, doubtful = (identify(path, f"hnerv-tiny{suffix}", 0) for suffix in ("-quickgelu", ""))
    assert certain.quick_gelu and not certain.doubt
    assert not doubtful.quick_gelu and "pass --clip-model hnerv-tiny-quickgelu" in doubtful.doubt
    assert warned() == []


def test_the_fingerprint_of_a_file_is_its_content(put):
    a, b = put("a/openai.safetensors"), put("b/openai.safetensors")
    assert identify(str(a), "hnerv-tiny", 0).weights == identify(str(b), "hnerv-tiny", 0).weights
    b.write_bytes(b"other")
    assert identify(str(a), "hnerv-tiny", 0).weights != identify(str(b), "hnerv-tiny", 0).weights


@pytest.mark.parametrize(
    ("weights", "model", "sentence"),
    [
        ("auto", "ViT-B-16-SigLIP", "auto means the tag openai, which ViT-B-16-SigLIP does not have: .*webli"),
        ("openai", "ViT-B-33", "OpenCLIP has no model 'ViT-B-33': set --clip-model to one such as .*ViT-B-32"),
        ("opena", "ViT-B-32", "'opena' is neither a file nor a tag of ViT-B-32: pass a tag such as openai"),
        ("", "ViT-B-32", "'' is neither a file nor a tag"),
        ("no/such.safetensors", "ViT-B-32", "no/such.safetensors: no such file"),
        ("such.pt", "ViT-B-32", "such.pt: no such file"),
        ("local-dir:/no/such", "ViT-B-32", "/no/such has no open_clip_config.json with a model_cfg"),
    ],
)
def test_unknown_weights_are_refused(weights, model, sentence):
    with pytest.raises(UserError, match=sentence):
        identify(weights, model, 0)


def test_a_damaged_config_is_refused(put):
    folder = put("openai/w.safetensors").parent
    (folder / "open_clip_config.json").write_text("{")
    with pytest.raises(UserError, match="open_clip_config.json cannot be read"):
        identify(str(folder), "ViT-B-32", 0)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("w.safetensors", b"not weights", "cannot be read as safetensors"),
        ("w.pt", b"not weights", "cannot be read as a plain state dict"),
        ("w.pt", {"a": torch.nn.Linear(1, 1)}, "cannot be read as a plain state dict"),
        ("w.pt", "TorchScript", r"TorchScript archives.*: pass .*\.safetensors, or a tag such as openai"),
        ("w.pt", [torch.zeros(1)], "has no state dict of tensors"),
        ("w.pt", {}, "has no state dict of tensors"),
        ("w.pt", {"epoch": 3}, "has no state dict of tensors"),
        ("w.pt", {"state_dict": 3}, "has no state dict of tensors"),
    ],
)
def test_a_file_without_plain_tensors_is_refused_and_runs_no_code(tmp_path, name, content, sentence):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "TorchScript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, its files are still around
            torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=sentence) as caught:
        read_state(path)
    assert "\n" not in str(caught.value)


def test_wrapped_state_dicts_are_unwrapped(tmp_path):
    torch.save({"epoch": 3, "state_dict": {"module.a": torch.ones(2)}}, tmp_path / "w.pt")
    assert read_state(tmp_path / "w.pt")["a"].tolist() == [1, 1]


def test_a_cached_tag_needs_no_hub(in_hf_cache, warned):
    path = in_hf_cache()
    spec = identify("auto", "hnerv-tiny", 0)
    assert locate_weights(spec, 0, fall_back=True) == spec._replace(path=str(path)) and warned() == []


@pytest.mark.parametrize(("offline", "cause"), [(True, "HF_HUB_OFFLINE is set"), (False, "the hub cannot be reached")])
def test_weights_that_are_nowhere(warned, monkeypatch, offline, cause):
    """A tag is refused with the ways out; `auto` falls back with a warning. Both quickly."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        locate_weights(identify("openai", "hnerv-tiny", 0), 0, fall_back=False)
    assert "\n" not in str(caught.value) and warned() == []
    spec = locate_weights(identify("auto", "hnerv-tiny", 3), 3, fall_back=True)
    assert time.perf_counter() - start < 3
    assert (spec.kind, spec.weights, spec.source) == ("random", "random:3", "RANDOM encoder, seed 3: not CLIP")
    (warning,) = warned()
    assert warning.startswith("NOT CLIP: the weights openai") and "RANDOM encoder (seed 3)" in warning
    for text in (warning, str(caught.value)):
        for part in (cause, "make the hub reachable", "--clip-weights FILE", "--clip-targets FILE"):
            assert part in text
    assert "--clip-weights auto" in str(caught.value)


def test_what_segments_share_is_warned_of_once(warned, monkeypatch):
    """The first uses `auto`, the others the weights it found; an activation in doubt is another subject."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    doubtful = Weights("clip", "tiny", "tiny sha256:0", "tiny", doubt="it is unknown whether")

    def two_segments() -> None:
        locate_weights(identify("auto", "hnerv-tiny", 3), 3, fall_back=True)
        assert locate_weights(identify("random", "hnerv-tiny", 3), 3, fall_back=False).weights == "random:3"
        warn_of_doubt(doubtful)
        warn_of_doubt(doubtful)

    with warned_once():
        two_segments()
    assert [text[:8] for text in warned()] == ["NOT CLIP", "it is un"] and "openai" in warned()[0]
    two_segments()
    assert len(warned()) == 6 and warned()[3].startswith("NOT CLIP: the targets come from a RANDOM encoder (seed 3)")
