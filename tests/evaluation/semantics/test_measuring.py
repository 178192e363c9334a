"""A run on the targets of a real OpenCLIP model: its encoder on decoded patches, and what texts find."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch.nn.functional import normalize

from hnerv.codec import Bitstream, open_stream
from hnerv.data.clip import load_teacher
from hnerv.evaluation import open_run
from hnerv.evaluation.measure import clip_measures
from hnerv.evaluation.semantics import as_dict, default_queries, measure, text_of
from hnerv.evaluation.semantics.comparing import ENCODER, HEAD, MEAN, NEIGHBOURS, PCA
from hnerv.model.predict import predict, round8

CPU = torch.device("cpu")
TEXTS = ["a dog on a lawn", "snow", "a red apple"]


@pytest.fixture(scope="module")
def run(clip_run):
    return open_run(clip_run, CPU)


@pytest.fixture(scope="module")
def found(run):
    return measure(run, TEXTS)


@torch.no_grad()
def test_the_encoder_is_measured_on_the_decoded_patches(run, found, clip_weights):
    rgb = torch.cat([predict(run.model, times).rgb for times in torch.arange(12.0).split(4)])
    patches = run.model.scene.grid.split((round8(rgb) * 255).round().to(torch.uint8))
    teacher = load_teacher(str(clip_weights), run.config.clip.clip_model)
    made = teacher.encode_patches(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
    train, val = (torch.tensor(positions) for positions in (run.model.scene.train, run.model.scene.val))
    where = torch.cat([train, val])  # patches that were decoded alike tie, and ties rank in the order of the rows
    truth = run.store.clip(where)
    expected = clip_measures(made[where], truth, where, truth[: len(train)].mean((0, 1)))
    row = next(row for row in found.rows if row.name == ENCODER)
    assert row.size is None and set(row.splits) == {"train", "val"}
    for split, rows in (("train", slice(len(train))), ("val", slice(len(train), None))):
        for field in ("sim", "centred", "found10", "spearman"):
            value = getattr(expected, field)[rows].double().mean().item()
            assert row.splits[split][field] == pytest.approx(value, abs=1e-4), (split, field)


@torch.no_grad()
def test_texts_are_ranked_as_by_a_loop(run, found, clip_model):
    queries = normalize(clip_model.encode_text(open_clip.tokenize(TEXTS)), dim=-1)
    scene = run.model.scene
    frames = [*scene.train, *scene.val]
    ours = run.model(torch.arange(12.0)).clip[frames].flatten(0, 1)
    truth = run.store.clip(torch.tensor(frames)).flatten(0, 1)
    places = [(frame, patch) for frame in frames for patch in range(8)]
    ranks, overlaps = [], []
    for query in queries:
        order, true = ((rows @ query).argsort(descending=True).tolist() for rows in (ours, truth))
        frame, patch = places[true[0]]
        near = [places[k][1] == patch and abs(places[k][0] - frame) <= 1 for k in order]
        ranks.append(near.index(True))
        overlaps.append(len({*order[:10]} & {*true[:10]}) / 10)
    row = found.rows[0]
    assert row.name == HEAD and found.queries == len(TEXTS)
    for top, name in ((1, "found"), (5, "found5"), (10, "found10")):
        assert row.texts[name] == pytest.approx(sum(rank < top for rank in ranks) / len(TEXTS))
    assert row.texts["overlap"] == pytest.approx(sum(overlaps) / len(TEXTS))
    assert -1 <= row.texts["spearman"] <= 1


def test_texts_are_asked_of_what_ranks_all_frames(found):
    rows = {row.name: row for row in found.rows}
    asked = [name for name, row in rows.items() if row.texts]
    assert asked == [HEAD, ENCODER] or asked == [HEAD, PCA, ENCODER]
    assert not rows[MEAN].texts and not rows[NEIGHBOURS].texts
    block = next(block for block in text_of(found).split("\n\n") if block.startswith("3 text queries"))
    assert [line[:20].strip() for line in block.splitlines()[1:]] == asked
    written = as_dict(found)
    assert written["queries"] == 3 and set(written["rows"][0]["texts"]) == {
        "recall@1", "recall@5", "recall@10", "overlap@10", "Spearman"
    }  # fmt: skip
    assert not any(note.startswith("text queries: left out") for note in found.notes)


def test_without_a_list_it_is_the_packages(film, alone_clip, clip_weights, monkeypatch):
    monkeypatch.chdir(clip_weights.parent)  # a file names its weights without their folder
    opened = open_stream(alone_clip, CPU, str(film))
    found = measure(opened)
    (section,) = [part.size for part in Bitstream(alone_clip).parts() if part.name == "clip_head"]
    assert found.queries == len(default_queries()) and found.measured_bytes and found.rows[0].size == section


@pytest.fixture(scope="module")
def alone_clip(clip_run, tmp_path_factory):
    from hnerv.cli import main

    path = tmp_path_factory.mktemp("coded") / "clip.hnerv"
    main(["encode", str(clip_run), "-o", str(path), "--no-measure"])
    return path


def test_targets_of_a_file_have_no_text(finished):
    found = measure(open_run(finished, CPU))
    assert found.queries == 0 and ENCODER not in [row.name for row in found.rows]
    (line,) = [note for note in found.notes if note.startswith("text queries")]
    assert "the targets come from a file" in line and "text queries" in text_of(found)


def test_random_targets_have_an_encoder_but_no_text(tmp_path, train, flags):
    assert train(tmp_path, flags(clip_targets=None, clip_weights="random", epochs=1)) == 0
    found = measure(open_run(tmp_path / "run", CPU))
    assert found.queries == 0 and ENCODER in [row.name for row in found.rows]
    assert any("has no meaning for the RANDOM encoder" in note for note in found.notes)


def test_weights_that_are_gone(clip_run, tmp_path):
    opened = open_run(clip_run, CPU)
    gone = opened.config.replaced({"clip_weights": str(tmp_path / "gone.safetensors")})
    found = measure(opened._replace(config=gone))
    lines = [note for note in found.notes if "left out" in note]
    assert len(lines) == 2 and "gone.safetensors" in lines[0] and "there is no encoder" in lines[1]
