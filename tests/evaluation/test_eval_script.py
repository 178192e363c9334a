"""eval.py on a checkpoint says what training said last, writes it down, and needs nothing but the video."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hnerv.evaluation.summary import CLIP_COLUMNS
from hnerv.runs.opening import open_checkpoint


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A finished run of this test's own."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def summary(evaluate, capsys):
    """summary(*words) -> what eval.py --json prints, the whole of stdout."""

    def call(*words):
        capsys.readouterr()
        assert evaluate(*words, "--json") == 0
        return json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def warned(caplog):
    return lambda: [r.getMessage() for r in caplog.records if r.name == "hnerv"]


def last_evaluation(run, lines_of) -> dict[str, float]:
    return {tag: v for tag, v in lines_of(run)[-1].items() if tag.startswith("Eval/")}


def test_the_last_evaluation_of_training_is_reproduced(run, summary, lines_of):
    expected = last_evaluation(run, lines_of)
    by_folder, by_file = summary(run), summary(run / "checkpoints" / "latest.pt")
    assert len(expected) > 25
    for tag, value in expected.items():
        assert by_folder[tag] == pytest.approx(value, abs=1e-4), tag
    for found in (by_folder, by_file):
        found.pop("decode_fps")
    assert by_folder == by_file


@pytest.mark.parametrize("changes", [{"embedding": "encoder"}, {"embedding": "pe"}, {"precision": "bf16"}])
def test_it_is_reproduced_for(tmp_path, train, flags, summary, lines_of, changes):
    assert train(tmp_path, flags(**changes, epochs=3)) == 0
    found = summary(tmp_path / "run")
    for tag, value in last_evaluation(tmp_path / "run", lines_of).items():
        assert found[tag] == pytest.approx(value, abs=1e-4), tag


def test_the_summary(run, summary, finished):
    found = summary(run)
    assert found["epoch"] == 5 and found["targets_kind"] == "file" and found["ms_ssim_scales"] == 2
    assert found["coded_parameters"] == json.loads((run / "config.json").read_text())["model"]["coded_parameters"]
    assert found["gmac_per_frame"] > 0 and found["decode_fps"] > 0
    assert json.loads((run / "eval" / "summary.json").read_text()) == found


def test_the_baselines_stand_in_the_summary_and_in_the_table(run, summary, evaluate, capsys):
    found = summary(run)
    rows = {row["name"]: row for row in found["semantics"]["rows"]}
    assert list(rows) == ["CLIP head", "mean", "neighbours", "PCA table"]
    for split in ("train", "val"):
        ours = rows["CLIP head"]["splits"][split]
        assert ours["recall@5"] == pytest.approx(found[f"Eval/Frame/{split}_clip_recall5"], abs=1e-6)
    assert rows["PCA table"]["bytes"] <= rows["CLIP head"]["bytes"]
    assert evaluate(run) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in out for name in rows)
    assert "text queries: left out because the targets come from a file" in out
    assert "semantics" not in summary(run, "--clip-targets", "none")


def test_the_tables_agree_with_each_other_and_with_the_tags(run, summary):
    found = summary(run)
    frames, patches = (
        list(csv.DictReader((run / "eval" / f"per_{name}.csv").read_text().splitlines())) for name in ("frame", "patch")
    )
    assert [int(row["frame"]) for row in frames] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 11]
    assert [(int(r["frame"]), int(r["patch"])) for r in patches] == [
        (int(f["frame"]), p) for f in frames for p in range(8)
    ]
    for row in frames:
        mine = [r for r in patches if r["frame"] == row["frame"]]
        assert {r["split"] for r in mine} == {row["split"]} == {"val" if row["frame"] in ("5", "11") else "train"}
        for column in ("psnr", *CLIP_COLUMNS):
            assert float(row[column]) == pytest.approx(np.mean([float(r[column]) for r in mine]), abs=2e-6)
    for split in ("train", "val"):
        rows = [r for r in frames if r["split"] == split]
        assert found[f"Eval/Info/num_{split}_frames"] == len(rows)
        assert found[f"Eval/Info/num_{split}_patches"] == len([r for r in patches if r["split"] == split])
        for column in ("psnr", "psnr_frame", "ms_ssim", *CLIP_COLUMNS):
            mean = np.mean([float(r[column]) for r in rows])
            assert found[f"Eval/Frame/{split}_{column}"] == pytest.approx(mean, abs=2e-6), column
        assert found[f"Eval/PSNR_Stats/{split}_std"] == pytest.approx(
            np.std([float(r["psnr"]) for r in rows]), abs=2e-6
        )
        spread = np.std([float(r["psnr"]) for r in patches if r["split"] == split])
        assert found[f"Eval/Patch/{split}_psnr_std"] == pytest.approx(spread, abs=2e-6)


def test_the_tags_are_under_tensorboard_eval(run, summary, events_of):
    before = events_of(run / "tensorboard")
    found = summary(run)
    summary(run)
    events = events_of(run / "tensorboard" / "eval")
    measured = {tag for tag in before if tag.startswith(("Eval/", "Model/Features/")) and "/Images/" not in tag}
    assert measured | {"Model/Info/run"} == set(events)
    for tag, points in events.items():
        assert len(points) == 1 and points[0][0] == 5
        if "Histogram" not in tag and tag != "Model/Info/run":
            assert points[0][1] == pytest.approx(found[tag], rel=1e-6)
    assert events_of(run / "tensorboard") == before


def text_page(run: Path) -> str:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loaded = EventAccumulator(str(run / "tensorboard" / "eval"))
    loaded.Reload()
    (event,) = loaded.Tensors("Model/Info/run/text_summary")
    return event.tensor_proto.string_val[0].decode()


def test_the_events_say_what_similarity_means_and_what_was_evaluated(run, evaluate):
    assert evaluate(run / "checkpoints" / "best.pt") == 0
    epoch = torch.load(run / "checkpoints" / "best.pt")["progress"]["epoch"]
    assert text_page(run).splitlines() == [
        "**file targets.safetensors**",
        "",
        "- unseen frames: decoded at their time stamps",
        f"- checkpoint: `{run / 'checkpoints' / 'best.pt'}`, epoch {epoch}",
    ]


def test_nothing_that_is_not_an_evaluations_own_is_deleted(run, evaluate):
    mine = [run / "tensorboard" / "eval" / "notes" / "a.txt", run / "tensorboard" / "eval" / "b.txt"]
    mine += [run / "eval" / "images" / name for name in ("favourite_train.png", "00005_val.jpg", "5_val.png")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
    for _ in range(2):
        assert evaluate(run, "--images") == 0
    assert all(path.read_text() == "precious" for path in mine)
    assert len(list((run / "tensorboard" / "eval").glob("events.*"))) == 1


def test_the_images_of_an_earlier_evaluation_go(run, evaluate):
    folder = run / "eval" / "images"
    folder.mkdir(parents=True)
    stale = ("00099_train.png", "00098_val.png", "00097_val-encoded.png", "123456_val.png")
    for name in stale:
        (folder / name).write_text("stale")
    assert evaluate(run, "--images") == 0
    assert len(list(folder.iterdir())) == 10 and not any((folder / name).exists() for name in stale)
    assert evaluate(run / "checkpoints" / "best.pt") == 0
    assert len(list(folder.iterdir())) == 10, "images are of the last evaluation that drew them"


def test_it_says_of_which_checkpoint_the_files_are(run, evaluate, capsys):
    for name in ("latest.pt", "best.pt"):
        epoch = torch.load(run / "checkpoints" / name)["progress"]["epoch"]
        assert evaluate(run / "checkpoints" / name) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"files:     {run / 'eval'} ({name} at epoch {epoch})"


def test_bars_on_a_terminal(run, evaluate, capsys, monkeypatch):
    assert evaluate(run, "--images") == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert evaluate(run, "--images") == 0
    err = capsys.readouterr().err
    assert "evaluate" in err and "images" in err and err.count("10/10") >= 2


def test_training_goes_on_beside_an_evaluation(tmp_path, train, flags, evaluate, monkeypatch, events_of):
    """The logs of eval.py are not the run's own: a resume leaves them."""
    import signal

    from hnerv.training.trainer import Trainer

    original = Trainer.close_epoch

    def closing(self, seconds):
        if self.state.epoch == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(self, seconds)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "close_epoch", closing)
        assert train(tmp_path, flags()) == 143
    assert evaluate(tmp_path / "run") == 0
    assert train(tmp_path, flags()) == 0
    assert events_of(tmp_path / "run" / "tensorboard" / "eval")["Eval/Frame/train_psnr"][0][0] == 3
    assert len(events_of(tmp_path / "run" / "tensorboard")["Train/PSNR"]) == 5


