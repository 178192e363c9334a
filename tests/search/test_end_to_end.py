"""`hnerv search` with a real OpenCLIP model, against OpenCLIP itself and a brute-force search."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import normalize

from hnerv.cli import main
from hnerv.codec import open_single_chunk
from hnerv.data.clip.weights import Preprocess
from hnerv.model.predict import predict
from hnerv.search.queries import PROMPTS


@pytest.fixture
def refused(capsys):
    """refused(*words) -> the one line of `hnerv search` on stderr."""

    def call(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["search", *map(str, words)])
        out, err = capsys.readouterr()
        assert stop.value.code == 2 and out == "" and err.count("\n") == 1, err
        return err

    return call


@pytest.fixture
def text_of(clip_model):
    """text_of(sentence) -> (D,) of unit norm, as OpenCLIP says."""

    @torch.no_grad()
    def encode(sentence: str) -> torch.Tensor:
        return normalize(clip_model.encode_text(open_clip.tokenize([sentence])), dim=-1)[0]

    return encode


@torch.no_grad()
def brute_force(path: Path, directions: list[tuple[float, torch.Tensor]]) -> np.ndarray:
    """Scores (N, P) of the whole decoded model, patch by patch."""
    model = open_single_chunk(path).model()
    scores = np.zeros((12, 8))
    for n in range(12):
        clip = predict(model, torch.tensor([float(n)])).clip[0]
        for p in range(8):
            scores[n, p] = sum(weight * float(clip[p] @ direction) for weight, direction in directions)
    return scores


def check(found: dict, scores: np.ndarray) -> None:
    """The best hit is the best patch of all, and every hit has its score and standing."""
    hits = found["hits"]
    assert hits[0]["score"] == pytest.approx(scores.max(), abs=1e-5)
    best = np.unravel_index(scores.argmax(), scores.shape)
    assert (hits[0]["frame"], hits[0]["patch"]) == best
    z = (scores - scores.mean()) / scores.std()
    for hit in hits:
        place = hit["frame"], hit["patch"]
        assert hit["score"] == pytest.approx(scores[place], abs=1e-5)
        assert hit["z"] == pytest.approx(z[place], abs=0.01)
        assert (hit["row"], hit["col"]) == divmod(hit["patch"], 4)
        assert hit["seconds"] == pytest.approx(hit["frame"] / 24)
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)


def alike(hits: list[dict], others: list[dict]) -> bool:
    """The same to rounding: sums may run in another order where a tensor lies elsewhere in memory."""
    return len(hits) == len(others) and all(
        ours == {**theirs, "score": pytest.approx(theirs["score"], abs=1e-6), "z": pytest.approx(theirs["z"], abs=1e-3)}
        for ours, theirs in zip(hits, others, strict=True)
    )


def test_a_text_in_a_folder_that_holds_only_the_file(alone, search, text_of, clip_weights):
    path = alone()
    found = search(path, "a silver refrigerator", "--clip-weights", clip_weights)
    check(found, brute_force(path, [(1.0, text_of("a silver refrigerator"))]))
    assert found["query"] == ["a silver refrigerator"] and found["not"] == [] and found["hits"]
    peaks = search(path, "a silver refrigerator", "--clip-weights", clip_weights, "--per-patch")["hits"]
    assert len(peaks) == 5 and alike([peaks[0]], [found["hits"][0] | {"also": []}])
    assert found["targets"].startswith("OpenCLIP hnerv-small-quickgelu")


def test_several_texts_and_unwanted_ones(alone, search, text_of, clip_weights):
    path = alone()
    found = search(
        *(path, "a dog", "grass", "--not", "a cat", "--not", "water", "--top", 3),
        *("--per-patch", "--clip-weights", clip_weights),
    )
    wanted, unwanted = ("a dog", "grass"), ("a cat", "water")
    directions = [(0.5, text_of(text)) for text in wanted] + [(-0.5, text_of(text)) for text in unwanted]
    check(found, brute_force(path, directions))
    assert found["query"] == list(wanted) and found["not"] == list(unwanted) and len(found["hits"]) == 3


def test_the_ensemble_is_the_normalised_mean_of_its_sentences(alone, search, text_of, clip_weights):
    path = alone()
    found = search(path, "a {rabbit}", "--prompts", "ensemble", "--clip-weights", clip_weights)
    sentences = [template.replace("{}", "a {rabbit}") for template in PROMPTS["ensemble"]]
    assert len(sentences) > 3
    check(found, brute_force(path, [(1.0, normalize(sum(map(text_of, sentences)), dim=0))]))


def test_an_image_is_looked_for_whole(alone, search, clip_model, clip_weights, film, tmp_path):
    path = alone()
    photo = Image.open(film / "3.png").crop((0, 0, 48, 32))
    photo.save(tmp_path / "photo.png")
    recipe = Preprocess()
    transform = open_clip.image_transform(32, False, recipe.mean, recipe.std, resize_mode="squash")
    with torch.no_grad():
        vector = normalize(clip_model.encode_image(transform(photo)[None]), dim=-1)[0]
    found = search(path, "--image", tmp_path / "photo.png", "--clip-weights", clip_weights)
    scores = brute_force(path, [(1.0, vector)])
    assert found["query"] == ["photo.png"]
    assert found["hits"][0]["score"] == pytest.approx(scores.max(), abs=2e-3)  # Pillow resizes to the nearest 8 bits


def test_the_weights_are_found_where_the_run_had_them_or_beside_the_file(
    clip_run, alone, search, clip_weights, tmp_path, refused
):
    run = Path(shutil.copytree(clip_run, tmp_path / "run"))
    by_run = search(run, "a dog")
    path = alone()
    error = refused(path, "a dog")
    assert "small.openai.safetensors" in error and "--clip-weights" in error and "--embedding" in error
    shutil.copy(clip_weights, path.parent)
    assert search(path, "a dog")["hits"][0]["score"] == pytest.approx(by_run["hits"][0]["score"], abs=0.02)


def test_renamed_weights_are_known_by_their_content_and_others_are_refused(
    alone, search, refused, clip_weights, tmp_path
):
    path = alone()
    renamed = shutil.copy(clip_weights, tmp_path / "renamed.safetensors")
    expected = search(path, "a dog", "--clip-weights", clip_weights)
    assert alike(search(path, "a dog", "--clip-weights", renamed)["hits"], expected["hits"])
    data = bytearray(clip_weights.read_bytes())
    data[-1] ^= 1
    (tmp_path / "other.openai.safetensors").write_bytes(data)
    for weights in (tmp_path / "other.openai.safetensors", "random"):
        assert "pass the weights of the targets" in refused(path, "a dog", "--clip-weights", weights)


def test_weights_in_a_folder_that_moved(clip_config, clip_weights, tmp_path, train, flags, search, text_of, refused):
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(clip_weights, folder / "open_clip_model.safetensors")
    config = {"model_cfg": clip_config | {"quick_gelu": True}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert train(tmp_path, flags(clip_targets=None, clip_weights=folder, epochs=1)) == 0
    path = tmp_path / "clip.hnerv"
    main(["encode", str(tmp_path / "run"), "-o", str(path), "--no-measure"])
    folder.rename(tmp_path / "moved")
    assert "pass --clip-weights" in refused(tmp_path / "run", "a dog")
    found = search(path, "a dog", "--clip-weights", tmp_path / "moved")
    check(found, brute_force(path, [(1.0, text_of("a dog"))]))


def test_queries_from_the_terminal(alone, search, clip_weights, capsys, monkeypatch):
    from hnerv.search import queries

    path, built, original = alone(), [], queries.build_teacher
    one_by_one = [search(path, text, "--clip-weights", clip_weights)["hits"] for text in ("a dog", "a cat")]
    monkeypatch.setattr(queries, "build_teacher", lambda *a: built.append(a) or original(*a))
    monkeypatch.setattr("sys.stdin", io.StringIO("a dog\n\n  a cat  \n"))
    main(["search", str(path), "--clip-weights", str(clip_weights), "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["query"] for line in lines] == [["a dog"], ["a cat"]]
    assert all(alike(line["hits"], hits) for line, hits in zip(lines, one_by_one, strict=True))
    assert len(built) == 1, "the teacher is loaded once"


def test_the_table(alone, clip_weights, capsys, search):
    path = alone()
    few = ["--clip-weights", str(clip_weights), "--top", "2", "--per-patch"]
    hits = search(path, "a dog", *few)["hits"]
    main(["search", str(path), "a dog", "--not", "a cat", *few])
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "a dog - a cat" and len(out) == 5
    assert out[-1].startswith("targets: OpenCLIP")
    main(["search", str(path), "a dog", *few])
    rows = capsys.readouterr().out.splitlines()[2:4]
    for row, hit in zip(rows, hits, strict=True):
        for cell in (hit["time"], f"{hit['score']:.4f}", f"{hit['z']:.2f}", f"{hit['first']}-{hit['last']}"):
            assert cell in row.split()


@pytest.mark.parametrize("kind", ["random", "file"])
def test_a_text_means_nothing_to_other_targets(alone, refused, kind, monkeypatch):
    path = alone(kind)
    error = refused(path, "a dog")
    assert ("RANDOM encoder" in error and "--image" in error) if kind == "random" else "--embedding" in error
    monkeypatch.setattr("sys.stdin", io.StringIO("a dog\n"))
    assert refused(path) == error


def test_an_image_finds_its_like_by_the_random_encoder(alone, search, film):
    """The encoder is built again from its seed; the query is what `encode_patches` says of the same pixels."""
    from hnerv.data.clip import load_teacher

    path = alone("random")
    found = search(path, "--image", film / "3.png")
    pixels = torch.from_numpy(np.array(Image.open(film / "3.png"))).permute(2, 0, 1)[None]
    seed = open_single_chunk(path).config.train.seed
    vector = load_teacher("random", "ViT-B-32", seed=seed).encode_patches(pixels)[0]
    check(found, brute_force(path, [(1.0, vector)]))


def test_targets_of_a_file_are_searched_by_an_embedding(alone, search, targets_file, refused, film):
    path = alone("file")
    targets = normalize(load_file(targets_file)["embeddings"], dim=-1)
    check(search(path, "--embedding", f"{targets_file}:7,3"), brute_force(path, [(1.0, targets[7, 3])]))
    assert "--embedding" in refused(path, "--image", film / "3.png")


def test_what_hnerv_embed_wrote_finds_itself(alone, search, tmp_path):
    path = alone("file")
    main(["embed", str(path), "-o", str(tmp_path / "e.safetensors")])
    for frame, patch in ((0, 0), (7, 3), (11, 7)):
        scores = brute_force(path, [(1.0, load_file(tmp_path / "e.safetensors")["embeddings"][frame, patch])])
        best = search(path, "--embedding", f"{tmp_path / 'e.safetensors'}:{frame},{patch}", "--top", 1)["hits"][0]
        assert best["patch"] == patch and best["score"] == pytest.approx(1, abs=1e-5) == scores[frame, patch]
