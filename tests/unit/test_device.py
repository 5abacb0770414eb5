"""Which torch and which device are used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ltx2_train.config.read import tomllib
from ltx2_train.device import pick_device
from ltx2_train.errors import ConfigError

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


def test_nothing_that_is_installed_pulls_another_torch():
    """pip replaces a torch that does not meet a bound, whatever card it was built for."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    users = [*project["dependencies"], *(line for name, lines in extras.items() if name != "test" for line in lines)]
    assert [line for line in users if line.startswith("torch")] == ["torch"]