def test_the_printed_table(run, evaluate, capsys, lines_of):
    assert evaluate(run) == 0
    out = capsys.readouterr().out
    values = last_evaluation(run, lines_of)
    for tag, form in (("Frame/train_psnr", ".3f"), ("Frame/val_psnr_frame", ".3f"), ("Frame/val_clip_sim", ".4f")):
        assert f"{values[f'Eval/{tag}']:{form}}" in out
    assert "similarity is measured against the targets: file targets.safetensors" in out
    assert "coded parameters" in out and "GMAC per frame" in out and "encoded" not in out
    head, *rows = out[: out.index("similarity is measured")].splitlines()
    labels = [row[:36].strip() for row in rows]
    assert head.split() == ["training", "unseen"] and "full-frame PSNR (literature), dB" in labels
    assert labels[-5:] == ["recall@1", "recall@5", "recall@10", "overlap@10", "Spearman"]


def test_images_side_by_side(run, evaluate, film):
    assert evaluate(run, "--images") == 0
    images = sorted(p.name for p in (run / "eval" / "images").iterdir())
    assert len(images) == 10 and images[4] == "00005_val.png"
    model = open_checkpoint(run / "checkpoints" / "latest.pt").model
    for name in images:
        position = int(name[:5])
        picture = np.array(Image.open(run / "eval" / "images" / name))
        assert picture.shape == (32, 128, 3)
        assert np.array_equal(picture[:, :64], np.array(Image.open(film / f"{position}.png")))
        with torch.no_grad():
            rgb = model(torch.tensor([float(position)])).rgb[0].clamp(0, 1).mul(255).round().permute(1, 2, 0)
        assert np.abs(picture[:, 64:].astype(int) - rgb.int().numpy()).max() <= 1


