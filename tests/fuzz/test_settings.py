"""Random configurations, command lines and tags."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st

from hnerv.cli import VERBS
from hnerv.cli import main as hnerv
from hnerv.config import Config, LogConfig
from hnerv.data.video import data_split, slice_positions
from hnerv.flags import eval_parser, train_parser
from hnerv.geometry import plan_crop
from hnerv.model import Scene, build_model, frame_multiple
from hnerv.presets import PRESETS
from hnerv.schedule import parse_lr
from hnerv.tracking import tags
from hnerv.tracking.tags import tag_of

# hypothesis warns where it would have to print a long example
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

SCENE = Scene(12, 32, 64, 2, 4, 25.0, tuple(range(11)), (11,), 8)


def test_configurations(hunt, mutated, settled, refused) -> None:
    """A configuration is refused with a message, or survives JSON and is accepted or refused by every reader."""

    def check(data: dict) -> None:
        config = settled(lambda: Config.from_dict(data))
        if config is refused:
            return
        assert Config.from_dict(config.to_dict()) == config
        assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        video = config.video
        assert 0 <= parse_lr(config.train.lr_type)(0.3) <= 1
        multiple = settled(lambda: frame_multiple(video, config.model))
        settled(lambda: slice_positions(video.frames, 12))
        settled(lambda: data_split(12, video.data_split))
        if multiple is not refused:
            settled(lambda: plan_crop((720, 1280), video.crop, video.resize, multiple))
        with torch.device("meta"):
            settled(lambda: build_model(config.model, SCENE))

    def of_preset(name: str) -> st.SearchStrategy:
        return mutated(Config().replaced(PRESETS[name]).to_dict())

    hunt(st.sampled_from([*PRESETS]).flatmap(of_preset), check, fast=130, campaign=2500)


def test_trees_that_are_no_configuration(hunt, junk, settled, refused) -> None:
    trees = st.recursive(junk, lambda inner: st.dictionaries(st.sampled_from([*Config().to_dict(), "x"]), inner))
    hunt(trees, lambda data: _is(settled(lambda: Config.from_dict(data)), refused), fast=50, campaign=500)


def _is(found: object, expected: object) -> None:
    assert found is expected


def words_of(parser, junk: st.SearchStrategy) -> st.SearchStrategy:
    """Flags of a parser, some misspelt, with valid values, values of other flags, and junk."""
    flags = [flag for action in parser._actions for flag in action.option_strings if flag not in ("-h", "--help")]
    flags = [flag for flag in flags if not flag.startswith("--debug")]
    numbers = ["0", "1", "-1", "2", "0.5", "1e9", "nan", "2x4", "32x64", "::2", "-3:", "1_2_3", "0_3_3"]
    fits = st.sampled_from([*numbers, "demo", "grid", "random", "none", "cpu", "-o", "a,b"])
    value = st.one_of(fits, junk.map(str).map(as_argument))
    pair = st.tuples(st.sampled_from(flags), value).map("=".join)
    misspelt = st.sampled_from(flags).map(lambda flag: flag[:-1])
    word = st.one_of(pair, pair, pair, st.sampled_from(flags), value, misspelt)
    return st.lists(word, max_size=8)


def as_argument(text: str) -> str:
    """An argument that the operating system would pass: UTF-8 without zero bytes."""
    return text.replace("\0", "").encode(errors="ignore").decode()[:6000]


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, which must stay empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_command_lines_of_training(hunt, junk, ended, nowhere, run_script) -> None:
    """The video is missing, so that a valid command line has status 2 as well."""

    def check(words: list[str]) -> None:
        gone = ["--exp-id", "x", "--data", "gone.mp4", *words]
        assert ended(lambda: run_script("train_patch_dual", gone)) == 2
        assert not list(nowhere.iterdir())

    hunt(words_of(train_parser(), junk), check, fast=80, campaign=1500)


def test_names_of_runs(hunt, junk, ended, nowhere, run_script) -> None:
    parts = st.one_of(
        junk.map(str).map(as_argument), st.sampled_from(["..", ".", "/", "a", "{params}", "~", "-x", "%s"])
    )

    def check(names: list[str]) -> None:
        words = [f"--exp-id={'/'.join(names)}", "--data", "gone.mp4", "--device", "cpu"]
        assert ended(lambda: run_script("train_patch_dual", words)) == 2
        assert not list(nowhere.iterdir())

    hunt(st.lists(parts, max_size=4), check, fast=50, campaign=500)


def test_command_lines_of_evaluation(hunt, junk, ended, nowhere, run_script) -> None:
    def check(words: list[str]) -> None:
        assert ended(lambda: run_script("eval", words)) == 2
        assert not list(nowhere.iterdir())

    words = words_of(eval_parser(), junk)
    hunt(words, check, fast=60, campaign=800)


def test_command_lines_of_the_verbs(hunt, junk, ended, nowhere) -> None:
    """Without `doctor`, which succeeds without a file."""
    from hnerv.cli import build_parser

    verbs = build_parser()._subparsers._group_actions[0].choices
    lines = st.sampled_from([verb for verb in VERBS if verb != "doctor"]).flatmap(
        lambda verb: words_of(verbs[verb], junk).map(lambda words: [verb, *words])
    )

    def check(words: list[str]) -> None:
        assert ended(lambda: hnerv(words)) == 2
        assert not list(nowhere.iterdir())

    hunt(lines, check, fast=100, campaign=1500)


def test_logging(hunt, junk, settled) -> None:
    def check(given: tuple) -> None:
        settled(lambda: LogConfig(profile=given[0], images_freq=given[1]))

    hunt(st.tuples(junk.map(str), st.integers()), check, fast=30, campaign=300)


def test_names_of_tags(hunt, junk) -> None:
    templates = list(tags().values())

    def check(case: tuple) -> None:
        tag, number, rest, other = case
        name = re.sub(r"\{\w+\}", rest, tag.name.replace("{n}", str(number)))
        assert tag_of(name, tag.kind).kind == tag.kind
        with pytest.raises(KeyError):
            tag_of(f"Nobody/{other}", tag.kind)

    rest = st.text("abcxyz/_09", min_size=1, max_size=9)
    hunt(st.tuples(st.sampled_from(templates), st.integers(0, 99), rest, junk.map(str)), check, fast=60, campaign=500)
