"""The frozen encoder, compared with OpenCLIP's own model, transform (Pillow) and tokenizer."""

from __future__ import annotations

import json
import logging

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from PIL import Image
from safetensors.torch import load, save_file
from torch.nn.functional import normalize

from hnerv.data.clip import load_teacher
from hnerv.data.clip.teacher import preprocess
from hnerv.data.clip.weights import Preprocess
from hnerv.errors import UserError

RECIPE = Preprocess()


def picture(*shape: int) -> torch.Tensor:
    """Smooth but detailed uint8 images (B, 3, h, w)."""
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise, 5, 1, 2, count_include_pad=False)
    return ((smooth - 0.5) * 4 + 0.5).clamp(0, 1).mul(255).byte()


def openclip_transform(patch: torch.Tensor, size: int, recipe: Preprocess, resize_mode: str) -> torch.Tensor:
    transform = open_clip.image_transform(
        size, False, recipe.mean, recipe.std, resize_mode=resize_mode, interpolation=recipe.interpolation
    )
    return transform(Image.fromarray(patch.permute(1, 2, 0).numpy()))


def uses_quick_gelu(teacher) -> bool:
    return any(isinstance(module, QuickGELU) for module in teacher.net.modules())


@pytest.fixture
def openai(put):
    return load_teacher(str(put("openai.safetensors")), "hnerv-tiny")


