"""eval.py on a checkpoint reproduces the last evaluation of training, writes it, and needs only the video."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hnerv.evaluation.summary import CLIP_COLUMNS
from hnerv.runs.models import open_checkpoint


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A finished run of this test's own."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def summary(evaluate, capsys):
    """summary(*words) -> all that eval.py --json prints to stdout."""

    def call(*words):
        capsys.readouterr()
        assert evaluate(*words, "--json") == 0
        return json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def warned(caplog):
    return lambda: [r.getMessage() for r in caplog.records if r.name == "hnerv"]


def check_reproduced(found: dict, run: Path, lines_of) -> None:
    expected = {tag: value for tag, value in lines_of(run)[-1].items() if tag.startswith("Eval/")}
    assert len(expected) > 25
    assert {tag: found[tag] for tag in expected} == {tag: pytest.approx(v, abs=1e-4) for tag, v in expected.items()}


def test_the_last_evaluation_of_training_is_reproduced(run, tmp_path, summary, lines_of):
    place = tmp_path / "elsewhere"
    place.mkdir()
    shutil.copy(run / "checkpoints" / "latest.pt", place / "model.pt")
    found = [summary(run), summary(run / "checkpoints" / "latest.pt"), summary(place / "model.pt")]
    check_reproduced(found[0], run, lines_of)
    for one in found:
        one.pop("decode_fps")
    assert found[0] == found[1] == found[2] | {"checkpoint": found[0]["checkpoint"]}
    assert (place / "eval" / "summary.json").exists()


@pytest.mark.parametrize("changes", [{"embedding": "encoder"}, {"embedding": "pe"}, {"precision": "bf16"}])
def test_it_is_reproduced_for(tmp_path, train, flags, summary, lines_of, changes):
    assert train(tmp_path, flags(**changes, epochs=2)) == 0
    check_reproduced(summary(tmp_path / "run"), tmp_path / "run", lines_of)


def test_the_summary(run, summary, evaluate, capsys):
    found = summary(run)
    assert found["epoch"] == 5 and found["targets_kind"] == "file" and found["ms_ssim_scales"] == 2
    assert found["coded_parameters"] == json.loads((run / "config.json").read_text())["model"]["coded_parameters"]
    assert found["gmac_per_frame"] > 0 and found["decode_fps"] > 0 and "bpp" not in found
    assert json.loads((run / "eval" / "summary.json").read_text()) == found
    rows = {row["name"]: row for row in found["semantics"]["rows"]}
    assert list(rows) == ["CLIP head", "mean", "neighbours", "PCA table"]
    for split in ("train", "val"):
        head = rows["CLIP head"]["splits"][split]
        assert head["recall@5"] == pytest.approx(found[f"Eval/Frame/{split}_clip_recall5"], abs=1e-6)
    assert rows["PCA table"]["bytes"] <= rows["CLIP head"]["bytes"]
    pixels = summary(run, "--clip-targets", "none")
    assert "semantics" not in pixels and not [tag for tag in pixels if "clip" in tag]
    assert pixels["coded_parameters"] == found["coded_parameters"], "a rate counts the head, so parameters do as well"
    assert evaluate(run, "--clip-targets", "none") == 0
    assert " coded parameters including the CLIP head (" in capsys.readouterr().out


def rows_of(run: Path) -> list[list[dict[str, str]]]:
    """The rows of per_frame.csv and of per_patch.csv."""
    tables = (run / "eval" / f"per_{name}.csv" for name in ("frame", "patch"))
    return [list(csv.DictReader(path.read_text().splitlines())) for path in tables]


def test_the_tables_agree_with_each_other_and_with_the_tags(run, summary):
    found = summary(run)
    frames, patches = rows_of(run)
    positions = [0, 1, 2, 3, 5, 6, 7, 8, 9, 11]
    assert [int(row["frame"]) for row in frames] == positions
    assert [(int(r["frame"]), int(r["patch"])) for r in patches] == [(f, p) for f in positions for p in range(8)]
    for row in frames:
        mine = [r for r in patches if r["frame"] == row["frame"]]
        assert {r["split"] for r in mine} == {row["split"]} == {"val" if row["frame"] in ("5", "11") else "train"}
        for column in ("psnr", *CLIP_COLUMNS):
            assert float(row[column]) == pytest.approx(np.mean([float(r[column]) for r in mine]), abs=2e-6)
    for split in ("train", "val"):
        of_frames, of_patches = ([r for r in rows if r["split"] == split] for rows in (frames, patches))
        values = {
            f"Info/num_{split}_frames": len(of_frames),
            f"Info/num_{split}_patches": len(of_patches),
            f"PSNR_Stats/{split}_std": np.std([float(r["psnr"]) for r in of_frames]),
            f"Patch/{split}_psnr_std": np.std([float(r["psnr"]) for r in of_patches]),
        }
        for column in ("psnr", "psnr_frame", "ms_ssim", *CLIP_COLUMNS):
            values[f"Frame/{split}_{column}"] = np.mean([float(r[column]) for r in of_frames])
        assert {tag: found[f"Eval/{tag}"] for tag in values} == pytest.approx(values, abs=2e-6)


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


def test_the_text_page_names_targets_and_checkpoint(run, evaluate):
    assert evaluate(run / "checkpoints" / "best.pt") == 0
    epoch = torch.load(run / "checkpoints" / "best.pt")["progress"]["epoch"]
    assert text_page(run).splitlines() == [
        "**file targets.safetensors**",
        "",
        "- unseen frames: decoded at their time stamps",
        f"- checkpoint: `{run / 'checkpoints' / 'best.pt'}`, epoch {epoch}",
    ]


def test_only_files_of_an_earlier_evaluation_are_removed(run, evaluate):
    events, images = run / "tensorboard" / "eval", run / "eval" / "images"
    own = [events / "notes" / "a.txt", events / "b.txt"]
    own += [images / name for name in ("favourite_train.png", "00005_val.jpg", "5_val.png")]
    stale = [images / name for name in ("00099_train.png", "00098_val.png", "00097_val-encoded.png", "123456_val.png")]
    for path in (*own, *stale):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")
    for words in ((run, "--images"), (run / "checkpoints" / "best.pt",)):  # the second leaves the images of the first
        assert evaluate(*words) == 0
        assert len(list(images.iterdir())) == 10 + 3 and not any(path.exists() for path in stale)
    assert all(path.read_text() == "content" for path in own)
    assert len(list(events.glob("events.*"))) == 1


def test_bars_on_a_terminal(run, evaluate, capsys, monkeypatch):
    assert evaluate(run, "--images") == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert evaluate(run, "--images") == 0
    err = capsys.readouterr().err
    assert "evaluate" in err and "images" in err and err.count("10/10") >= 2


def test_an_interrupted_run_resumes_after_an_evaluation(tmp_path, train, flags, evaluate, monkeypatch, events_of):
    """Resuming leaves the logs of eval.py, which are not the run's own."""
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


