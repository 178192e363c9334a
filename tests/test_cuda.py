"""Commands on a CUDA device, against the same on the CPU: `HNERV_TEST_CUDA=1 pytest -m cuda`."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hnerv.runs.checkpoint import load_checkpoint

DEVICE = "cuda"
ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.cuda


@pytest.fixture
def decoded(hnerv_main, tmp_path):
    """decoded(file, device) -> frames (N, H, W, 3) uint8 that `hnerv decode` writes."""
    number = itertools.count()

    def decode(file: Path, device: str) -> np.ndarray:
        folder = tmp_path / f"decoded{next(number)}"
        assert hnerv_main("decode", file, "-o", folder, "--device", device) == 0
        return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))])

    return decode


def differ_by(ours: np.ndarray, theirs: np.ndarray) -> int:
    """Levels."""
    return int(np.abs(ours.astype(int) - theirs).max())


def state_of(output: Path) -> dict:
    return load_checkpoint(output / "run" / "checkpoints" / "latest.pt")


def assert_near(ours: Path, theirs: Path) -> None:
    """The runs end within 0.1 dB of each other."""
    found, expected = (state_of(output)["evaluation"]["Eval/Frame/train_psnr"] for output in (ours, theirs))
    assert found == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("kind", ["grid", "encoder", "pe", "convnext"])
def test_a_run_trains_in_bf16_and_records_its_device(tmp_path, train, flags, lines_of, setting_of, kind):
    assert train(tmp_path, [*flags(**setting_of(kind), precision="auto", epochs=12), "--device", DEVICE]) == 0
    psnr = [line["Train/PSNR"] for line in lines_of(tmp_path / "run") if line["kind"] == "train"]
    assert psnr[-1] > psnr[0]
    (start,) = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert start["precision"] == "bf16" and start["tf32"] is False
    assert torch.device(start["device"]).type == DEVICE and start["cuda"] and start["cudnn_version"]


@pytest.mark.parametrize("kind", ["grid", "encoder", "convnext"])
def test_a_stopped_deterministic_run_ends_with_the_same_bits(tmp_path, train, flags, setting_of, kind):
    words = [*flags(**setting_of(kind), precision="auto", epochs=12), "--device", DEVICE, "--deterministic"]
    assert train(tmp_path / "whole", words) == 0
    assert train(tmp_path / "stopped", [*words, "--max-minutes", "1e-9"]) == 124
    assert train(tmp_path / "stopped", words) == 0
    stopped, whole = state_of(tmp_path / "stopped"), state_of(tmp_path / "whole")
    torch.testing.assert_close(stopped["model"], whole["model"], rtol=0, atol=0)
    assert stopped["evaluation"] == whole["evaluation"]


@pytest.mark.parametrize("embedding", ["grid", "encoder"])
def test_frames_in_host_memory_train_as_those_on_the_device(tmp_path, train, flags, monkeypatch, embedding):
    words = [*flags(embedding=embedding), "--device", DEVICE]
    assert train(tmp_path / "device", words) == 0
    monkeypatch.setattr("hnerv.data.store.FrameStore.SHARE_OF_DEVICE_MEMORY", 0)
    assert train(tmp_path / "host", words) == 0
    assert_near(tmp_path / "host", tmp_path / "device")


@pytest.mark.parametrize("kind", ["grid", "encoder", "pe", "convnext"])
def test_a_file_decodes_to_the_same_pixels_twice_and_to_within_a_level_on_the_cpu(coded, decoded, kind):
    first, second, cpu = (decoded(coded(kind), device) for device in (DEVICE, DEVICE, "cpu"))
    assert first.shape == (12, 32, 64, 3) and np.array_equal(first, second)
    assert differ_by(first, cpu) <= 1


@pytest.mark.parametrize("back", [False, True], ids=["to the CPU", "from the CPU"])
def test_encoded_on_one_device_and_decoded_on_the_other(finished, tmp_path, hnerv_main, decoded, back):
    file, (encodes, decodes) = tmp_path / "a.hnerv", ("cpu", DEVICE) if back else (DEVICE, "cpu")
    assert hnerv_main("encode", finished, "-o", file, "--device", encodes) == 0
    assert differ_by(decoded(file, decodes), decoded(file, encodes)) <= 1


def test_an_evaluation_is_that_of_the_cpu(finished, tmp_path, evaluate):
    found = []
    for number, device in enumerate((DEVICE, "cpu")):
        run = shutil.copytree(finished, tmp_path / f"run{number}")
        assert evaluate(run, "--device", device) == 0
        found.append(json.loads((run / "eval" / "summary.json").read_text()))
    tags = [tag for tag in found[1] if "psnr" in tag]
    assert len(tags) >= 4
    for tag in tags:
        assert found[0][tag] == pytest.approx(found[1][tag], abs=0.05), tag
    similarity = "Eval/Frame/train_clip_sim"
    assert found[0][similarity] == pytest.approx(found[1][similarity], abs=1e-3)


def test_embeddings_and_hits_are_those_of_the_cpu(clip_run, tmp_path, hnerv_main, capsys):
    """The texts are embedded on the device too. Each device has a copy of the run, where it keeps its index."""
    embeddings, hits = [], []
    for number, device in enumerate((DEVICE, "cpu")):
        run, file = shutil.copytree(clip_run, tmp_path / f"run{number}"), tmp_path / f"{number}.safetensors"
        assert hnerv_main("embed", run, "-o", file, "--device", device) == 0
        embeddings.append(load_file(file)["embeddings"])
        capsys.readouterr()
        assert hnerv_main("search", run, "a rabbit", "--json", "--device", device) == 0
        hits.append(json.loads(capsys.readouterr().out)["hits"])
    assert (embeddings[0] * embeddings[1]).sum(-1).min() > 0.999
    assert [hit["score"] for hit in hits[0]] == pytest.approx([hit["score"] for hit in hits[1]], abs=1e-3)


@pytest.mark.skipif(
    shutil.which("g++") is None or importlib.util.find_spec("triton") is None, reason="needs g++ and triton"
)
@pytest.mark.filterwarnings("ignore")  # the compiler has advice, as on TF32
def test_a_compiled_run_ends_near_one_that_is_not(tmp_path, train, flags):
    words = [*flags(precision="auto"), "--device", DEVICE]
    assert train(tmp_path / "plain", words) == train(tmp_path / "compiled", [*words, "--compile"]) == 0
    assert_near(tmp_path / "compiled", tmp_path / "plain")


@pytest.mark.parametrize("module", ["train_patch_dual", "eval", "hnerv.cli"])
def test_out_of_memory_is_one_line(module, tmp_path, finished, coded, flags):
    """In a process that may take next to nothing of the GPU."""
    words = {
        "train_patch_dual": ["--output", tmp_path, "--exp-id", "run", *flags()],
        "eval": [shutil.copytree(finished, tmp_path / "finished")],
        "hnerv.cli": ["decode", coded("grid"), "-o", tmp_path / "decoded"],
    }[module]
    limited = "import torch; torch.cuda.set_per_process_memory_fraction(1e-9)"
    code = f"{limited}; from {module} import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words), "--device", DEVICE],
        capture_output=True,
        text=True,
        timeout=300,
    )
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "out of GPU memory (CUDA out of memory" in line
    assert ("pass --batch-size 1 instead of 3" if module == "train_patch_dual" else "pass --device cpu") in line
