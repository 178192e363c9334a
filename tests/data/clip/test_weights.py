"""What --clip-weights means: tags, files, folders, their activation, and every refusal."""

from __future__ import annotations

import json
import time
import warnings

import open_clip
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from hnerv.data.clip.teacher import load_teacher
from hnerv.data.clip.weights import (
    AUTO_TAG,
    OPENAI_KEYS,
    Preprocess,
    Weights,
    identify,
    locate,
    read_state,
    warn_of_doubt,
    warned_once,
)  # fmt: skip
from hnerv.errors import UserError


@pytest.mark.parametrize(
    ("weights", "model", "resolved", "quick"),
    [
        ("openai", "ViT-B-32", "ViT-B-32-quickgelu", True),
        ("OpenAI", "ViT-B-32", "ViT-B-32-quickgelu", True),
        ("openai", "ViT-B-32-quickgelu", "ViT-B-32-quickgelu", True),
        ("auto", "ViT-L-14", "ViT-L-14-quickgelu", True),
        ("metaclip_400m", "ViT-B-32", "ViT-B-32-quickgelu", True),
        ("laion2b_s34b_b79k", "ViT-B-32", "ViT-B-32", False),
        ("laion2B-s34B-b79K", "ViT-B-32", "ViT-B-32", False),
    ],
)
def test_tags_get_the_activation_they_were_trained_with(weights, model, resolved, quick):
    spec = identify(weights, model, 0)
    assert (spec.kind, spec.model, spec.quick_gelu) == ("clip", resolved, quick)
    assert bool(open_clip.get_model_config(spec.architecture).get("quick_gelu")) == quick
    assert spec.repo and spec.files[0].endswith(".safetensors")


def test_every_published_tag_is_understood_and_its_activation_is_what_openclip_records():
    for model, tag in open_clip.list_pretrained():
        spec = identify(tag, model, 0)
        assert spec.repo and all(spec.files), (model, tag)
        wanted = open_clip.get_pretrained_cfg(model, tag)
        own = open_clip.get_model_config(model).get("quick_gelu", False)
        assert spec.quick_gelu == bool(wanted.get("quick_gelu") or own), (model, tag)
        assert spec.preprocess.mean == tuple(wanted.get("mean", Preprocess().mean)), (model, tag)


def test_auto_without_the_tag_openai_names_the_others():
    with pytest.raises(UserError, match="auto means the tag openai, which ViT-B-16-SigLIP does not have: .*webli"):
        identify("auto", "ViT-B-16-SigLIP", 0)


@pytest.mark.parametrize(
    ("name", "quick", "says"),
    [
        ("openai_tiny.safetensors", True, "QuickGELU, because its name matches the weights openai"),
        ("openai/model.safetensors", True, "QuickGELU, because its name matches the weights openai"),
        ("models--timm--tiny.openai/snapshots/abc/w.safetensors", True, "because its name matches the weights openai"),
        ("tiny-quickgelu.safetensors", True, "QuickGELU, judging by its name"),
        ("laion2B-s1B.safetensors", False, "(GELU, because its name matches the weights laion2b_s1b"),
        ("tiny-laion.safetensors", False, "(GELU, because its name matches the weights laion2b_s1b"),
    ],
)
def test_a_file_gets_its_activation_by_its_name(put, warned, name, quick, says):
    spec = identify(str(put(name)), "hnerv-tiny", 0)
    assert spec.quick_gelu == quick
    assert spec.model == ("hnerv-tiny-quickgelu" if quick else "hnerv-tiny")
    assert says in spec.source
    assert warned() == []


@pytest.mark.parametrize("name", ["ViT-B-32.pt", "ViT-B-32.safetensors"])
def test_openai_file_names_mean_quickgelu(tmp_path, name):
    torch.save({"a": torch.zeros(1)}, tmp_path / name)
    assert identify(str(tmp_path / name), "ViT-B-32", 0).model == "ViT-B-32-quickgelu"


def test_openai_keys_mean_quickgelu(tmp_path):
    path = tmp_path / "some.pt"
    torch.save({"a": torch.zeros(1), **dict.fromkeys(OPENAI_KEYS, 7)}, path)
    spec = identify(str(path), "hnerv-tiny", 0)
    assert spec.quick_gelu and "it has OpenAI's keys" in spec.source


@pytest.mark.parametrize("quick", [True, False])
def test_a_config_beside_the_file_decides_before_its_name(put, quick):
    path = put("openai/w.safetensors")
    config = {"model_cfg": {"quick_gelu": quick}, "preprocess_cfg": {"mean": 0.5, "std": [0.1, 0.2, 0.3]}}
    (path.parent / "open_clip_config.json").write_text(json.dumps(config))
    spec = identify(str(path), "hnerv-tiny", 0)
    assert spec.quick_gelu == quick and "from its open_clip_config.json" in spec.source
    assert spec.preprocess == Preprocess((0.5, 0.5, 0.5), (0.1, 0.2, 0.3), "bicubic")


def test_a_file_that_nothing_describes_follows_the_model_and_its_doubt_is_left_to_who_loads_it(put, warned):
    path = str(put("unknown.safetensors"))
    certain, doubtful = (identify(path, f"hnerv-tiny{suffix}", 0) for suffix in ("-quickgelu", ""))
    assert certain.quick_gelu and not certain.doubt
    assert not doubtful.quick_gelu and "pass --clip-model hnerv-tiny-quickgelu" in doubtful.doubt
    assert warned() == []


def test_the_identity_of_a_file_is_its_content(put):
    a, b = put("a/openai.safetensors"), put("b/openai.safetensors")
    assert identify(str(a), "hnerv-tiny", 0).weights == identify(str(b), "hnerv-tiny", 0).weights
    b.write_bytes(b"other")
    assert identify(str(a), "hnerv-tiny", 0).weights != identify(str(b), "hnerv-tiny", 0).weights


