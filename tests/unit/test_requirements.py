"""requirements.txt, for ComfyUI, and pyproject.toml ask for the same."""

from __future__ import annotations

from pathlib import Path

from packaging.requirements import Requirement

from ltx2_train.toml import read_toml

ROOT = Path(__file__).resolve().parents[2]
# ComfyUI asks for these in the versions that are needed, or newer ones, since 0.20
WITH_COMFYUI = {"torch", "numpy", "pillow"}


def test_comfyui_gets_every_version_that_the_package_asks_for() -> None:
    project = [Requirement(line) for line in read_toml(ROOT / "pyproject.toml")["project"]["dependencies"]]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert {one.name: (one.specifier, str(one.marker)) for one in listed} == {
        one.name: (one.specifier, str(one.marker)) for one in project if one.name.lower() not in WITH_COMFYUI
    }
