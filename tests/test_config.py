"""Configurations: there and back, also through JSON; every check and its sentence."""

from __future__ import annotations

import dataclasses
import json
import typing

import pytest

from hnerv.config import (
    Config,
    LogConfig,
    ModelConfig,
    differences,
    parse_kernels,
    parse_pe,
    parse_steps,
    pixel_loss_help,
)
from hnerv.errors import UserError
from hnerv.losses import LOSSES, formula
from hnerv.model.decoder import ACTIVATIONS
from hnerv.model.embeddings import EMBEDDINGS
from hnerv.presets import PRESETS
from hnerv.training.optim import OPTIMIZERS

SECTIONS = {field.name: field.default_factory for field in dataclasses.fields(Config)}
FIELDS = [(name, field) for name, kind in SECTIONS.items() for field in dataclasses.fields(kind)]
SOME = {"data": "a.mp4", "dec_strides": (3, 2), "modelsize": 2.0, "shuffle_data": True, "epochs": 7, "act": "gelu"}


def said(call, *args) -> str:
    with pytest.raises(UserError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def other(value: object) -> object:
    """A value of the same type that no field has by default and every check accepts, where there is one."""
    if isinstance(value, bool):
        return not value
    return value + 2 if isinstance(value, int | float) else value


@pytest.mark.parametrize("changes", [{}, SOME, *PRESETS.values()])
def test_to_dict_and_back(changes):
    config = Config().replaced(changes)
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(Config().replaced(changes))


def test_every_field_survives_json():
    for section, field in FIELDS:
        config = Config().replaced({field.name: other(field.default)})
        back = Config.from_dict(json.loads(json.dumps(config.to_dict())))
        value = getattr(getattr(back, section), field.name)
        assert value == other(field.default) and type(value) is type(field.default)


def test_field_names_are_unique_over_the_sections():
    names = [field.name for _, field in FIELDS]
    assert len(set(names)) == len(names)
    assert set(Config().flat()) == set(names)


def test_every_field_has_a_type_help_and_a_default_of_that_type():
    for section, field in FIELDS:
        hint = typing.get_type_hints(SECTIONS[section])[field.name]
        hint = str if typing.get_origin(hint) is typing.Literal else hint
        assert hint in (str, int, float, bool, tuple[int, ...])
        assert type(field.default) is (tuple if hint == tuple[int, ...] else hint)
        assert field.metadata["help"]
        assert not field.metadata["choices"] or field.default in field.metadata["choices"]


def test_choices_are_the_tables():
    choices = {field.name: field.metadata["choices"] for _, field in FIELDS}
    assert set(choices["embedding"]) == set(EMBEDDINGS)
    assert set(choices["act"]) == set(ACTIVATIONS)
    assert set(choices["pixel_loss"]) == set(LOSSES)
    assert set(choices["optimizer"]) == set(OPTIMIZERS)


def edited(edit) -> dict:
    data = Config().to_dict()
    edit(data)
    return data


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(extra={}), "the configuration does not fit this version: unknown extra"),
        (lambda d: d.pop("clip"), "the configuration does not fit this version: missing clip"),
        (
            lambda d: (d["train"].update(zeal=1, haste=2), d["train"].pop("lr"), d["train"].pop("epochs")),
            "section 'train' of the configuration does not fit this version: unknown haste, zeal; missing epochs, lr",
        ),
        (lambda d: d.update(video=3), "section 'video' of the configuration is 3, not a dictionary"),
        (lambda d: d.update(video=["data"]), "section 'video' of the configuration is ['data'], not a dictionary"),
        (lambda d: d["train"].update(epochs=3.0), "train.epochs in the configuration is 3.0, not of type int"),
        (lambda d: d["train"].update(epochs=True), "train.epochs in the configuration is True, not of type int"),
        (lambda d: d["train"].update(epochs="3"), "train.epochs in the configuration is '3', not of type int"),
        (lambda d: d["train"].update(lr="0.1"), "train.lr in the configuration is '0.1', not of type float"),
        (lambda d: d["train"].update(lr=True), "train.lr in the configuration is True, not of type float"),
        (
            lambda d: d["model"].update(bilinear_init=1),
            "model.bilinear_init in the configuration is 1, not of type bool",
        ),
        (lambda d: d["video"].update(data=None), "video.data in the configuration is None, not of type str"),
        (
            lambda d: d["model"].update(dec_strides=[2, "2"]),
            "model.dec_strides in the configuration is [2, '2'], not of type tuple",
        ),
        (lambda d: d["model"].update(dec_strides=4), "model.dec_strides in the configuration is 4, not of type tuple"),
        (lambda d: d["model"].update(dec_strides=[]), "--dec-strides () must be strides of at least 1"),
    ],
)
def test_a_dictionary_that_does_not_fit_is_named(edit, message):
    assert said(Config.from_dict, edited(edit)) == message


