"""Our bytes on the list of ComfyUI's real model management, on a card of 16 GB that is only counted.

A process of its own, since importing ComfyUI changes torch and takes the name `nodes`. There the free memory that
ComfyUI asks torch for is computed from its own list of loaded models; everything else is ComfyUI's code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from comfy_server import ROOT, why_not

pytestmark = [pytest.mark.comfy, pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]

SCRIPT = r"""
import gc, json, sys
tests, tree = sys.argv[1:]
sys.path[:0] = [tree, tests]
import comfy.options
from comfy.cli_args import args
args.cpu = True
import torch
import comfy.model_management as management
from comfy.model_patcher import ModelPatcher

GB = 2**30
card = torch.device("meta")  # any device that is not the CPU; nothing is allocated on it

def free(device=None, torch_free_too=False):
    used = sum(entry.model.loaded_size() for entry in management.current_loaded_models if entry.device == device)
    return (16 * GB - used, 0) if torch_free_too else 16 * GB - used

management.get_free_memory = free
management.vram_state = management.VRAMState.NORMAL_VRAM
management.soft_empty_cache = lambda *a, **k: None

import fake_comfy
pack = fake_comfy.load_pack()
host = pack.nodes.host

class Other(ModelPatcher):
    def __init__(self, size):
        super().__init__(torch.nn.Linear(1, 1), card, torch.device("cpu"), size=size)
        self.held = 0
    def loaded_size(self): return self.held
    def model_mmap_residency(self, free=False): return 0, 0
    def partially_load(self, device, extra=0, force_patch_weights=False):
        self.held = self.size
        return self.size
    def partially_unload(self, device, n=0, force_patch_weights=False): return 0
    def detach(self, unpatch_all=True):
        self.held = 0
        return self.model

class Owner:
    def __init__(self): self.moves = []
    def to(self, device): self.moves.append(str(device))

seen = {}
other = Other(9 * GB)
management.load_models_gpu([other], force_full_load=True)
seen["other before"] = other.held // GB

events = host.ComfyEvents(None)
owner = Owner()
events.make_room(8 * GB, card)
seen["other after make_room"] = other.held // GB
events.holding(owner, 8 * GB, card)
seen["ours on the list"] = [entry.model.loaded_size() // GB for entry in management.current_loaded_models]
events.make_room(4 * GB, card)
seen["moves after more room for ourselves"] = list(owner.moves)
events.holding(owner, 9 * GB, card)
seen["grown"] = [entry.model.model_size() // GB for entry in management.current_loaded_models]

management.load_models_gpu([other], force_full_load=True)
seen["moves after a model of ComfyUI's came"] = list(owner.moves)
seen["other loaded again"] = other.held // GB
events.holding(owner, 5 * GB, card)
seen["other when ours came back"] = other.held // GB
events.holding(owner, 0, card)
events.holding(owner, 3 * GB, card)
events.close()
del owner
gc.collect()
management.cleanup_models_gc()
seen["left on the list"] = len([e for e in management.current_loaded_models if type(e.model).__name__ == "Handle"])
print(json.dumps(seen))
"""


def test_comfyui_sees_our_memory_and_can_take_it_back():
    command = [sys.executable, "-c", SCRIPT, str(ROOT / "tests"), os.environ["COMFYUI_PATH"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=os.environ["COMFYUI_PATH"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "other before": 9,
        "other after make_room": 0,
        "ours on the list": [8],
        "moves after more room for ourselves": [],
        "grown": [9],
        "moves after a model of ComfyUI's came": ["cpu"],
        "other loaded again": 9,
        "other when ours came back": 9,
        "left on the list": 0,
    }
