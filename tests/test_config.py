"""Configurations: conversion to JSON and back; every check and its message."""

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
from hnerv.model.decoder import ACTIVATIONS, DECODERS
from hnerv.model.embeddings import EMBEDDINGS
from hnerv.presets import PRESETS
from hnerv.training.optim import OPTIMIZERS

SECTIONS = {field.name: field.default_factory for field in dataclasses.fields(Config)}
FIELDS = [(name, field) for name, kind in SECTIONS.items() for field in dataclasses.fields(kind)]
ALL = [*(field for _, field in FIELDS), *dataclasses.fields(LogConfig)]
DEFAULTS = {field.name: field.default for field in ALL}
LOGGED = {field.name for field in dataclasses.fields(LogConfig)}
NEEDED = dict.fromkeys(("rate_ramp_epochs", "target_bpp"), {"rate_weight": 1.0})
SOME = {"data": "a.mp4", "dec_strides": (3, 2), "modelsize": 2.0, "shuffle_data": True, "epochs": 7, "act": "gelu"}


def refusal(call, *args) -> str:
    with pytest.raises(UserError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def other(value: object) -> object:
    """Another valid value of the same type, if there is one for every field."""
    if isinstance(value, bool):
        return not value
    return value + {int: 2, float: 0.25}[type(value)] if isinstance(value, int | float) else value


@pytest.mark.parametrize("changes", [{}, SOME, *PRESETS.values()])
def test_to_dict_and_back(changes):
    config = Config().replaced(changes)
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(Config().replaced(changes))


def test_every_field_survives_json():
    for section, field in FIELDS:
        config = Config().replaced({**NEEDED.get(field.name, {}), field.name: other(field.default)})
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
    assert set(choices["decoder"]) == set(DECODERS)
    assert set(choices["act"]) == set(ACTIVATIONS)
    assert set(choices["pixel_loss"]) == set(LOSSES)
    assert set(choices["optimizer"]) == set(OPTIMIZERS)


def edited(path: str, value: object) -> dict:
    """The default configuration as a dictionary, with one value set, or removed by ..."""
    data = Config().to_dict()
    *section, key = path.split(".")
    part = data[section[0]] if section else data
    part[key] = value
    if value is ...:
        del part[key]
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("extra", {}, "the configuration does not fit this version: unknown extra"),
        ("clip", ..., "the configuration does not fit this version: missing clip"),
        ("train.zeal", 1, "section 'train' of the configuration does not fit this version: unknown zeal"),
        ("train.lr", ..., "section 'train' of the configuration does not fit this version: missing lr"),
        ("video", 3, "section 'video' of the configuration is 3, not a dictionary"),
        ("video", ["data"], "section 'video' of the configuration is ['data'], not a dictionary"),
        *(
            (path, value, f"{path} in the configuration is {value!r}, not of type {kind}")
            for path, kind, values in (
                ("train.epochs", "int", (3.0, True, "3")),
                ("train.lr", "float", ("0.1", True)),
                ("model.bilinear_init", "bool", (1,)),
                ("video.data", "str", (None,)),
                ("model.act", "str", (1,)),
                ("model.dec_strides", "tuple", ([2, "2"], 4)),
            )
            for value in values
        ),
    ],
)
def test_a_dictionary_that_does_not_fit(path, value, message):
    assert refusal(Config.from_dict, edited(path, value)) == message


def test_json_that_is_no_dictionary():
    assert refusal(Config.from_dict, [1]) == "the configuration is [1], not a dictionary"


def test_an_integer_becomes_a_float_where_one_is_expected():
    config = Config.from_dict(edited("model.modelsize", 3))
    assert config.model.modelsize == 3.0 and type(config.model.modelsize) is float


NAN, INF = float("nan"), float("inf")
AT_LEAST_0 = (
    "dec_width clip_loss_weight pixel_loss_warmup_epochs clip_ramp_epochs rate_weight rate_ramp_epochs target_bpp "
    "weight_decay blend_freq grad_clip"
)
AT_LEAST_1 = "lower_width width_multiple embed_dim grid_levels pe_stem enc_width clip_pool clip_hidden rgb_stride"
MINIMA = {
    **dict.fromkeys(f"{AT_LEAST_0} eval_freq seed checkpoint_seconds images_freq histogram_freq".split(), 0),
    **dict.fromkeys(f"{AT_LEAST_1} epochs batch_size rate_freq checkpoint_freq params_freq".split(), 1),
}
ABOVE_0 = ("modelsize", "reduce", "expansion", "lr", "embed_lr_factor")


def refused_value(field: str, value: object) -> str:
    """The message that refuses a value, without its flag and value."""
    if field in LOGGED:
        message = refusal(lambda: LogConfig(**{field: value}))
    else:
        message = refusal(Config().replaced, NEEDED.get(field, {}) | {field: value})
    start = f"--{field.replace('_', '-')} {value!r}"
    assert message.startswith(start)
    return message.removeprefix(start).lstrip(" :")


@pytest.mark.parametrize("field", MINIMA)
def test_minima(field):
    default = DEFAULTS[field]
    assert refused_value(field, type(default)(MINIMA[field] - 1)) == f"must be at least {MINIMA[field]}"
    if isinstance(default, float):
        assert refused_value(field, NAN) == "must be at least 0"
        assert refused_value(field, INF) == "must be a finite number"
    else:
        assert refused_value(field, 1 << 60).partition(":")[0] in ("is out of range", "must be at most 64")


