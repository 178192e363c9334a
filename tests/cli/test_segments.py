"""A run in segments, from the command line to the pictures: encode, info, decode, eval.py."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hnerv.cli import main
from hnerv.codec import BitstreamFile, open_single_chunk, play
from hnerv.evaluation import evaluate as measured
from hnerv.runs.checkpoint import load_checkpoint, save_checkpoint
from hnerv.runs.opening import open_run


@pytest.fixture(scope="module")
def film_file(divided, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.hnerv"
    main(["encode", str(divided), "-o", str(path)])
    return path


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_segment_is_coded_as_its_run_is(film_file, divided, tmp_path):
    for number, chunk in enumerate(BitstreamFile(film_file).opened_chunks):
        path = tmp_path / f"{number}.hnerv"
        main(["encode", str(divided / "segments" / f"{number:05d}"), "-o", str(path), "--no-measure"])
        alone = open_single_chunk(path)
        assert chunk.record == alone.record and chunk.encoder == alone.encoder
        assert chunk.header.sections == alone.header.sections
    assert not [p for p in film_file.parent.iterdir() if p != film_file]


def test_info(film_file, capsys):
    main(["info", str(film_file)])
    told = capsys.readouterr().out
    assert "12 at 24 frames/s; 6 training, 3 unseen; in 3 segments" in told
    last = [line for line in told.splitlines() if line.startswith("file  ")][-1].split()
    assert int(last[3].replace(",", "")) == film_file.stat().st_size
    assert [line.split()[1] for line in told.splitlines()[-3:]] == ["0:4", "4:8", "8:12"]
    main(["info", str(film_file), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert sum(p["size"] for s in found["segments"] for p in s["parts"]) + found["index_bytes"] == found["bytes"]


def test_decode(film_file, divided, tmp_path, capsys):
    main(["decode", str(film_file), "-o", str(tmp_path / "png"), "--frames", "3:9"])
    found = {p.name: np.array(Image.open(p)) for p in (tmp_path / "png").iterdir()}
    assert sorted(found) == [f"{k:05d}.png" for k in range(3, 9)]
    for chunk in BitstreamFile(film_file).opened_chunks:
        for k, picture in enumerate(play(chunk.model(), range(4))):
            name = f"{chunk.entry.first + k:05d}.png"
            assert name not in found or np.array_equal(found[name], picture)


@pytest.mark.parametrize("of", ["run", "file"])
def test_eval(of, divided, film_file, film, targets_file, tmp_path, evaluate, capsys):
    if of == "run":
        path, folder = tmp_path / "run", tmp_path / "run"
        shutil.copytree(divided, path)
        words = [path]
    else:
        path, folder = tmp_path / "a.hnerv", tmp_path / "a_eval"
        shutil.copy(film_file, path)
        words = [path, "--data", film, "--clip-targets", targets_file]
    assert evaluate(*words, "--json", "--images") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((folder / "eval" / "summary.json").read_text())
    frames, patches = rows_of(folder / "eval" / "per_frame.csv"), rows_of(folder / "eval" / "per_patch.csv")
    assert [int(row["frame"]) for row in frames] == [0, 1, 3, 4, 5, 7, 8, 9, 11] and len(patches) == 72
    seen = [float(row["psnr_frame"]) for row in frames if row["split"] == "train"]
    assert summary["Eval/Frame/train_psnr_frame"] == pytest.approx(np.mean(seen), abs=1e-5)
    assert summary["segments"] == 3 and summary["Eval/Info/num_val_frames"] == 3
    segments = rows_of(folder / "eval" / "segments.csv")
    assert [row["first"] for row in segments] == ["0", "4", "8"]
    assert len(list(folder.rglob("eval/images/*.png"))) == 9
    if of == "file":
        assert summary["bpp"] == 8 * path.stat().st_size / (12 * 32 * 64)
    assert sum(summary["coded_parameters"].values()) == 3 * sum(
        json.loads((folder / "segments" / "00001" / "eval" / "summary.json").read_text())["coded_parameters"].values()
    )


def test_the_table_of_a_whole(divided, tmp_path, evaluate, capsys):
    shutil.copytree(divided, tmp_path / "run")
    assert evaluate(tmp_path / "run") == 0
    told = capsys.readouterr().out
    assert "(all 3 segments; each segment also has an eval folder)" in told
    assert "frames                                         6               3" in told
    assert evaluate(tmp_path / "run", "--positions", "fractional") == 2
    assert "works on one segment only" in capsys.readouterr().err


def test_encode_tells_what_the_whole_lost(divided, tmp_path, capsys):
    main(["encode", str(divided), "-o", str(tmp_path / "x.hnerv"), "--weight-bits", "4", "--finetune-epochs", "1"])
    told = capsys.readouterr().out
    assert told.count("relative to the float model") == 1
    found = [line.split() for line in told.splitlines() if line.startswith("full-frame PSNR (literature)")]
    mean = np.mean([psnr for number in range(3) for psnr in seen_psnr(tmp_path / "x.hnerv", divided, number)])
    assert float(found[0][-2]) == pytest.approx(mean, abs=1e-3)


def seen_psnr(path: Path, run: Path, number: int) -> list[float]:
    """Of the training frames of a segment, drawn from the file."""
    file, opened = BitstreamFile(path), open_run(run / "segments" / f"{number:05d}", torch.device("cpu"))
    model = file.open_chunk(file.chunks[number]).model()
    return measured(model, opened.store).train.psnr_frame.tolist()


def test_no_measure_needs_no_video(divided, tmp_path):
    shutil.copytree(divided, tmp_path / "run")
    for path in (tmp_path / "run").rglob("metrics.jsonl"):
        path.unlink()
    main(["encode", str(tmp_path / "run"), "-o", str(tmp_path / "x.hnerv"), "--no-measure"])
    assert BitstreamFile(tmp_path / "x.hnerv").frames == 12


def test_info_says_how_far_each_segment_was_trained(divided, tmp_path, capsys):
    shutil.copytree(divided, tmp_path / "run")
    path = tmp_path / "run" / "segments" / "00001" / "checkpoints" / "latest.pt"
    state = load_checkpoint(path)
    state["progress"] |= {"epoch": 3, "step": 3}
    save_checkpoint(path, {key: value for key, value in state.items() if key != "format"})
    main(["encode", str(tmp_path / "run"), "-o", str(tmp_path / "x.hnerv"), "--no-measure"])
    capsys.readouterr()
    main(["info", str(tmp_path / "x.hnerv")])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("encoding")]
    assert line.startswith("encoding per segment: hnerv ")
    assert ", epoch 3 to 5, step 3 to 5, weight_bits 8, " in line


@pytest.mark.parametrize("verb", ["encode", "search", "embed"])
def test_untrained_segments_are_one_line_and_nothing_is_written(verb, divided, targets_file, tmp_path, capsys):
    shutil.copytree(divided, tmp_path / "run")
    for name in ("00001", "00002"):
        shutil.rmtree(tmp_path / "run" / "segments" / name)
    words = {
        "encode": ["-o", str(tmp_path / "x.hnerv"), "--no-measure"],
        "search": ["--embedding", f"{targets_file}:3,2"],
        "embed": ["-o", str(tmp_path / "e.safetensors")],
    }[verb]
    with pytest.raises(SystemExit) as end:
        main([verb, str(tmp_path / "run"), *words])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"hnerv {verb}: 2 of 3 segments are not trained yet, starting with {tmp_path / 'run/segments/00001'}: "
        "run the training command again\n"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]