def test_the_printed_text(run, evaluate, capsys, summary):
    values = summary(run)
    assert evaluate(run) == 0
    out = capsys.readouterr().out
    for tag, form in (("Frame/train_psnr", ".3f"), ("Frame/val_psnr_frame", ".3f"), ("Frame/val_clip_sim", ".4f")):
        assert f"{values[f'Eval/{tag}']:{form}}" in out
    gap, paired, error = (values[f"Eval/Gap/psnr_gap{end}"] for end in ("", "_paired", "_paired_error"))
    text = f"{gap:.3f}, {paired:.3f} ± {error:.3f} to adjacent training frames (standard error)"
    assert f"\ngeneralisation gap, dB: {text}\n" in out
    head, *rows = out[: out.index("generalisation gap")].splitlines()
    assert head == f"{'':36}{'training':>12}{'unseen':>16}" and "encoded" not in out
    labels = [row[:36].strip() for row in rows]
    assert "full-frame PSNR (literature), dB" in labels
    assert labels[-6:] == [
        "recall@1",
        "exact@1 (its own frame only)",
        "recall@5",
        "recall@10",
        "overlap@10",
        "Spearman",
    ]
    assert "similarity is measured against the targets: file targets.safetensors" in out
    assert all(f"\n{name} " in out for name in ("CLIP head", "mean", "neighbours", "PCA table"))
    assert "text queries: left out because the targets come from a file" in out
    assert "coded parameters" in out and "GMAC per frame" in out
    assert out.splitlines()[-1] == f"files:     {run / 'eval'} (latest.pt at epoch 5)"


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