@pytest.mark.parametrize("field", ABOVE_0)
def test_positive_numbers(field):
    assert all(refused_value(field, value) == "must be above 0" for value in (0.0, -1.0, NAN))
    assert refused_value(field, INF) == "must be a finite number"


@pytest.mark.parametrize("field", [field for field in ALL if field.metadata["choices"]], ids=lambda field: field.name)
def test_choices(field):
    for value in ("lion", "", f"{field.default} ", str(field.default).swapcase()):
        expected = f"does not exist: choose from {', '.join(field.metadata['choices'])}"
        assert refused_value(field.name, value) == expected


BAD_PE = "base and number of frequencies must be above 0"
HIGH_PE = "the highest frequency, pi B^(L - 1), is above 1e38: lower the base or the number"
CHECKS = {
    ("dec_strides", (), (2, 0)): "must be strides of at least 1",
    ("enc_strides", (), (-1,)): "must be strides of at least 1",
    ("dec_depths", (), (0,), (2, 2), (1, 1, 1, 1, 0), (1,) * 6): (
        "must be one number of at least 1, or one for each of the 5 stages of --dec-strides"
    ),
    ("dec_depths", (26,)): "makes 130 blocks in 5 stages: pass at most 128",
    ("dec_depths", (1, 1, 1, 1, 125)): "makes 129 blocks in 5 stages: pass at most 128",
    ("clip_site", 0, 6): "is not a decoder stage: choose from 1 to 5",
    ("grid_knots", 1, -1): "must be 0 or at least 2",
    ("ks", "0_1", "0_a_5", "0_\N{SUPERSCRIPT TWO}_5"): "must be E_D1_D2, as in 0_1_5",
    ("ks", "3_1_5"): "the ConvNeXt encoder always has 7x7 kernels: write 0_1_5",
    ("ks", "0_2_5", "0_1_4"): "decoder kernel sizes must be odd",
    ("pe", "1.25", "x_80", "1.25_8.5"): "must be BASE_LEVELS, as in 1.25_80",
    ("pe", "0_80", "nan_80", "1.25_0"): BAD_PE,
    ("pe", "10_80", "inf_2"): HIGH_PE,
    ("ema_decay", -0.1, 1.0, NAN, INF): "must be at least 0 and below 1, as in 0.999",
    ("rounding_start", -0.1, 1.1, NAN): "must be between 0 and 1",
    ("grid", "2"): "must be two integers ROWSxCOLUMNS, as in 2x4",
    ("profile", "5", "5:", ":5", "5:5", "6:5", "-1:5", "a:b", "1:2:3", "\N{SUPERSCRIPT TWO}:3"): (
        "must be START:STOP, two step numbers with START below STOP, as in 10:15"
    ),
}


@pytest.mark.parametrize("case", CHECKS, ids=lambda case: case[0])
def test_other_checks(case):
    field, *values = case
    assert all(refused_value(field, value) == CHECKS[case] for value in values)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_bpp": 0.1}, "need a weight of the rate to start from: pass --rate-weight, as in 0.001"),
        ({"rate_ramp_epochs": 1}, "need a weight of the rate to start from: pass --rate-weight, as in 0.001"),
        ({"rate_weight": 1.0, "embedding": "encoder"}, "--rate-weight needs parameters that are coded"),
        ({"rate_weight": 1.0, "ema_decay": 0.9}, "--ema-decay averages weights, which undoes the rounding of --rate-w"),
    ],
)
def test_settings_of_the_rate_that_exclude_each_other(changes, words):
    assert words in refusal(Config().replaced, changes)


def test_a_schedule_that_does_not_exist_is_found_at_once():
    assert refusal(Config().replaced, {"lr_type": "linear"}).startswith("--lr-type 'linear' is not a known schedule")


def test_a_width_makes_the_size_needless():
    assert ModelConfig(modelsize=0.0, dec_width=8).dec_width == 8


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_kernels, "0_1_5", (1, 5)),
        (parse_kernels, "0_11_7", (11, 7)),
        (parse_pe, "1.25_80", (1.25, 80)),
        (parse_pe, "2_10", (2.0, 10)),
        (parse_steps, "", range(0)),
        (parse_steps, "0:1", range(1)),
        (parse_steps, "10:13", range(10, 13)),
    ],
)
def test_values_in_words(parse, text, value):
    assert parse(text) == value


def test_depths_are_those_of_each_stage():
    strides = {"dec_strides": (5, 2, 2), "clip_site": 1}
    assert ModelConfig(**strides).depths == (2, 2, 2) and ModelConfig(**strides, dec_depths=(3,)).depths == (3, 3, 3)
    assert ModelConfig(**strides, dec_depths=(3, 1, 2)).depths == (3, 1, 2)


def test_strides_are_those_of_the_stages_and_of_the_head():
    assert ModelConfig(dec_strides=(5, 2), clip_site=1, rgb_stride=2).strides == (5, 2, 2)


def test_replaced_changes_the_fields_named_and_no_other():
    config = Config().replaced(SOME)
    assert Config().flat() | SOME == config.flat()
    assert Config() == Config().replaced({})
    assert (
        refusal(Config().replaced, {"epoch": 3, "epochs": 3})
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
