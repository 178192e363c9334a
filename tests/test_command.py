"""How a command ends (one line on stderr, an exit status), its device, and the set-up of torch."""

from __future__ import annotations

import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hnerv.command import next_commands, one_line_errors, pick_device, set_up_torch
from hnerv.errors import Diverged, Interrupted, OtherRun, RunError, TimeUp, UserError
from hnerv.training import chunks


@pytest.fixture(autouse=True)
def _root_logger():
    """Restore the root logger, which `one_line_errors` configures."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


ENDINGS = [
    (UserError("no such file: give another"), 2),
    (OtherRun("the run has other settings: pass them"), 2),
    (RunError("loss is nan"), 1),
    (Diverged("loss is nan", ": lower --lr"), 1),
    (TimeUp("saved at step 3"), 124),
    (Interrupted(2, "saved at step 3"), 130),
    (Interrupted(15, "saved at step 3"), 143),
]


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(("error", "status"), ENDINGS)
def test_an_error_is_one_line_and_a_status(capsys, error, status, debug):
    with pytest.raises(SystemExit) as stop, one_line_errors("prog.py", debug):
        raise error
    out, err = capsys.readouterr()
    assert stop.value.code == status and out == "" and err.splitlines()[-1] == f"prog.py: {error}"
    assert err.startswith("Traceback") == debug and (debug or err.count("\n") == 1)


def test_a_message_of_several_lines_becomes_one(capsys):
    with pytest.raises(SystemExit), one_line_errors("prog.py", debug=False):
        raise UserError("cannot read:\n  bad byte\r\n\tat 7\n")
    assert capsys.readouterr().err == "prog.py: cannot read: bad byte at 7\n"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "stopped; everything saved so far is intact"),
        (FileNotFoundError(2, "No such file", "a.mp4"), 2, "a.mp4: No such file: use another path, or fix the cause"),
        (OSError(28, "No space left"), 1, "No space left: use another path, or fix the cause"),
    ],
)
def test_errors_of_the_system(capsys, error, status, line):
    with pytest.raises(SystemExit) as stop, one_line_errors("prog.py", debug=False):
        raise error
    assert stop.value.code == status and capsys.readouterr().err == f"prog.py: {line}\n"


CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
FREE = "stop other processes on the GPU, or pass --device cpu"
GPU_FAULTS = [
    (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the manual"),
        f"out of GPU memory (CUDA out of memory. Tried to allocate 2.00 GiB.): {FREE}",
    ),
    (
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        f"out of GPU memory (CUDA error: out of memory): {FREE}",
    ),
    (RuntimeError(CUBLAS), f"out of GPU memory ({CUBLAS}): {FREE}"),
    (
        torch.AcceleratorError("CUDA error: unspecified launch failure\nmore"),
        "the GPU failed (CUDA error: unspecified launch failure): check nvidia-smi, or pass --device cpu",
    ),
]


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(("error", "line"), GPU_FAULTS)
def test_a_gpu_that_fails_is_one_line(capsys, error, line, debug):
    with pytest.raises(SystemExit) as stop, one_line_errors("prog.py", debug):
        raise error
    err = capsys.readouterr().err
    assert stop.value.code == 1 and err.splitlines()[-1] == f"prog.py: {line}"
    assert err.startswith("Traceback") == debug and (debug or err.count("\n") == 1)


@pytest.mark.parametrize("verb", ["eval", "encode", "decode", "search", "embed", "semantics", "report", "targets"])
def test_out_of_memory_in_every_command(
    verb, tmp_path, finished, coded, targets_file, evaluate, hnerv_main, train, flags, monkeypatch, capsys
):
    run, file, (error, line) = shutil.copytree(finished, tmp_path / "run"), coded("grid"), GPU_FAULTS[0]
    shutil.rmtree(run / "eval", ignore_errors=True)
    commands = {
        "encode": [run, "-o", tmp_path / "a.hnerv"],
        "decode": [file, "-o", tmp_path / "out"],
        "search": [run, "--embedding", f"{targets_file}:0,0"],
        "embed": [run, "-o", tmp_path / "a.safetensors"],
        "semantics": [run],
        "report": [run],
    }

    def fails(*_, **__):
        raise error

    for place in ("hnerv.model.DualHeadHNeRV.forward", "hnerv.model.DualHeadHNeRV.embed"):
        monkeypatch.setattr(place, fails)
    monkeypatch.setattr("hnerv.data.clip.Teacher.encode_patches", fails)
    capsys.readouterr()
    if verb == "targets":
        status = train(tmp_path / "output", flags(clip_targets=None, clip_weights="random", seed=110))  # not cached
    else:
        status = evaluate(run) if verb == "eval" else hnerv_main(verb, *commands[verb])
    prog = {"eval": "eval.py", "targets": "train_patch_dual.py"}.get(verb, f"hnerv {verb}")
    assert status == 1 and capsys.readouterr().err.splitlines()[-1] == f"{prog}: {line}"


def test_other_errors_pass(capsys):
    with pytest.raises(ZeroDivisionError), one_line_errors("prog.py", debug=False):
        raise ZeroDivisionError
    with one_line_errors("prog.py", debug=False):
        pass
    for kind in (ValueError, RuntimeError):
        with pytest.raises(kind, match="plain"), one_line_errors("prog.py", debug=False):
            raise kind("plain")
    assert capsys.readouterr().err == ""


def test_warnings_go_to_stderr_bare(capsys):
    logging.getLogger().handlers.clear()
    with one_line_errors("prog.py", debug=False):
        logging.getLogger("hnerv").warning("NOT CLIP: %d", 3)
        logging.getLogger("httpx").info("HTTP Request: GET")
    assert tuple(capsys.readouterr()) == ("", "NOT CLIP: 3\n")


def refusal(name: str) -> str:
    with pytest.raises(UserError) as error:
        pick_device(name)
    return str(error.value)


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "cuda:x", "cuda:-1", "0", "mps", "meta"])
def test_an_unknown_device(name):
    reason = "supported" if name in ("mps", "meta") else "a device"
    assert refusal(name) == f"--device {name!r} is not {reason}: use auto, cpu, cuda or cuda:N"


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_cuda_where_there_is_none(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert refusal(name) == (
        f"--device {name}: torch {torch.__version__} finds no CUDA device: use --device cpu, or fix the driver"
    )
    assert pick_device("auto") == torch.device("cpu")


def test_cuda_where_there_are_two(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda") and not chosen
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert refusal("cuda:2").startswith(f"--device cuda:2: torch {torch.__version__} finds 2 CUDA devices: ")
    assert pick_device("cpu") == torch.device("cpu")


def test_threads():
    before = torch.get_num_threads()
    try:
        set_up_torch(0)
        assert torch.get_num_threads() == before
        set_up_torch(2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    for threads, message in ((-1, "must be at least 0$"), (1 << 17, "is above "), (10**30, "is above ")):
        with pytest.raises(UserError, match=f"^--threads {threads} {message}"):
            set_up_torch(threads)


def test_the_next_commands_can_be_pasted_into_a_shell():
    evaluate, watch = next_commands(Path("my run's $X")).splitlines()
    assert shlex.split(evaluate) == ["evaluate:", "python", "eval.py", "my run's $X"]
    assert shlex.split(watch) == ["watch:", "tensorboard", "--logdir", "my run's $X"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_for_the_next_step():
    script = (
        "import pathlib; from hnerv.command import keep_freed_memory; {}\n"
        "held = lambda: int(pathlib.Path('/proc/self/statm').read_text().split()[1])\n"
        "before = held(); b'x' * (64 << 20); print(held() - before)"
    )
    calls = ["pass", "keep_freed_memory()"]
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", script.format(call)], capture_output=True, check=True).stdout)
        for call in calls
    )
    assert given_back < 4000 < 16_000 < kept  # pages of 4 kB


def test_deterministic_mode_is_set_and_reset(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    set_up_torch(0)
    assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    set_up_torch(0, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"
    set_up_torch(0)
    assert not torch.are_deterministic_algorithms_enabled()


def test_only_training_lets_cudnn_choose_its_algorithms(
    finished, tmp_path, train, flags, evaluate, hnerv_main, monkeypatch
):
    cudnn, fit, training = torch.backends.cudnn, chunks.fit, []

    def recorded_fit(*args):
        training.append((cudnn.benchmark, cudnn.deterministic))
        return fit(*args)

    monkeypatch.setattr(chunks, "fit", recorded_fit)
    commands = (
        lambda: train(tmp_path, flags(epochs=1)),
        lambda: evaluate(shutil.copytree(finished, tmp_path / "finished")),
        lambda: train(tmp_path / "b", flags(epochs=1)),
        lambda: hnerv_main("encode", finished, "-o", tmp_path / "a.hnerv", "--no-measure"),
        lambda: train(tmp_path / "c", [*flags(epochs=1), "--deterministic"]),
    )
    for command in commands:
        assert command() == 0 and (cudnn.benchmark, cudnn.deterministic) == (False, True)
    assert training == [(True, False), (True, False), (False, True)]


@pytest.mark.parametrize("words", [["9" * 5000], ["--threads", "9" * 5000 + "x"], ["--" + "9" * 5000]], ids=len)
def test_a_huge_argument_is_shortened(words, run_script, hnerv_main, capsys):
    assert run_script("eval", words) == run_script("train_patch_dual", ["--exp-id", "x", *words]) == 2
    assert hnerv_main("info", *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(30 < len(line) < 2200 for line in lines)


def test_a_huge_message_keeps_its_ends():
    text = str(UserError(f"the format is {'9' * 100_000}: update hnerv"))
    assert len(text) < 2100 and text.startswith("the format is 9") and text.endswith("9: update hnerv")


def test_products_are_true_fp32_despite_the_environment():
    script = "from hnerv.command import set_up_torch; set_up_torch(1); import torch; "
    script += "print(torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32)"
    environment = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, env=environment, text=True)
    assert out.stdout.split() == ["highest", "False"]


def test_waiting_threads_do_not_spin():
    """The variable is set before torch, and so OpenMP, can be imported."""
    script = "import hnerv, os, sys; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, env=environment, text=True)
    assert out.stdout.split() == ["1000", "False"]
