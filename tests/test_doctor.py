"""Each check of `hnerv doctor`, on simulated machines."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hnerv.cli import doctor
from hnerv.cli.doctor import Check, check_all, check_clip, check_disk, check_gpu
from hnerv.data.clip import hub
from hnerv.vmaf import vmaf_obstacle


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr(hub, "cached", lambda repo, files: "/cache/file")


def test_this_machine(tmp_path):
    found = {check.name: check for check in check_all(tmp_path / "output")}
    for name in ("python", "torch", "torchvision", "tensorboard", "PyAV", "CLIP"):
        assert found[name].level == "ok", found[name]
    assert all(check.level in ("ok", "warning") and check.result for check in found.values())
    assert all(check.fix for check in found.values() if check.level != "ok")
    assert not (tmp_path / "output").exists()


def test_a_failing_check_is_one_fault_and_the_others_run(tmp_path, monkeypatch):
    def broken():
        raise OSError("libcudart.so\nnot found")

    monkeypatch.setattr(doctor, "check_torch", broken)
    found = {check.name: check for check in check_all(tmp_path)}
    assert found["torch"].level == "fault" and found["torch"].result == "OSError: libcudart.so not found"
    assert found["python"].level == "ok" and "PyAV" in found


def test_a_gpu_that_computes_and_one_that_does_not(monkeypatch):
    machine = {"is_available": True, "device_count": 1, "get_device_name": "H200", "get_device_capability": (9, 0)}
    machine |= {"get_arch_list": ["sm_80", "sm_90"], "mem_get_info": (70e9, 80e9)}
    for name, value in machine.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch, "ones", lambda count, device: torch.full((count,), 1.0))
    (good,) = check_gpu()
    assert good.level == "ok" and good.result.startswith("H200, sm_90, CUDA ") and "70.0 of 80.0 GB" in good.result

    def no_kernel(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch, "ones", no_kernel)
    (bad,) = check_gpu()
    assert bad.level == "fault" and "no kernel image" in bad.result
    assert bad.result.endswith("torch is built for sm_80 sm_90")


@pytest.mark.parametrize(
    ("name", "cuda_version", "level", "result"),
    [
        ("", "13.0", "warning", "no CUDA device; training runs on the CPU"),
        ("", None, "warning", "no CUDA device; training runs on the CPU"),
        ("H200", None, "fault", "H200 exists, but this torch is built without CUDA"),
        ("H200", "13.0", "fault", "H200 exists, but torch with CUDA 13.0 does not find it"),
    ],
)
def test_a_machine_without_a_gpu_for_torch(monkeypatch, name, cuda_version, level, result):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda_version)
    monkeypatch.setattr(doctor, "_driver_gpu", lambda: name)
    (check,) = check_gpu()
    assert (check.level, check.result) == (level, result) and check.fix


def test_versions_that_do_not_match(monkeypatch):
    def missing(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.20.0")
    (old,) = doctor.check_tensorboard()
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(nms=missing))
    (other,) = doctor.check_torchvision()
    assert old.level == other.level == "fault" and "torchvision::nms" in other.result and "pip install" in other.fix


@pytest.mark.parametrize(
    ("platform", "machine", "level"),
    [("linux", "x86_64", "warning"), ("linux", "aarch64", "ok"), ("darwin", "arm64", "ok")],
)
def test_without_decord(monkeypatch, platform, machine, level):
    monkeypatch.setattr(doctor.sys, "platform", platform)
    monkeypatch.setattr(doctor.platform, "machine", lambda: machine)
    monkeypatch.setitem(doctor.sys.modules, "decord", None)
    assert [check.level for check in doctor.check_decord()] == [level]


def test_missing_codecs(monkeypatch):
    assert not doctor._has_codec("no-such-codec", "r")
    monkeypatch.setattr(doctor, "_has_codec", lambda name, mode: name not in ("libx265", "hevc"))
    readers, encoders = doctor.check_pyav()
    assert readers.level == encoders.level == "warning" and readers.result.endswith(" has no hevc")
    assert encoders.line().startswith("warning video encoders  PyAV ") and " has no libx265: only " in encoders.line()


def test_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e9))
    runs, cache = check_disk(tmp_path / "a" / "b")
    assert (runs.level, runs.name) == ("warning", "disk runs") and "--output" in runs.fix
    assert cache.name == "disk cache" and "HNERV_CACHE" in cache.fix


def test_clip_weights(monkeypatch):
    def unreachable(*_):
        raise hub.HubUnavailable("the hub cannot be reached")

    source = "OpenCLIP ViT-B-32-quickgelu, openai"
    (found,) = check_clip(False)
    assert found == Check("CLIP", "ok", f"{source}, in the Hugging Face cache (/cache/file)")
    monkeypatch.setattr(hub, "cached", lambda repo, files: "")
    files = "pass --clip-weights FILE or --clip-targets FILE; "
    (offline,) = check_clip(False)
    assert offline.level == "warning" and offline.result.startswith(f"{source} is not in the Hugging Face cache (/")
    assert offline.result.endswith(", and the hub was not checked (pass --online)")
    assert offline.fix == files + "without the hub, training uses a random encoder"
    monkeypatch.setattr(hub, "served", unreachable)
    (refused,) = check_clip(True)
    assert refused.level == "warning" and refused.result.endswith(", and the hub cannot be reached")
    assert refused.fix == files + "otherwise a random encoder is used"
    monkeypatch.setattr(hub, "served", lambda repo, files: files[0])
    assert [check.level for check in check_clip(True)] == ["ok"]


def test_the_extras_are_those_of_the_package(monkeypatch):
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    optional = tomllib.loads(text)["project"]["optional-dependencies"]
    names = {extra: {line.split(">")[0] for line in optional[extra]} for extra in doctor.EXTRAS}
    assert names == {extra: set(packages) for extra, packages in doctor.EXTRAS.items()}
    monkeypatch.setattr(doctor, "_is_installed", lambda name: name != "ray")
    compare, fleet = doctor.check_extras()
    assert compare.result == "installed" and fleet.result == "optional: pip install -e '.[fleet]' adds ray"


def test_a_hub_that_is_switched_off():
    with pytest.raises(hub.HubUnavailable, match="HF_HUB_OFFLINE is set"):
        hub.served("repo", ("file",))


def test_vmaf_is_optional(vmaf_stand_in):
    path = vmaf_stand_in()
    (able,) = doctor.check_vmaf()
    assert (able.level, able.result) == ("ok", f"measured by {path}")
    vmaf_obstacle.cache_clear()
    path.unlink()
    path.symlink_to("nowhere")
    (missing,) = doctor.check_vmaf()
    assert missing.level == "ok" and missing.result.startswith("optional: VMAF needs ffmpeg with the filter libvmaf")
