"""NVRTC: where it is found, and what it compiles, with stand-ins for it."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cuda_emulator import SOURCE

from torch_rnn.ops import nvrtc


def test_a_kernel_is_not_loaded_during_a_capture(monkeypatch):
    monkeypatch.setattr(nvrtc, "capturing", lambda device: True)
    with pytest.raises(RuntimeError, match="the kernel forward<32, TANH, true> cannot be loaded while"):
        nvrtc.load(SOURCE, "forward<32, TANH, true>", 0, 32, 256)


class Compiler:
    """Stands in for NVRTC and counts what it compiles."""

    count = 0

    def nvrtcCompileProgram(self, *_):
        self.count += 1

    def nvrtcGetLoweredName(self, program, name, mangled):
        mangled._obj.value = name

    def __getattr__(self, name):
        return lambda *_: 0


def test_devices_of_one_kind_share_a_binary(monkeypatch):
    compiler, kernels = Compiler(), []
    monkeypatch.setattr(nvrtc, "nvrtc", lambda: compiler)
    monkeypatch.setattr(nvrtc, "Kernel", lambda *given: kernels.append(given))
    monkeypatch.setattr(nvrtc, "capturing", lambda device: False)
    monkeypatch.setattr(nvrtc, "architectures", lambda: (80, 90))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8 + device // 2, 0))
    for device in range(4):
        nvrtc.load("a source", "forward", device, 32, 0)
    assert compiler.count == 2
    assert [(name, device) for _, name, device, _, _ in kernels] == [("forward", i) for i in range(4)]


def test_nvrtc_is_found_in_the_wheels_of_nvidia(monkeypatch, tmp_path):
    for name in (
        "cu13/lib/libnvrtc.so.13",
        "cuda_nvrtc/lib/libnvrtc.so.12",
        "cuda_nvrtc/lib/libnvrtc.alt.so.12",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        (tmp_path / name).with_name("libnvrtc-builtins.so.12.9").touch()
    wheels = SimpleNamespace(submodule_search_locations=[tmp_path])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: wheels)
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    found = [
        Path(path).relative_to(tmp_path) for path in nvrtc._libraries() if path.startswith(str(tmp_path))
    ]
    assert list(map(str, found)) == ["cuda_nvrtc/lib/libnvrtc.so.12", "cu13/lib/libnvrtc.so.13"]
    monkeypatch.undo()
    monkeypatch.setattr(nvrtc, "_libraries", lambda: [str(tmp_path / "cu13/lib/libnvrtc.so.13"), "no.so"])
    assert nvrtc.nvrtc.__wrapped__() is None