def test_a_moved_video(tmp_path, train, flags, make_film, evaluate, capsys, summary, snapshot, lines_of, warned):
    run, film = tmp_path / "run", make_film(tmp_path / "film")
    assert train(tmp_path, flags(data=film, epochs=2)) == 0
    film.rename(tmp_path / "moved")
    others = {"long": {"count": 13}, "wide": {"size": (32, 128)}, "short": {"count": 11}}
    before = snapshot(run)
    capsys.readouterr()
    assert evaluate(run) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--data" in line
    for name, changes in others.items():
        assert evaluate(run, "--data", make_film(tmp_path / name, **changes)) == 2
    assert snapshot(run) == before, "nothing is written before the video is known to fit"
    check_reproduced(summary(run, "--data", tmp_path / "moved"), run, lines_of)
    assert not warned()
    found = summary(run, "--data", make_film(tmp_path / "other", shift=5))
    (text,) = warned()
    assert "the pixels of " in text and text.endswith("check that it is the same video")
    assert found["same_pixels_as_trained_on"] is False and found["video"].endswith("other")
    assert found["Eval/Frame/train_psnr"] < lines_of(run)[-1]["Eval/Frame/train_psnr"]


def test_another_size_without_targets_is_refused_in_words(tmp_path, train, flags, make_film, evaluate, capsys):
    assert train(tmp_path, flags(clip_targets=None, clip_weights="none", epochs=1)) == 0
    capsys.readouterr()
    assert evaluate(tmp_path / "run", "--data", make_film(tmp_path / "wide", size=(32, 128))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "was trained on 12 frames of 32x64" in line and "12 of 32x128" in line and "--data" in line


def test_targets_are_known_by_their_content(run, tmp_path, evaluate, summary, targets_file, lines_of, snapshot, capsys):
    renamed, other = shutil.copy(targets_file, tmp_path / "renamed.safetensors"), tmp_path / "other.safetensors"
    save_file({"embeddings": torch.ones(12, 8, 8)}, other)
    before = snapshot(run)
    assert evaluate(run, "--clip-targets", other) == 2
    assert "was trained on the targets" in capsys.readouterr().err and snapshot(run) == before
    check_reproduced(summary(run, "--clip-targets", renamed), run, lines_of)


def test_encoded_unseen_frames_are_labelled_everywhere(run_of, tmp_path, evaluate, capsys, summary):
    run = Path(shutil.copytree(run_of("encoder"), tmp_path / "encoder"))
    plain, encoded = summary(run), summary(run, "--unseen", "encode")
    assert plain["unseen"] == "interpolate" and encoded["unseen"] == "encode"
    assert encoded["Eval/Frame/train_psnr"] == plain["Eval/Frame/train_psnr"]
    assert encoded["Eval/Frame/val_psnr"] != plain["Eval/Frame/val_psnr"]
    assert evaluate(run, "--images", "--unseen", "encode") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["training", "unseen-encoded"]
    assert "Unseen frames were decoded from their own embeddings: the encoder has seen them." in out
    assert json.loads((run / "eval" / "summary.json").read_text())["unseen"] == "encode"
    assert "- unseen frames: encode" in text_page(run).splitlines()
    frames, patches = rows_of(run)
    assert {row["split"] for row in frames} == {row["split"] for row in patches} == {"train", "val-encoded"}
    images = {path.name: path for path in (run / "eval" / "images").iterdir()}
    assert {name for name in images if "train" not in name} == {"00005_val-encoded.png", "00011_val-encoded.png"}
    for row in frames:  # the pictures are those that were measured
        pair = np.array(Image.open(images[f"{int(row['frame']):05d}_{row['split']}.png"])).astype(float)
        error = np.mean((pair[:, :64] - pair[:, 64:]) ** 2)
        assert float(row["psnr_frame"]) == pytest.approx(10 * np.log10(255**2 / error), abs=0.02)


def test_training_with_encode_is_labelled(tmp_path, train, flags, capsys, lines_of):
    assert train(tmp_path, flags(embedding="encoder", unseen="encode", epochs=1)) == 0
    assert " unseen-encoded PSNR " in capsys.readouterr().out
    assert lines_of(tmp_path / "run")[-1]["unseen"] == "encode"


def test_encode_is_for_the_encoder_alone(run, evaluate, capsys, snapshot):
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
