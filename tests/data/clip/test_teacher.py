"""The frozen encoder against OpenCLIP's own model, transform (Pillow) and tokenizer."""

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


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth but detailed uint8 images (B, 3, h, w)."""
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool2d(noise, 5, 1, 2, count_include_pad=False)
    return ((smooth - 0.5) * 4 + 0.5).clamp(0, 1).mul(255).byte()


def openclip_transform(patch: torch.Tensor, size: int, recipe: Preprocess, resize_mode: str) -> torch.Tensor:
    transform = open_clip.image_transform(
        size, False, recipe.mean, recipe.std, resize_mode=resize_mode, interpolation=recipe.interpolation
    )
    return transform(Image.fromarray(patch.permute(1, 2, 0).numpy()))


@pytest.mark.parametrize("side", [320, 224, 80])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_preprocessing_of_square_patches_is_openclips(side, interpolation):
    recipe = Preprocess(interpolation=interpolation)
    patch = picture(1, 3, side, side)
    ours = preprocess(patch, (224, 224), recipe)[0]
    theirs = openclip_transform(patch[0], 224, recipe, "shortest")
    step = 1 / 255 / min(recipe.std)
    assert (ours - theirs).abs().max() <= 1.01 * step
    assert (ours - theirs).abs().mean() <= 0.05 * step


def test_a_patch_that_is_not_square_is_squashed_and_kept_whole():
    patch = picture(1, 3, 90, 160)
    ours = preprocess(patch, (224, 224), Preprocess())[0]
    theirs = openclip_transform(patch[0], 224, Preprocess(), "squash")
    assert (ours - theirs).abs().max() <= 1.01 / 255 / min(Preprocess().std)
    edge = patch.clone()
    edge[..., :4] = 255  # lies outside a centre crop
    assert not torch.equal(preprocess(edge, (224, 224), Preprocess())[0], ours)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_the_encoder_sees_the_same_pixels_on_every_device(put, monkeypatch, device):
    teacher = load_teacher(str(put("openai.safetensors")), "hnerv-tiny", device)
    patches, seen, encode = picture(3, 3, 48, 48), [], teacher.net.encode_image
    monkeypatch.setattr(teacher.net, "encode_image", lambda images: seen.append(images) or encode(images))
    for given in (patches, patches.to(device)):
        assert teacher.encode_patches(given).device.type == device
        assert torch.equal(seen.pop().cpu(), preprocess(patches, (32, 32), Preprocess()))


def test_a_file_of_openai_weights_embeds_as_openclip_does_with_quickgelu(put, reference):
    teacher = load_teacher(str(put("tiny.openai.safetensors")), "hnerv-tiny")
    assert any(isinstance(module, QuickGELU) for module in teacher.net.modules())
    assert (teacher.kind, teacher.model) == ("clip", "hnerv-tiny-quickgelu")
    assert (teacher.dim, teacher.input_size) == (16, (32, 32))
    patches = picture(5, 3, 48, 48)
    images = torch.stack([openclip_transform(p, 32, Preprocess(), "shortest") for p in patches])
    with torch.no_grad():
        expected = reference.encode_image(images, normalize=True)
    given = teacher.encode_patches(patches)
    assert given.dtype == torch.float32 and given.shape == (5, 16)
    assert torch.allclose(given.norm(dim=-1), torch.ones(5), atol=1e-6)
    assert (given * expected).sum(-1).min() > 1 - 1e-4


def test_the_activation_changes_the_embedding(put):
    patches = picture(2, 3, 32, 32)
    quick = load_teacher(str(put("openai.safetensors")), "hnerv-tiny").encode_patches(patches)
    plain = load_teacher(str(put("laion2b_s1b.safetensors")), "hnerv-tiny")
    assert not any(isinstance(module, QuickGELU) for module in plain.net.modules())
    assert not torch.allclose(quick, plain.encode_patches(patches), atol=1e-5)


def test_a_cached_tag_loads_with_its_own_mean_and_deviation(in_hf_cache, reference, tiny):
    in_hf_cache()
    for weights in ("auto", "openai"):
        teacher = load_teacher(weights, "hnerv-tiny")
        assert (teacher.kind, teacher.weights) == ("clip", "openai")
        assert teacher.source == "OpenCLIP hnerv-tiny-quickgelu, openai"
        assert any(isinstance(module, QuickGELU) for module in teacher.net.modules())
    patches = picture(3, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tiny.mean, tiny.std))
    with torch.no_grad():
        expected = reference.encode_image((patches / 255 - mean) / std, normalize=True)
    assert torch.allclose(teacher.encode_patches(patches), expected, atol=1e-5)


def test_a_folder_as_openclip_saves_it(put, reference, tiny):
    folder = put("mine/open_clip_model.safetensors").parent
    config = {"model_cfg": tiny.config | {"quick_gelu": True}, "preprocess_cfg": {"mean": tiny.mean, "std": tiny.std}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    patches = picture(3, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tiny.mean, tiny.std))
    with torch.no_grad():
        expected = reference.encode_image((patches / 255 - mean) / std, normalize=True)
    for weights in (f"local-dir:{folder}", str(folder)):
        teacher = load_teacher(weights, "ViT-B-32")
        assert torch.allclose(teacher.encode_patches(patches), expected, atol=1e-5)
        assert teacher.encode_text(["a"]).shape == (1, 16)
        assert "folder mine" in teacher.source and str(folder) not in teacher.model


def test_plain_state_dicts_and_openais_extra_keys_load(tmp_path, reference):
    path = tmp_path / "some.pt"
    extra = {"input_resolution": 32, "context_length": torch.tensor(77), "vocab_size": torch.tensor(49408)}
    torch.save(reference.state_dict() | extra, path)
    patches = picture(2, 3, 32, 32)
    assert load_teacher(str(path), "hnerv-tiny").encode_patches(patches).shape == (2, 16)


def test_text_is_embedded_as_openclip_does(put, reference):
    teacher = load_teacher(str(put("openai.safetensors")), "hnerv-tiny")
    texts = ["a rabbit", "a butterfly over a meadow"]
    with torch.no_grad():
        expected = normalize(reference.encode_text(open_clip.tokenize(texts)), dim=-1)
    assert torch.allclose(teacher.encode_text(texts), expected, atol=1e-5)


def test_the_tokenizer_is_built_once(put, monkeypatch):
    teacher = load_teacher(str(put("openai.safetensors")), "hnerv-tiny")
    asked, original = [], open_clip.get_tokenizer
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda *a: asked.append(a) or original(*a))
    first, second = teacher.encode_text(["a rabbit"]), teacher.encode_text(["a rabbit"])
    assert len(asked) == 1 and torch.equal(first, second)


def test_the_teacher_is_frozen(put):
    teacher = load_teacher(str(put("openai.safetensors")), "hnerv-tiny")
    assert not teacher.net.training
    assert not any(parameter.requires_grad for parameter in teacher.net.parameters())
    assert not teacher.encode_patches(picture(1, 3, 32, 32)).requires_grad


def test_the_random_encoder_is_seeded_small_and_says_that_it_is_not_clip(warned):
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


def test_none_is_no_encoder():
    with pytest.raises(UserError, match="--clip-weights none selects no encoder"):
        load_teacher("none", "ViT-B-32")


def test_the_global_random_state_and_the_root_logger_are_left_alone(put):
    path = str(put("openai.safetensors"))
    root = logging.getLogger()
    before = torch.get_rng_state(), list(root.handlers), list(root.filters), root.level
    load_teacher("random", "ViT-B-32", seed=1).encode_patches(picture(1, 3, 32, 32))
    load_teacher(path, "hnerv-tiny")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (root.handlers, root.filters, root.level) == before[1:]


def test_openclips_message_about_random_weights_is_not_shown(put, caplog):
    load_teacher(str(put("openai.safetensors")), "hnerv-tiny")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("visual.proj"), "visual.proj is missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra is not part of it"),
        (
            lambda s: s.update({"visual.positional_embedding": torch.zeros(17, 32)}),
            r"visual.positional_embedding has shape \(17, 32\), not \(5, 32\)",
        ),
    ],
)
def test_weights_that_do_not_fit_name_the_model_and_the_first_key(tmp_path, weights_bytes, change, sentence):
    state = load(weights_bytes)
    change(state)
    save_file(state, tmp_path / "openai.safetensors")
    message = f"openai.safetensors do not fit hnerv-tiny-quickgelu: {sentence}: set --clip-model to their model"
    with pytest.raises(UserError, match=message):
        load_teacher(str(tmp_path / "openai.safetensors"), "hnerv-tiny")


def test_weights_that_nothing_describes_are_warned_of_once_they_are_loaded(put, warned):
    load_teacher(str(put("unknown 100%.safetensors")), "hnerv-tiny")
    assert len(warned()) == 1 and "whether unknown 100%.safetensors was trained with QuickGELU" in warned()[0]


@pytest.mark.parametrize("fault", ["damaged", "of another model"])
def test_weights_that_fail_are_one_line(put, warned, fault):
    path = put("unknown.safetensors")
    if fault == "damaged":
        path.write_bytes(b"damaged")
    with pytest.raises(UserError):
        load_teacher(str(path), "hnerv-tiny" if fault == "damaged" else "ViT-B-32")
    assert warned() == []


def test_weights_of_another_model_are_refused(put):
    with pytest.raises(UserError, match="do not fit ViT-B-32-quickgelu: .* has shape .*, not "):
        load_teacher(str(put("openai.safetensors")), "ViT-B-32")


def test_a_model_that_openclip_cannot_build_is_one_line(put, tiny):
    folder = put("mine/model.safetensors").parent
    config = {"model_cfg": tiny.config | {"vision_cfg": {"nonsense": 1}}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="OpenCLIP cannot build local-dir:mine.*nonsense.*--clip-model"):
        load_teacher(str(folder), "hnerv-tiny")
