"""Compare checkpoints and the LoRA tools in a real ComfyUI: the API twins of their workflows, on a tiny base."""

from __future__ import annotations

import json
import shutil

import av
import pytest

pytest.importorskip("aiohttp", reason="aiohttp comes with ComfyUI")
from comfy_server import ROOT, ComfyServer, why_not
from lora_files import metadata
from saved_run import write_run

pytestmark = [pytest.mark.comfy, pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny, drawn_clip):
    base = tmp_path_factory.mktemp("comfyui")
    folder = write_run(base / "output/ltx2_runs/fox", tiny, drawn_clip)
    (base / "models/loras").mkdir(parents=True)
    shutil.copy2(folder / "lora/fox_000010.safetensors", base / "models/loras/fox.safetensors")
    shutil.copy2(folder / "lora/fox_000030.safetensors", base / "models/loras/style.safetensors")
    with ComfyServer(base) as running:
        yield running


def twin(name, **more):
    """A twin with other values; `NodeId={...}` changes those of a node."""
    graph = json.loads((ROOT / "example_workflows/api" / f"{name}.json").read_text(encoding="utf-8"))
    for node in graph.values():
        node["inputs"] |= more.get(node["class_type"], {})
    return graph


def test_the_workflow_draws_a_grid_with_sound_and_draws_it_once(server):
    chosen = {
        "LTX2T_PickCheckpoints": {"run_name": "fox", "pick.count": 2},
        "LTX2T_CompareCheckpoints": {"prompts": "a fox\na dog", "width": 64, "height": 64, "frames": 9, "steps": 1},
    }
    entry = server.run(twin("09_compare_checkpoints", **chosen))
    (shown,) = entry["outputs"]["3"]["images"]
    assert shown["subfolder"] == "ltx2_compare/fox"
    grid = server.base / "output" / shown["subfolder"] / shown["filename"]
    with av.open(str(grid)) as container:
        assert (container.streams.video[0].frames, len(container.streams.audio)) == (9, 1)
    cells = {path: path.stat().st_mtime_ns for path in grid.parent.glob("cells/*.mp4")}
    assert len(cells) == 6
    chosen["LTX2T_CompareCheckpoints"]["sound_cell"] = 1
    (other,) = server.run(twin("09_compare_checkpoints", **chosen))["outputs"]["3"]["images"]
    assert other != shown
    assert {path: path.stat().st_mtime_ns for path in grid.parent.glob("cells/*.mp4")} == cells


def test_the_lists_of_a_pick_run_what_follows_once_for_each(server):
    graph = {
        "1": {
            "class_type": "LTX2T_PickCheckpoints",
            "inputs": {"run_name": "fox", "pick": "by step", "pick.steps": "10, 30"},
        },
        "2": {
            "class_type": "LTX2T_ResizeLoRA",
            "inputs": {"lora": ["1", 1], "rank": 1, "max_error": 0.0, "lora_path": "", "save_name": ""},
        },
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["1", 2]}},
    }
    entry = server.run(graph)
    assert entry["outputs"]["3"]["text"] == ["fox step 10", "fox step 30"]
    made = list((server.base / "output/ltx2_runs/resized").glob("*.safetensors"))
    assert len(made) == 2
    assert {metadata(path)["resized_from"] for path in made} == {f"fox_0000{step}.safetensors" for step in (10, 30)}


def test_the_tools_work_one_behind_the_other(server):
    server.run(twin("10_lora_tools", LTX2T_ResizeLoRA={"rank": 3}))
    made = server.base / "models/loras/fox and style.safetensors"
    assert metadata(made)["rank"] == "3"
    (other,) = (server.base / "output/ltx2_runs/converted").glob("*_diffusers_*.safetensors")
    assert other.stat().st_size > 1000
