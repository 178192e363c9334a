"""Each check on machines that this one is not."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hnerv.cli import doctoring as doctor
from hnerv.cli.doctoring import Check, check_all, check_clip, check_disk, check_gpu, runs_on
from hnerv.data.clip import hub


def test_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "check_clip", lambda online: Check("CLIP", "ok", "not asked"))
    found = {check.name: check for check in check_all(tmp_path / "output")}
    for name in ("python", "torch", "torchvision", "tensorboard", "PyAV", "disk runs"):
        assert found[name].level == "ok", found[name]
    assert all(check.level in ("ok", "warning") and check.says for check in found.values())
    assert all(check.mend for check in found.values() if check.level != "ok")
    assert not (tmp_path / "output").exists()


def test_a_check_that_fails_is_a_fault_and_the_others_go_on(tmp_path, monkeypatch):
    def broken():
        raise OSError("libcudart.so\nnot found")

    monkeypatch.setattr(doctor, "check_torch", broken)
    monkeypatch.setattr(doctor, "check_clip", lambda online: Check("CLIP", "ok", "not asked"))
    found = {check.name: check for check in check_all(tmp_path)}
    assert found["torch"].level == "fault" and found["torch"].says == "OSError: libcudart.so not found"
    assert found["python"].level == "ok" and "PyAV" in found


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 6), ["sm_80", "sm_90"], True),
        ((8, 0), ["sm_86", "sm_90"], False),
        ((7, 5), ["sm_80", "sm_90", "compute_90"], False),
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((10, 3), ["sm_100"], True),
        ((12, 0), ["sm_90a"], False),
        ((9, 0), ["sm_90a"], True),
        ((9, 0), [], False),
        ((9, 0), ["gfx90a"], False),
    ],
)
def test_which_gpu_runs_which_build(capability, built, runs):
    assert runs_on(capability, built) is runs


@pytest.fixture
def gpu(monkeypatch):
    """gpu(capability, free) -> the checks of a machine with one GPU and a build for sm_80 and sm_90."""

    def build(capability=(9, 0), free=70e9):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H200")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (free, 80e9))
        monkeypatch.setattr(torch, "ones", lambda count, device: torch.full((count,), 1.0))
        return list(check_gpu())

    return build


def test_gpus(gpu):
    (good,) = gpu()
    assert good.level == "ok" and good.says.startswith("H200, sm_90, CUDA ") and "70.0 of 80.0 GB free" in good.says
    assert gpu(free=1e9)[0].level == "warning"
    (foreign,) = gpu(capability=(7, 0))
    assert foreign.level == "fault" and foreign.says == "H200 is sm_70, but torch is built for sm_80 sm_90"


@pytest.mark.parametrize(
    ("seen", "built", "level", "says"),
    [
        ("", "13.0", "warning", "no CUDA device; training runs on the CPU"),
        ("", None, "warning", "no CUDA device; training runs on the CPU"),
        ("H200", None, "fault", "H200 exists, but this torch is built without CUDA"),
        ("H200", "13.0", "fault", "H200 exists, but torch with CUDA 13.0 does not find it"),
    ],
)
def test_no_gpu_that_torch_finds(monkeypatch, seen, built, level, says):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(doctor, "_driver_sees", lambda: seen)
    (check,) = check_gpu()
    assert (check.level, check.says) == (level, says) and check.mend


def test_torchvision_of_another_torch(monkeypatch):
    def missing(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(nms=missing))
    check = doctor.check_torchvision()
    assert check.level == "fault" and "torchvision::nms" in check.says and "pip install" in check.mend


def test_an_old_tensorboard(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.20.0")
    assert doctor.check_tensorboard().level == "fault"


@pytest.mark.parametrize(
    ("platform", "machine", "level"),
    [
        ("linux", "x86_64", "warning"),
        ("linux", "aarch64", "ok"),
        ("darwin", "arm64", "ok"),
        ("win32", "AMD64", "warning"),
    ],
)
def test_without_decord(monkeypatch, platform, machine, level):
    monkeypatch.setattr(doctor.sys, "platform", platform)
    monkeypatch.setattr(doctor.platform, "machine", lambda: machine)
    monkeypatch.setitem(doctor.sys.modules, "decord", None)
    assert doctor.check_decord().level == level


def test_codecs_that_are_missing(monkeypatch):
    assert not doctor._has_codec("no-such-codec", "r")
    monkeypatch.setattr(doctor, "_has_codec", lambda name, mode: name != "libx265" and name != "hevc")
    assert doctor.check_encoders().line().startswith("warning video encoders  PyAV has no libx265: ")
    assert "cannot read hevc" in doctor.check_pyav().says


def test_memory(monkeypatch):
    free, total = doctor.memory()
    assert 0 < free <= total
    for found, level in (((10**9, 10**10), "warning"), ((10**10, 10**11), "ok"), ((0, 0), "ok")):
        monkeypatch.setattr(doctor, "memory", lambda found=found: found)
        assert doctor.check_memory().level == level


def test_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=1e9))
    runs, cache = check_disk(tmp_path / "a" / "b")
    assert (runs.level, runs.name) == ("warning", "disk runs") and "--output" in runs.mend
    assert cache.name == "disk cache" and "HNERV_CACHE" in cache.mend
    (tmp_path / "file").write_text("")
    assert next(check_disk(tmp_path / "file" / "runs")).level == "fault"


def test_clip_weights(monkeypatch):
    def no_hub(*_):
        raise hub.HubUnavailable("the hub cannot be reached")

    monkeypatch.setattr(hub, "cached", lambda repo, files: "")
    offline, files = check_clip(False), "pass --clip-weights FILE or --clip-targets FILE"
    assert offline.says.endswith(" is not cached, and the hub was not checked (pass --online)")
    without = "without the hub, training uses a random encoder"
    assert (offline.level, offline.mend) == ("warning", f"{files}; {without}")
    monkeypatch.setattr("hnerv.data.clip.hub.served", no_hub)
    online = check_clip(True)
    assert online.says.endswith(" is not cached, and the hub cannot be reached")
    assert (online.level, online.mend) == ("warning", f"{files}; otherwise a random encoder is used")
    monkeypatch.setattr("hnerv.data.clip.hub.served", lambda repo, files: files[0])
    assert check_clip(True).level == "ok"
    monkeypatch.setattr(hub, "cached", lambda repo, files: "/cache/file")
    assert check_clip(False) == Check(
        "CLIP", "ok", "OpenCLIP ViT-B-32-quickgelu, openai, in the Hugging Face cache (/cache/file)"
    )


def test_every_optional_package_is_checked():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    optional = tomllib.loads(text)["project"]["optional-dependencies"]
    names = {line.split(">")[0] for line in [*optional["compare"], *optional["fleet"]]}
    assert names <= {check.name for check in doctor.check_extras()}


def test_the_hub_is_not_asked_where_it_must_not_be():
    with pytest.raises(hub.HubUnavailable, match="HF_HUB_OFFLINE is set"):
        hub.served("repo", ("file",))