def test_what_is_no_dictionary_is_refused():
    assert said(Config.from_dict, [1]) == "the configuration is [1], not a dictionary"


def test_a_whole_number_passes_for_a_float_and_becomes_one():
    config = Config.from_dict(edited(lambda d: d["model"].update(modelsize=3)))
    assert config.model.modelsize == 3.0 and type(config.model.modelsize) is float


NAN = float("nan")
CHECKS = [
    ("modelsize", 0.0, "--modelsize 0.0 must be above 0"),
    ("modelsize", float("inf"), "--modelsize inf must be a finite number"),
    ("lr", float("inf"), "--lr inf must be a finite number"),
    ("modelsize", NAN, "--modelsize nan must be above 0"),
    ("dec_width", -1, "--dec-width -1 must be at least 0"),
    ("dec_strides", (), "--dec-strides () must be strides of at least 1"),
    ("dec_strides", (2, 0), "--dec-strides (2, 0) must be strides of at least 1"),
    ("enc_strides", (), "--enc-strides () must be strides of at least 1"),
    ("enc_strides", (-1,), "--enc-strides (-1,) must be strides of at least 1"),
    ("clip_site", 0, "--clip-site 0 is not a decoder stage: choose from 1 to 5"),
    ("clip_site", 6, "--clip-site 6 is not a decoder stage: choose from 1 to 5"),
    ("reduce", 0.0, "--reduce 0.0 must be above 0"),
    ("lower_width", 0, "--lower-width 0 must be at least 1"),
    ("embed_dim", 0, "--embed-dim 0 must be at least 1"),
    ("grid_levels", 0, "--grid-levels 0 must be at least 1"),
    ("pe_stem", 0, "--pe-stem 0 must be at least 1"),
    ("enc_width", 0, "--enc-width 0 must be at least 1"),
    ("clip_hidden", 0, "--clip-hidden 0 must be at least 1"),
    ("clip_pool", 0, "--clip-pool 0 must be at least 1"),
    ("rgb_stride", 0, "--rgb-stride 0 must be at least 1"),
    ("grid_knots", 1, "--grid-knots 1 must be 0 or at least 2"),
    ("grid_knots", -1, "--grid-knots -1 must be 0 or at least 2"),
    ("ks", "0_1", "--ks '0_1' must be E_D1_D2, as in 0_1_5"),
    ("ks", "0_a_5", "--ks '0_a_5' must be E_D1_D2, as in 0_1_5"),
    ("ks", "0_\N{SUPERSCRIPT TWO}_5", "--ks '0_\N{SUPERSCRIPT TWO}_5' must be E_D1_D2, as in 0_1_5"),
    ("ks", "3_1_5", "--ks '3_1_5': the ConvNeXt encoder always has 7x7 kernels: write 0_1_5"),
    ("ks", "0_2_5", "--ks '0_2_5': decoder kernel sizes must be odd"),
    ("ks", "0_1_4", "--ks '0_1_4': decoder kernel sizes must be odd"),
    ("pe", "1.25", "--pe '1.25' must be BASE_LEVELS, as in 1.25_80"),
    ("pe", "x_80", "--pe 'x_80' must be BASE_LEVELS, as in 1.25_80"),
    ("pe", "1.25_8.5", "--pe '1.25_8.5' must be BASE_LEVELS, as in 1.25_80"),
    ("pe", "0_80", "--pe '0_80': base and number of frequencies must be above 0"),
    ("pe", "nan_80", "--pe 'nan_80': base and number of frequencies must be above 0"),
    ("pe", "1.25_0", "--pe '1.25_0': base and number of frequencies must be above 0"),
    (
        "pe", "10_80",
        "--pe '10_80': the highest frequency, pi B^(L - 1), is above 1e38: lower the base or the number",
    ),
    (
        "pe", "inf_2",
        "--pe 'inf_2': the highest frequency, pi B^(L - 1), is above 1e38: lower the base or the number",
    ),
    ("clip_loss_weight", -0.1, "--clip-loss-weight -0.1 must be at least 0"),
    ("clip_loss_weight", NAN, "--clip-loss-weight nan must be at least 0"),
    ("pixel_loss_warmup_epochs", -1, "--pixel-loss-warmup-epochs -1 must be at least 0"),
    ("clip_ramp_epochs", -1, "--clip-ramp-epochs -1 must be at least 0"),
    ("epochs", 0, "--epochs 0 must be at least 1"),
    ("batch_size", 0, "--batch-size 0 must be at least 1"),
    ("checkpoint_freq", 0, "--checkpoint-freq 0 must be at least 1"),
    ("params_freq", 0, "--params-freq 0 must be at least 1"),
    ("lr", 0.0, "--lr 0.0 must be above 0"),
    ("lr", NAN, "--lr nan must be above 0"),
    ("embed_lr_factor", -5.0, "--embed-lr-factor -5.0 must be above 0"),
    ("weight_decay", -1.0, "--weight-decay -1.0 must be at least 0"),
    ("blend_freq", -1, "--blend-freq -1 must be at least 0"),
    ("grad_clip", -1.0, "--grad-clip -1.0 must be at least 0"),
    ("eval_freq", -1, "--eval-freq -1 must be at least 0"),
    ("seed", -1, "--seed -1 must be at least 0"),
    ("grid", "2", "--grid '2' must be two integers ROWSxCOLUMNS, as in 2x4"),
    ("embedding", "voxel", "--embedding 'voxel' does not exist: choose from grid, encoder, pe"),
    ("act", "relu", "--act 'relu' does not exist: choose from sin, gelu"),
    ("unseen", "guess", "--unseen 'guess' does not exist: choose from interpolate, encode"),
    ("pixel_loss", "L3", f"--pixel-loss 'L3' does not exist: choose from {', '.join(LOSSES)}"),
    *(
        ("optimizer", name, f"--optimizer {name!r} does not exist: choose from {', '.join(OPTIMIZERS)}")
        for name in ("adamm", "", "muon ", "MUON", "lion")
    ),
    ("precision", "fp8", "--precision 'fp8' does not exist: choose from auto, fp32, bf16"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "message"), CHECKS)
