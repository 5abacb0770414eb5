"""Loading the pack is quick and asks little: measured by what is imported, since seconds depend on the machine."""

from __future__ import annotations

import json
import subprocess
import sys

import fake_comfy

# A ComfyUI of which only the node API can be imported; ComfyUI has imported torch and pydantic before any pack.
LOAD = """
import importlib.abc, json, sys
sys.path.insert(0, "tests")
import torch, pydantic
import fake_comfy, pytest

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"comfy", "comfy_execution", "folder_paths", "server", "execution", "nodes"}:
            raise AssertionError(f"{name} was imported while the pack was loaded")

sys.meta_path.insert(0, Refuse())
if sys.argv[1] == "inside":
    fake_comfy.install_api(pytest.MonkeyPatch())
before = set(sys.modules)
pack = fake_comfy.load_pack("pack")
settings = sys.modules.get("pack.ltx2_train.settings")
built, left = [], [] if settings is None else [settings.Settings]
while left:
    kind = left.pop()
    left += kind.__subclasses__()
    built += [kind.__name__] if kind.__pydantic_complete__ and kind.model_fields else []
print(json.dumps([sorted(set(sys.modules) - before), built]))
"""
# what a look at the settings has no use for
HEAVY = {"feed", "training", "sampling", "placement", "cli"}
LIBRARIES = {"transformers", "av", "bitsandbytes", "sentencepiece", "scenedetect", "accelerate", "optimum", "aiohttp"}
MOST_MODULES = 158  # each node has one


def loaded(where: str) -> tuple[list[str], list[str]]:
    """The modules that loading the pack imports, and the groups of settings that it builds."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, where], cwd=fake_comfy.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_nodes_load_little_and_only_the_node_api_of_comfyui():
    names, built = loaded("inside")
    assert built == ["TileSettings"], "a group of settings is built when it is first used; this one is a default"
    ours = [name for name in names if name.startswith("pack.")]
    core = {name.split(".")[2] for name in ours if name.startswith("pack.ltx2_train.")}
    assert "pack.nodes.train" in ours
    assert core & HEAVY == set()
    # their settings are part of the tree; what they do is not
    assert {name for name in ours if ".conditions." in name} <= {"pack.ltx2_train.conditions.settings"}
    assert {name.split(".")[0] for name in names} & LIBRARIES == set()
    assert len(ours) <= MOST_MODULES


def test_the_folder_can_be_imported_where_there_is_no_comfyui():
    assert [name for name in loaded("outside")[0] if name.startswith("pack.")] == []
