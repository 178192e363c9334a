"""`hnerv embed`: all predicted embeddings in a file, which another run takes as its targets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hnerv.cli import main
from hnerv.model.predict import predict
from hnerv.runs.opening import open_checkpoint


@pytest.fixture
def exported(finished, tmp_path) -> Path:
    main(["embed", str(finished), "-o", str(tmp_path / "out" / "e.safetensors")])
    return tmp_path / "out" / "e.safetensors"


@torch.no_grad()
def test_the_tensors_and_where_they_come_from(exported, finished, capsys):
    found = load_file(exported)
    model = open_checkpoint(finished / "checkpoints" / "latest.pt").model
    model = model.eval().to(memory_format=torch.channels_last)
    expected = torch.cat([predict(model, torch.tensor([float(n)])).clip for n in range(12)])
    assert set(found) == {"embeddings", "frame", "patch", "time"}
    assert torch.allclose(found["embeddings"], expected, atol=1e-6) and expected.shape == (12, 8, 8)
    assert found["frame"].tolist() == list(range(12)) and found["patch"].tolist() == list(range(8))
    assert torch.allclose(found["time"], torch.arange(12).double() / 24)
    with safe_open(exported, "pt") as file:
        facts = file.metadata()
    assert facts["grid"] == "2x4" and facts["frame_size"] == "32x64" and float(facts["fps"]) == 24
    assert facts["encoder"] == "predicted by the CLIP head of latest.pt, trained on file targets.safetensors"
    main(["embed", str(finished), "-o", str(exported), "--overwrite"])
    assert capsys.readouterr().out.startswith("12 frames of 8 patches, 8 dimensions each")
    assert not list(finished.rglob("*.index.safetensors")), "nothing is left beside the run"


def test_a_run_takes_them_as_its_targets(exported, tmp_path, train, flags, evaluate):
    assert train(tmp_path, flags(clip_targets=exported, epochs=2)) == 0
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["targets"]["kind"] == "file" and "predicted by the CLIP head" in record["targets"]["source"]
    assert record["scene"]["clip_dim"] == 8
    assert evaluate(tmp_path / "run") == 0


def test_from_a_file(finished, exported, tmp_path):
    path = tmp_path / "clip.hnerv"
    words = ["--weight-bits", "16", "--latent-bits", "16", "--no-measure"]
    main(["encode", str(finished), "-o", str(path), *words])
    main(["embed", str(path), "-o", str(tmp_path / "f.safetensors")])
    similarity = (load_file(tmp_path / "f.safetensors")["embeddings"] * load_file(exported)["embeddings"]).sum(-1)
    assert similarity.min() > 0.999


@pytest.mark.parametrize("output", ["e.npz", "folder.safetensors", "file/e.safetensors"])
def test_refusals(finished, tmp_path, capsys, output):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        main(["embed", str(finished), "-o", str(tmp_path / output)])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    shutil.rmtree(tmp_path / "folder.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