def test_every_check_says_which_value_is_wrong(field, value, message):
    changes = {"dec_strides": (5, 4, 4, 2, 2), field: value}
    assert said(Config().replaced, changes) == message


def test_a_schedule_that_does_not_exist_is_found_at_once():
    assert said(Config().replaced, {"lr_type": "linear"}).startswith("--lr-type 'linear' is not a known schedule")


def test_a_width_makes_the_size_needless():
    assert ModelConfig(modelsize=0.0, dec_width=8).dec_width == 8


@pytest.mark.parametrize(("ks", "kernels"), [("0_1_5", (1, 5)), ("0_3_3", (3, 3)), ("0_11_7", (11, 7))])
def test_kernels(ks, kernels):
    assert parse_kernels(ks) == kernels


@pytest.mark.parametrize(
    ("text", "steps"), [("", []), ("0:1", [0]), ("10:13", [10, 11, 12])]
)  # fmt: skip
def test_steps_of_a_profile(text, steps):
    assert list(parse_steps(text)) == steps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            (
                {"profile": text},
                f"--profile {text!r} must be START:STOP, two step numbers with START below STOP, as in 10:15",
            )
            for text in ("5", "5:", ":5", "5:5", "6:5", "-1:5", "a:b", "1:2:3", "\N{SUPERSCRIPT TWO}:3")
        ),
        ({"images_freq": -1}, "--images-freq -1 must be at least 0"),
        ({"histogram_freq": -2}, "--histogram-freq -2 must be at least 0"),
        ({"report_to": "visdom"}, "--report-to 'visdom' does not exist: choose from tensorboard, none, wandb"),
    ],
)
def test_every_check_of_what_is_logged(changes, message):
    assert said(lambda: LogConfig(**changes)) == message


@pytest.mark.parametrize(("pe", "values"), [("1.25_80", (1.25, 80)), ("2_10", (2.0, 10)), ("0.5_3", (0.5, 3))])
def test_positional_encodings(pe, values):
    assert parse_pe(pe) == values


def test_strides_are_those_of_the_stages_and_of_the_head():
    assert ModelConfig(dec_strides=(5, 2), clip_site=1, rgb_stride=2).strides == (5, 2, 2)


def test_replaced_changes_the_fields_named_and_no_other():
    config = Config().replaced(SOME)
    assert Config().flat() | SOME == config.flat()
    assert Config() == Config().replaced({})
    assert (
        said(Config().replaced, {"epoch": 3, "epochs": 3})
        == "this set of settings does not fit this version: unknown epoch"
    )


def test_differences_are_what_was_replaced():
    config = Config().replaced(SOME)
    assert differences(config, config) == {}
    assert differences(config, Config()) == {key: (value, Config().flat()[key]) for key, value in SOME.items()}
    swapped = {key: (theirs, ours) for key, (ours, theirs) in differences(config, Config()).items()}
    assert differences(Config(), config) == swapped


def test_the_help_has_a_line_for_every_loss():
    assert [line.split(maxsplit=1) for line in pixel_loss_help().splitlines()] == [[n, formula(n)] for n in LOSSES]
