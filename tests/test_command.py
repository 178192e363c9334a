"""What ends a command: one line on stderr and an exit status; what device it runs on."""

from __future__ import annotations

import contextlib
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
from hnerv.errors import Diverged, Interrupted, RunError, TimeUp, UserError


class Special(UserError):
    pass


@pytest.fixture(autouse=True)
def _root_logger():
    """`one_line_errors` sets up the root logger once for its process; these tests hand it back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


ENDINGS = [
    (UserError("no such file: give another"), 2),
    (Special("no such file: give another"), 2),
    (RunError("loss is nan"), 1),
    (Diverged("loss is nan", ": lower --lr"), 1),
    (TimeUp("saved at step 3"), 124),
    (Interrupted(2, "saved at step 3"), 130),
    (Interrupted(15, "saved at step 3"), 143),
]


@pytest.mark.parametrize(("error", "status"), ENDINGS)
def test_an_error_is_one_line_and_a_status(capsys, error, status):
    with pytest.raises(SystemExit) as stop, one_line_errors("prog.py", debug=False):
        raise error
    assert stop.value.code == status
    assert tuple(capsys.readouterr()) == ("", f"prog.py: {error}\n")


@pytest.mark.parametrize(("error", "status"), ENDINGS)
def test_debug_shows_the_traceback_and_then_the_line(capsys, error, status):
    with pytest.raises(SystemExit) as stop, one_line_errors("prog.py", debug=True):
        raise error
    out, err = capsys.readouterr()
    assert stop.value.code == status and out == ""
    assert err.startswith("Traceback") and "test_command.py" in err
    assert err.splitlines()[-1] == f"prog.py: {error}"


def test_a_message_of_several_lines_becomes_one(capsys):
    with pytest.raises(SystemExit), one_line_errors("prog.py", debug=False):
        raise UserError("cannot read:\n  bad byte\r\n\tat 7\n")
    assert capsys.readouterr().err == "prog.py: cannot read: bad byte at 7\n"


def test_ctrl_c_outside_a_run_is_130_and_no_traceback(capsys):
    with pytest.raises(SystemExit) as stop, one_line_errors("prog.py", debug=False):
        raise KeyboardInterrupt
    assert stop.value.code == 130
    err = capsys.readouterr().err
    assert err.startswith("prog.py: stopped; everything saved so far is intact") and err.count("\n") == 1


GPU_FAULTS = [
    (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the manual"),
        "out of GPU memory (CUDA out of memory. Tried to allocate 2.00 GiB.): stop other processes on the GPU, or "
        "pass --device cpu",
    ),
    (
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        "out of GPU memory (CUDA error: out of memory): stop other processes on the GPU, or pass --device cpu",
    ),
    (
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        "out of GPU memory (CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`): stop other "
        "processes on the GPU, or pass --device cpu",
    ),
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


def test_other_errors_are_faults_of_the_program_and_pass(capsys):
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


def said(name: str) -> str:
    with pytest.raises(UserError) as error:
        pick_device(name)
    return str(error.value)


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "cuda:x", "cuda:-1", "0"])
def test_what_is_no_device(name):
    assert said(name) == f"--device {name!r} is not a device: use auto, cpu, cuda or cuda:N"


@pytest.mark.parametrize("name", ["mps", "meta", "xpu"])
def test_devices_that_are_not_supported(name):
    assert said(name) == f"--device {name!r} is not supported: use auto, cpu, cuda or cuda:N"


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_cuda_where_there_is_none(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert said(name) == (
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
    assert said("cuda:2").startswith(f"--device cuda:2: torch {torch.__version__} finds 2 CUDA devices: ")
    assert pick_device("cpu") == torch.device("cpu")


def test_threads():
    before = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, before)
        set_up_torch(0)
        assert torch.get_num_threads() == before
        set_up_torch(2)
        assert torch.get_num_threads() == 2
    with pytest.raises(UserError, match="^--threads -1 must be at least 0$"):
        set_up_torch(-1)
    for many in (1 << 17, 1 << 31, 10**30):
        with pytest.raises(UserError, match=f"^--threads {many} is above "):
            set_up_torch(many)


def test_the_next_commands_can_be_pasted_into_a_shell():
    evaluate, watch = next_commands(Path("my run's $X/latest.pt"), Path("a b")).splitlines()
    assert shlex.split(evaluate) == ["evaluate:", "python", "eval.py", "my run's $X/latest.pt"]
    assert shlex.split(watch) == ["watch:", "tensorboard", "--logdir", "a b"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_for_the_next_step():
    script = (
        "import torch, pathlib; from hnerv.command import keep_freed_memory; {}\n"
        "held = lambda: int(pathlib.Path('/proc/self/statm').read_text().split()[1])\n"
        "before = held(); torch.ones(16, 1 << 20); print(held() - before)"  # 64 MB
    )
    calls = ["pass", "keep_freed_memory()"]
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", script.format(call)], capture_output=True, check=True).stdout)
        for call in calls
    )
    assert given_back < 4000 < 16_000 < kept  # pages of 4 kB


def test_deterministic_until_it_is_no_longer_asked_for(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    set_up_torch(0)
    assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    set_up_torch(0, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"
    set_up_torch(0)
    assert not torch.are_deterministic_algorithms_enabled()


def test_only_training_lets_cudnn_choose_its_algorithms(finished, tmp_path, train, flags, evaluate, hnerv_main):
    cudnn = torch.backends.cudnn

    def commands():
        yield train(tmp_path, flags(epochs=1)), True
        yield evaluate(shutil.copytree(finished, tmp_path / "finished")), False
        yield train(tmp_path, flags(epochs=1)), True
        yield hnerv_main("encode", finished, "-o", tmp_path / "a.hnerv", "--no-measure"), False
        yield train(tmp_path, [*flags(epochs=1), "--deterministic"]), False

    for status, chooses in commands():
        assert status == 0 and (cudnn.benchmark, cudnn.deterministic) == (chooses, not chooses)
    set_up_torch(0)


@pytest.mark.parametrize("words", [["9" * 5000], ["--threads", "9" * 5000 + "x"], ["--" + "9" * 5000]], ids=len)
def test_a_word_of_pages_is_not_repeated_whole(words, run_script, hnerv_main, capsys):
    assert run_script("eval", words) == run_script("train_patch_dual", ["--exp-id", "x", *words]) == 2
    assert hnerv_main("info", *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(30 < len(line) < 2200 for line in lines)


def test_a_sentence_that_quotes_pages_keeps_its_ends():
    text = str(UserError(f"the format is {'9' * 100_000}: update hnerv"))
    assert len(text) < 2100 and text.startswith("the format is 9") and text.endswith("9: update hnerv")


def test_products_are_true_fp32_whatever_the_environment_asks_for():
    script = "from hnerv.command import set_up_torch; set_up_torch(1); import torch; "
    script += "print(torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32)"
    environment = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, env=environment, text=True)
    assert out.stdout.split() == ["highest", "False"]