def test_a_checkpoint_copied_elsewhere(run, tmp_path, evaluate, lines_of, summary):
    place = tmp_path / "elsewhere"
    place.mkdir()
    shutil.copy(run / "checkpoints" / "latest.pt", place / "model.pt")
    found = summary(place / "model.pt")
    assert (place / "eval" / "summary.json").exists()
    for tag, value in last_evaluation(run, lines_of).items():
        assert found[tag] == pytest.approx(value, abs=1e-4)


class TestVideoElsewhere:
    @pytest.fixture
    def moved(self, tmp_path, train, flags, make_film):
        film = make_film(tmp_path / "film")
        assert train(tmp_path, flags(data=film, epochs=2)) == 0
        film.rename(tmp_path / "moved")
        return tmp_path / "run"

    def test_it_is_missed_and_then_named(self, moved, tmp_path, evaluate, capsys, summary, snapshot, lines_of, warned):
        before = snapshot(moved)
        assert evaluate(moved) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "--data" in line and snapshot(moved) == before
        found = summary(moved, "--data", tmp_path / "moved")
        for tag, value in last_evaluation(moved, lines_of).items():
            assert found[tag] == pytest.approx(value, abs=1e-4)
        assert not warned()

    def test_another_geometry_is_refused(self, moved, tmp_path, evaluate, capsys, snapshot, make_film, warned):
        before = snapshot(moved)
        for name, changes in (("long", {"count": 13}), ("wide", {"size": (32, 128)})):
            other = make_film(tmp_path / name, **changes)
            capsys.readouterr()
            assert evaluate(moved, "--data", other) == 2
        assert evaluate(moved, "--data", make_film(tmp_path / "short", count=11)) == 2
        assert snapshot(moved) == before

    def test_another_size_without_targets_is_refused_in_words(
        self, tmp_path, train, flags, make_film, evaluate, capsys
    ):
        assert train(tmp_path, flags(clip_targets=None, clip_weights="none", epochs=1)) == 0
        capsys.readouterr()
        assert evaluate(tmp_path / "run", "--data", make_film(tmp_path / "wide", size=(32, 128))) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "was trained on 12 frames of 32x64" in line and "12 of 32x128" in line and "--data" in line

    def test_other_pixels_are_a_warning(self, moved, tmp_path, summary, make_film, warned, lines_of):
        found = summary(moved, "--data", make_film(tmp_path / "other", shift=5))
        (text,) = warned()
        assert "the pixels of " in text and text.endswith("check that it is the same video")
        assert found["same_pixels_as_trained_on"] is False and found["video"].endswith("other")
        assert found["Eval/Frame/train_psnr"] < last_evaluation(moved, lines_of)["Eval/Frame/train_psnr"]

    def test_a_renamed_file_of_the_same_targets(self, run, tmp_path, summary, targets_file, lines_of):
        found = summary(run, "--clip-targets", shutil.copy(targets_file, tmp_path / "renamed.safetensors"))
        for tag, value in last_evaluation(run, lines_of).items():
            assert found[tag] == pytest.approx(value, abs=1e-4)

    def test_other_targets_are_refused(self, run, tmp_path, evaluate, capsys, snapshot):
        from safetensors.torch import save_file

        save_file({"embeddings": torch.ones(12, 8, 8)}, tmp_path / "other.safetensors")
        before = snapshot(run)
        assert evaluate(run, "--clip-targets", tmp_path / "other.safetensors") == 2
        assert "was trained on the targets" in capsys.readouterr().err and snapshot(run) == before


