"""The pack, loaded as ComfyUI loads it, inside a pretended ComfyUI."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path

import fake_comfy
import pytest


@pytest.fixture(scope="session")
def loaded_pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[types.ModuleType]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        fake_comfy.install(monkeypatch, tmp_path_factory.mktemp("comfy"))
        yield fake_comfy.load_pack()
        fake_comfy.unload_pack()


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> fake_comfy.FakeComfy:
    """A pretended ComfyUI with empty folders."""
    return fake_comfy.install(monkeypatch, tmp_path)


@pytest.fixture
def nodes(loaded_pack: types.ModuleType, comfy: fake_comfy.FakeComfy) -> types.ModuleType:
    """The pack's `nodes` package."""
    package = loaded_pack.nodes
    package.host.page._views.clear()
    package.host.page._pages.clear()
    return package