@pytest.mark.parametrize(
    ("weights", "model", "sentence"),
    [
        ("openai", "ViT-B-33", "OpenCLIP has no model 'ViT-B-33': set --clip-model to one such as .*ViT-B-32"),
        ("opena", "ViT-B-32", "'opena' is neither a file nor a tag of ViT-B-32: pass a tag such as openai"),
        ("", "ViT-B-32", "'' is neither a file nor a tag"),
        ("no/such.safetensors", "ViT-B-32", "no/such.safetensors: no such file"),
        ("such.pt", "ViT-B-32", "such.pt: no such file"),
        ("local-dir:/no/such", "ViT-B-32", "/no/such has no open_clip_config.json with a model_cfg"),
    ],
)
def test_what_is_unknown_is_refused(weights, model, sentence):
    with pytest.raises(UserError, match=sentence):
        identify(weights, model, 0)


def test_a_damaged_config_is_refused(put):
    path = put("openai/w.safetensors")
    (path.parent / "open_clip_config.json").write_text("{")
    with pytest.raises(UserError, match="open_clip_config.json cannot be read as JSON"):
        identify(str(path), "hnerv-tiny", 0)


def test_a_torchscript_archive_is_refused(tmp_path):
    path = tmp_path / "ViT-B-32.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, its files are not gone
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(UserError, match=r"TorchScript archive.*\.safetensors"):
        identify(str(path), "ViT-B-32", 0)


@pytest.mark.parametrize(("suffix", "kind"), [(".safetensors", "safetensors"), (".pt", "a plain state dict")])
def test_a_damaged_file_is_refused(tmp_path, suffix, kind):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(b"not weights")
    with pytest.raises(UserError, match=f"cannot be read as {kind}"):
        read_state(path)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {}, {"epoch": 3}, {"state_dict": 3}])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match="has no state dict of tensors"):
        read_state(tmp_path / "w.pt")


def test_pickled_code_is_refused(tmp_path):
    torch.save({"a": torch.nn.Linear(1, 1)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="cannot be read as a plain state dict"):
        read_state(tmp_path / "w.pt")


def test_wrapped_state_dicts_are_unwrapped(tmp_path):
    torch.save({"epoch": 3, "state_dict": {"module.a": torch.ones(2)}}, tmp_path / "w.pt")
    assert read_state(tmp_path / "w.pt")["a"].tolist() == [1, 1]


@pytest.mark.parametrize(("name", "save"), [("model.safetensors", save_file), ("pytorch_model.bin", torch.save)])
def test_a_model_of_transformers_is_named(tmp_path, name, save):
    """The file alone, and the folder that a download leaves."""
    draw = torch.Generator().manual_seed(0)
    keys = "vision_model.encoder.layers.0.self_attn.q_proj.weight", "text_model.final_layer_norm.bias", "logit_scale"
    save({key: torch.randn(2, 2, generator=draw) for key in keys}, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["CLIPModel"]}))
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(UserError, match="is a model of Hugging Face transformers.*open_clip_model.safetensors"):
            load_teacher(str(path), "hnerv-tiny")


def test_a_cached_tag_needs_no_hub(in_hf_cache, warned):
    path = in_hf_cache()
    spec = identify("auto", "hnerv-tiny", 0)
    assert locate(spec, 0, fall_back=True) == spec._replace(path=str(path))
    assert warned() == []


@pytest.mark.parametrize("offline", [True, False])
def test_auto_falls_back_quickly_with_a_warning_that_begins_with_not_clip(warned, monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    start = time.perf_counter()
    spec = locate(identify("auto", "hnerv-tiny", 3), 3, fall_back=True)
    assert time.perf_counter() - start < 3
    assert (spec.kind, spec.weights, spec.source) == ("random", "random:3", "RANDOM encoder, seed 3: not CLIP")
    assert len(warned()) == 1
    for part in ("NOT CLIP: the weights openai", "RANDOM encoder (seed 3)", "--clip-weights FILE", "--clip-targets"):
        assert part in warned()[0]
    assert ("HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached") in warned()[0]


@pytest.mark.parametrize("offline", [True, False])
def test_an_explicit_tag_that_cannot_be_had_names_the_ways_out(warned, monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        locate(identify(AUTO_TAG, "hnerv-tiny", 0), 0, fall_back=False)
    assert time.perf_counter() - start < 3
    for part in ("make the hub reachable", "--clip-weights FILE", "--clip-weights auto", "--clip-targets FILE"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value) and warned() == []


def test_random_on_request_warns_shortly(warned):
    assert locate(identify("random", "hnerv-tiny", 5), 5, fall_back=False).weights == "random:5"
    assert len(warned()) == 1 and warned()[0].startswith("NOT CLIP: the targets come from a RANDOM encoder (seed 5)")


def test_what_segments_share_is_warned_of_once(put, warned, monkeypatch):
    """The first asks for `auto`, the others for what it found; an activation in doubt is another subject."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    doubtful = Weights("clip", "tiny", "tiny sha256:0", "tiny", doubt="it is unknown whether")

    def ask_twice() -> None:
        locate(identify(AUTO_TAG, "hnerv-tiny", 3), 3, fall_back=True)
        locate(identify("random", "hnerv-tiny", 3), 3, fall_back=False)
        warn_of_doubt(doubtful)
        warn_of_doubt(doubtful)

    with warned_once():
        ask_twice()
    assert [text[:8] for text in warned()] == ["NOT CLIP", "it is un"] and "openai" in warned()[0]
    ask_twice()
    assert len(warned()) == 6