@pytest.mark.parametrize(("height", "width"), [(320, 320), (224, 224), (80, 80), (90, 160)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_preprocessing_is_openclips_and_a_patch_that_is_not_square_is_squashed(height, width, interpolation):
    recipe = Preprocess(interpolation=interpolation)
    patch = picture(1, 3, height, width)
    ours = preprocess(patch, (224, 224), recipe)[0]
    theirs = openclip_transform(patch[0], 224, recipe, "shortest" if height == width else "squash")
    level = 1 / 255 / min(recipe.std)
    assert (ours - theirs).abs().max() <= 1.01 * level and (ours - theirs).abs().mean() <= 0.05 * level
    patch[..., :4] = 255  # outside of a centre crop
    assert not torch.equal(preprocess(patch, (224, 224), recipe)[0], ours)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_the_encoder_sees_the_same_pixels_on_every_device(put, monkeypatch, device):
    teacher = load_teacher(str(put("openai.safetensors")), "hnerv-tiny", device)
    patches, seen, encode = picture(3, 3, 48, 48), [], teacher.net.encode_image
    monkeypatch.setattr(teacher.net, "encode_image", lambda images: seen.append(images) or encode(images))
    for given in (patches, patches.to(device)):
        assert teacher.encode_patches(given).device.type == device
        assert torch.equal(seen.pop().cpu(), preprocess(patches, (32, 32), RECIPE))


def test_a_file_of_openai_weights_embeds_as_openclip_does_with_quickgelu(openai, put, reference):
    assert uses_quick_gelu(openai) and (openai.kind, openai.model) == ("clip", "hnerv-tiny-quickgelu")
    assert (openai.dim, openai.input_size) == (16, (32, 32))
    patches = picture(5, 3, 48, 48)
    images = torch.stack([openclip_transform(p, 32, RECIPE, "shortest") for p in patches])
    texts = ["a rabbit", "a butterfly over a meadow"]
    with torch.no_grad():
        expected = reference.encode_image(images, normalize=True)
        expected_texts = normalize(reference.encode_text(open_clip.tokenize(texts)), dim=-1)
    given = openai.encode_patches(patches)
    assert given.dtype == torch.float32 and given.shape == (5, 16) and not given.requires_grad
    assert torch.allclose(given.norm(dim=-1), torch.ones(5), atol=1e-6)
    assert (given * expected).sum(-1).min() > 1 - 1e-4
    assert torch.allclose(openai.encode_text(texts), expected_texts, atol=1e-5)
    assert not openai.net.training and not any(p.requires_grad for p in openai.net.parameters())
    plain = load_teacher(str(put("laion2b_s1b.safetensors")), "hnerv-tiny")
    assert not uses_quick_gelu(plain) and not torch.allclose(given, plain.encode_patches(patches), atol=1e-5)


@pytest.mark.parametrize("weights", ["auto", "openai", "local-dir:", ""])
def test_a_tag_and_a_folder_bring_their_activation_mean_and_deviation(put, in_hf_cache, reference, tiny, weights):
    in_hf_cache()
    folder = put("mine/open_clip_model.safetensors").parent
    config = {"model_cfg": tiny.config | {"quick_gelu": True}, "preprocess_cfg": {"mean": tiny.mean, "std": tiny.std}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if is_tag := weights in ("auto", "openai"):
        teacher = load_teacher(weights, "hnerv-tiny")
        assert (teacher.weights, teacher.source) == ("openai", "OpenCLIP hnerv-tiny-quickgelu, openai")
    else:
        teacher = load_teacher(f"{weights}{folder}", "ViT-B-32")
        assert "folder mine" in teacher.source and str(folder) not in teacher.model
        assert teacher.encode_text(["a"]).shape == (1, 16)
    assert teacher.kind == "clip" and uses_quick_gelu(teacher), is_tag
    patches = picture(3, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tiny.mean, tiny.std))
    with torch.no_grad():
        expected = reference.encode_image((patches / 255 - mean) / std, normalize=True)
    assert torch.allclose(teacher.encode_patches(patches), expected, atol=1e-5)


def test_openais_extra_keys_are_no_weights(tmp_path, reference, openai):
    extra = {"input_resolution": 32, "context_length": torch.tensor(77), "vocab_size": torch.tensor(49408)}
    torch.save(reference.state_dict() | extra, tmp_path / "some.pt")
    patches = picture(2, 3, 32, 32)
    theirs = load_teacher(str(tmp_path / "some.pt"), "hnerv-tiny")
    assert torch.equal(theirs.encode_patches(patches), openai.encode_patches(patches))


def test_the_random_encoder_is_seeded_small_and_announced_as_not_clip(warned):
    patches = picture(3, 3, 64, 64)
    a, b, other = (load_teacher("random", "ViT-B-32", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a.encode_patches(patches), b.encode_patches(patches))
    assert not torch.allclose(a.encode_patches(patches), other.encode_patches(patches), atol=0.01)
    assert torch.allclose(a.encode_patches(patches).norm(dim=-1), torch.ones(3), atol=1e-6)
    assert (a.kind, a.weights, a.dim) == ("random", "random:1", 128)
    assert a.source == "RANDOM encoder, seed 1: not CLIP"
    assert sum(parameter.numel() for parameter in a.net.parameters()) < 2e6
    assert len(warned()) == 3 and all(text.startswith("NOT CLIP:") for text in warned())
    with pytest.raises(UserError, match="RANDOM encoder, seed 1: not CLIP; text has no meaning for it"):
        a.encode_text(["a rabbit"])
    with pytest.raises(UserError, match="--clip-weights none selects no encoder"):
        load_teacher("none", "ViT-B-32")


def test_the_global_random_state_and_logging_are_left_alone_and_openclip_is_silent(put, caplog):
    root = logging.getLogger()
    before = torch.get_rng_state(), list(root.handlers), root.level, root.manager.disable
    load_teacher(str(put("openai.safetensors")), "hnerv-tiny")
    assert caplog.records == []
    load_teacher("random", "ViT-B-32", seed=1).encode_patches(picture(1, 3, 32, 32))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (root.handlers, root.level, root.manager.disable) == before[1:]


def test_weights_that_nothing_describes_are_warned_of_once_they_are_loaded(put, warned):
    load_teacher(str(put("unknown 100%.safetensors")), "hnerv-tiny")
    assert len(warned()) == 1 and "whether unknown 100%.safetensors was trained with QuickGELU" in warned()[0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("visual.proj"), 'Missing key.* "visual.proj"'),
        (lambda s: s.update(extra=torch.zeros(1)), 'Unexpected key.* "extra"'),
        (lambda s: s.update({"visual.positional_embedding": torch.zeros(17, 32)}), r"size mismatch.*\[17, 32\]"),
    ],
)
def test_weights_that_do_not_fit_name_the_model_and_the_key(tmp_path, warned, weights_bytes, change, sentence):
    state = load(weights_bytes)
    change(state)
    save_file(state, tmp_path / "unknown.safetensors")
    message = rf"unknown.safetensors do not fit hnerv-tiny \({sentence}.*\): set --clip-model to their model"
    with pytest.raises(UserError, match=message) as caught:
        load_teacher(str(tmp_path / "unknown.safetensors"), "hnerv-tiny")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 and warned() == []


def test_a_model_that_openclip_cannot_build_is_one_line(put, tiny):
    folder = put("mine/model.safetensors").parent
    config = {"model_cfg": tiny.config | {"vision_cfg": {"nonsense": 1}}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="OpenCLIP cannot build local-dir:mine.*nonsense.*--clip-model"):
        load_teacher(str(folder), "hnerv-tiny")