class TestUnseen:
    @pytest.fixture
    def encoder_run(self, tmp_path, train, flags):
        assert train(tmp_path, flags(embedding="encoder", epochs=2)) == 0
        return tmp_path / "run"

    def test_encode_is_labelled_everywhere(self, encoder_run, evaluate, capsys, summary):
        plain = summary(encoder_run)
        assert plain["unseen"] == "interpolate"
        assert evaluate(encoder_run, "--unseen", "encode") == 0
        out = capsys.readouterr().out
        assert out.splitlines()[0].split() == ["training", "unseen-encoded"]
        assert "Unseen frames were decoded from their own embeddings: the encoder has seen them." in out
        for name in ("frame", "patch"):
            rows = csv.DictReader((encoder_run / "eval" / f"per_{name}.csv").read_text().splitlines())
            assert {row["split"] for row in rows} == {"train", "val-encoded"}
        assert "- unseen frames: encode" in text_page(encoder_run).splitlines()
        found = summary(encoder_run, "--unseen", "encode")
        assert found["unseen"] == json.loads((encoder_run / "eval" / "summary.json").read_text())["unseen"] == "encode"
        assert found["Eval/Frame/train_psnr"] == plain["Eval/Frame/train_psnr"]
        assert found["Eval/Frame/val_psnr"] != plain["Eval/Frame/val_psnr"]

    def test_images_are_named_so_and_show_what_was_measured(self, encoder_run, evaluate):
        assert evaluate(encoder_run, "--images", "--unseen", "encode") == 0
        images = {path.name: path for path in (encoder_run / "eval" / "images").iterdir()}
        assert {name for name in images if "train" not in name} == {"00005_val-encoded.png", "00011_val-encoded.png"}
        rows = csv.DictReader((encoder_run / "eval" / "per_frame.csv").read_text().splitlines())
        for row in rows:
            pair = np.array(Image.open(images[f"{int(row['frame']):05d}_{row['split']}.png"])).astype(float)
            error = np.mean((pair[:, :64] - pair[:, 64:]) ** 2)
            assert float(row["psnr_frame"]) == pytest.approx(10 * np.log10(255**2 / error), abs=0.02)

    def test_training_with_encode_is_labelled(self, tmp_path, train, flags, capsys, lines_of):
        assert train(tmp_path, flags(embedding="encoder", unseen="encode", epochs=1)) == 0
        assert " unseen-encoded PSNR " in capsys.readouterr().out
        assert lines_of(tmp_path / "run")[-1]["unseen"] == "encode"

    def test_it_is_for_the_encoder_alone(self, run, evaluate, capsys, snapshot):
        before = snapshot(run)
        assert evaluate(run, "--unseen", "encode") == 2
        assert "--unseen needs --embedding encoder" in capsys.readouterr().err and snapshot(run) == before


def test_random_targets_are_never_called_clip(tmp_path, train, flags, summary, evaluate, capsys, warned):
    assert train(tmp_path, flags(clip_targets=None, clip_weights="random", epochs=1)) == 0
    assert "RANDOM" in capsys.readouterr().out
    assert all(text.startswith("NOT CLIP:") for text in warned()) and warned()
    found = summary(tmp_path / "run")
    assert found["targets_kind"] == "random" and "not CLIP" in found["targets"]
    assert evaluate(tmp_path / "run") == 0
    assert "similarity is measured against the targets: RANDOM encoder" in capsys.readouterr().out


@pytest.mark.parametrize("block", ["eval", "eval/images", "eval/summary.json"])
def test_a_folder_that_cannot_be_written_is_one_line(run, evaluate, capsys, block):
    path = run / block
    if block.endswith(".json"):
        path.mkdir(parents=True)
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text("in the way")
    assert evaluate(run, "--images") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot write" in line and "check disk space and permissions" in line
