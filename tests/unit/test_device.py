"""Which torch and which device are used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ltx2_train.config.read import tomllib
from ltx2_train.device import card_is_full, is_full, out_of_memory, pick_device, ram_is_full
from ltx2_train.errors import ConfigError, OutOfRam

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.mark.parametrize("version", ["2.6.0+cu124", "2.5.1", "1.13.1"])
def test_an_older_torch_is_named_with_the_one_that_is_needed(monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    for device in ("auto", "cpu"):
        with pytest.raises(ConfigError, match=rf"torch 2.7 or newer is needed, and this is torch {version[:5]}"):
            pick_device(device)


@pytest.mark.parametrize("version", ["2.7.0", "2.11.0+cpu", "3.0.0a0+git1"])
def test_a_newer_one_is_not(monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    ("name", "built", "words"),
    [
        ("cuda", "12.8", "finds no card, or no driver for it. Use auto, cpu"),
        ("cuda:1", None, "was built without CUDA. Use auto, cpu"),
        ("gpu", None, "'gpu' cannot be used: it is no device that this machine has. Use auto, cpu"),
        ("meta:x", None, "it is no device that this machine has"),
    ],
)
def test_a_device_that_is_not_there_is_told_in_our_words(monkeypatch, name, built, words):
    def refuse(*_, **__):
        raise RuntimeError("Expected one of cpu, cuda, ipu, xpu, mkldnn")

    monkeypatch.setattr(torch, "empty", refuse)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    with pytest.raises(ConfigError, match=words) as caught:
        pick_device(name)
    assert "ipu" not in str(caught.value)


def test_nothing_that_is_installed_pulls_another_torch():
    """pip replaces a torch that does not meet a bound, whatever card it was built for."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    users = [*project["dependencies"], *(line for name, lines in extras.items() if name != "test" for line in lines)]
    assert [line for line in users if line.startswith("torch")] == ["torch"]


TRIED = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 4294967296"
FULL_CARD = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.57 GiB"),
    torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory. (out of memory)"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.20 GB, other allocations: 384.00 KB)"),
]
FULL_RAM = [
    MemoryError(),
    RuntimeError(TRIED),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: not enough memory: you tried 9"),
    RuntimeError("unable to mmap 772000000 bytes from file: Cannot allocate memory (12)"),
]
OTHERS = [
    RuntimeError("Triton Error: out of resource: shared memory, Required: 131072, Hardware limit: 101376."),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling cublasLtMatmul"),
    ValueError("out of memory"),
]


@pytest.mark.parametrize("error", [*FULL_CARD, *FULL_RAM, *OTHERS], ids=lambda error: str(error)[:40])
def test_who_ran_out_of_memory_is_told_from_the_words_of_each(error):
    told = out_of_memory(error, "a step")
    assert is_full(error) == (error not in OTHERS)
    assert card_is_full(error) == (error in FULL_CARD)
    assert ram_is_full(error) == (error in FULL_RAM)
    assert (told is not None, isinstance(told, OutOfRam)) == (error not in OTHERS, error in FULL_RAM)
    if error in FULL_RAM:
        assert "RAM of this machine ran out while a step" in str(told)
