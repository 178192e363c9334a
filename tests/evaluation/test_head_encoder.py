"""The encoder of the targets on decoded patches, and text queries, with a real OpenCLIP model."""

from __future__ import annotations

import dataclasses

import open_clip
import pytest
import torch
from torch.nn.functional import normalize

from hnerv.codec import open_coded_run, open_single_chunk
from hnerv.data.clip import load_teacher
from hnerv.evaluation import compare_head, head_table, open_run
from hnerv.evaluation.head_comparison import ENCODER, HEAD, MEAN, NAMES, NEIGHBOURS, PCA, default_queries
from hnerv.evaluation.measure import clip_measures
from hnerv.model.predict import predict, round8

CPU = torch.device("cpu")
TEXTS = ["a dog on a lawn", "snow", "a red apple"]


@pytest.fixture(scope="module")
def run(clip_run):
    return open_run(clip_run, CPU)


@pytest.fixture(scope="module")
def found(run):
    return compare_head(run, queries=TEXTS)


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
    assert row.bytes is None and set(row.splits) == {"train", "val"}
    for split, rows in (("train", slice(len(train))), ("val", slice(len(train), None))):
        for field in ("sim", "centred", "found10", "spearman"):
            value = getattr(expected, field)[rows].double().mean().item()
            assert row.splits[split][NAMES[field]] == pytest.approx(value, abs=1e-4), (split, field)


@torch.no_grad()
def test_texts_are_ranked_as_by_a_loop(run, found, clip_model):
    queries = normalize(clip_model.encode_text(open_clip.tokenize(TEXTS)), dim=-1)
    scene = run.model.scene
    frames = [*scene.train, *scene.val]
    ours = run.model(torch.arange(12.0)).clip[frames].flatten(0, 1)
    truth = run.store.clip(torch.tensor(frames)).flatten(0, 1)
    places = [(frame, patch) for frame in frames for patch in range(8)]
    ranks, exact, overlaps = [], [], []
    for query in queries:
        order, true = ((rows @ query).argsort(descending=True).tolist() for rows in (ours, truth))
        frame, patch = places[true[0]]
        near = [places[k][1] == patch and abs(places[k][0] - frame) <= 1 for k in order]
        ranks.append(near.index(True))
        exact.append(order[0] == true[0])
        overlaps.append(len({*order[:10]} & {*true[:10]}) / 10)
    row = found.rows[0]
    assert row.name == HEAD and found.queries == len(TEXTS)
    for top, name in ((1, "recall@1"), (5, "recall@5"), (10, "recall@10")):
        assert row.texts[name] == pytest.approx(sum(rank < top for rank in ranks) / len(TEXTS))
    assert row.texts["exact@1"] == pytest.approx(sum(exact) / len(TEXTS))
    assert row.texts["overlap@10"] == pytest.approx(sum(overlaps) / len(TEXTS))
    assert -1 <= row.texts["Spearman"] <= 1


def test_texts_query_rows_that_rank_all_frames(found):
    rows = {row.name: row for row in found.rows}
    queried = [name for name, row in rows.items() if row.texts]
    assert queried == [HEAD, ENCODER] or queried == [HEAD, PCA, ENCODER]
    assert not rows[MEAN].texts and not rows[NEIGHBOURS].texts
    block = next(block for block in head_table(found).split("\n\n") if block.startswith("3 text queries"))
    assert [line[:20].strip() for line in block.splitlines()[1:]] == queried
    written = found.to_dict()
    names = ["recall@1", "exact@1", "recall@5", "recall@10", "overlap@10", "Spearman"]
    assert written["queries"] == 3 and list(written["rows"][0]["texts"]) == names
    assert not any("left out" in note for note in found.notes if note.startswith("text queries"))
    lines = [line for line in head_table(found).splitlines() if line.startswith(f"{ENCODER} ")]
    assert len(lines) == 3 and all(line.removeprefix(ENCODER).split()[0] == "-" for line in lines), "no bytes"


def test_a_file_has_measured_bytes_and_default_queries(film, clip_run, clip_weights, tmp_path, hnerv_main, monkeypatch):
    path = tmp_path / "clip.hnerv"
    assert hnerv_main("encode", clip_run, "-o", path, "--no-measure") == 0
    monkeypatch.chdir(clip_weights.parent)  # a file names its weights without their folder
    opened = open_coded_run(path, CPU, str(film))
    found = compare_head(opened)
    (section,) = [part.size for part in open_single_chunk(path).parts() if part.name == "clip_head"]
    assert (
        found.queries == len(default_queries())
        and found.head_bytes_are == "measured"
        and found.rows[0].bytes == section
    )


def test_without_the_encoder(run, tmp_path):
    gone = run.config.replaced({"clip_weights": str(tmp_path / "gone.safetensors")})
    found = compare_head(dataclasses.replace(run, config=gone))
    lines = [note for note in found.notes if "left out" in note]
    assert len(lines) == 2 and "gone.safetensors" in lines[0] and "there is no encoder" in lines[1]
    assert found.queries == 0 and ENCODER not in [row.name for row in found.rows]


def test_random_targets_have_an_encoder_but_no_text(tmp_path, train, flags):
    assert train(tmp_path, flags(clip_targets=None, clip_weights="random", epochs=1)) == 0
    found = compare_head(open_run(tmp_path / "run", CPU))
    assert found.queries == 0 and ENCODER in [row.name for row in found.rows]
    assert any("has no meaning for the RANDOM encoder" in note for note in found.notes)
