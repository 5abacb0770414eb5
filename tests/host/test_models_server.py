"""LTX-2.5 in its four files and in one, and LTX-Video, by the nodes of a real ComfyUI: caches, training, a sample."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
from comfy_server import ROOT, ComfyServer, why_not

from ltx2_train import inspect_lora
from ltx2_train.weights.tiny import make_tiny

pytestmark = [pytest.mark.comfy, pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]

TWIN = ROOT / "example_workflows" / "api" / "01_first_lora.json"
SIZE = {"width": 64, "height": 64, "frames": 9}
PROMPT = "ohwx --w 64 --h 64 --f 9 --s 1"


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny25, drawn_clip):
    base = tmp_path_factory.mktemp("comfyui")
    video = make_tiny(tmp_path_factory.mktemp("ltxv"), version="ltxv-2b")
    places = {
        "diffusion_models": [tiny25.checkpoint],
        "checkpoints": [tiny25.whole, video.checkpoint],
        "text_encoders": [tiny25.text_encoder, tiny25.gemma_folder, video.gemma_folder],
        "vae": [tiny25.diffusion_vae, tiny25.video_vae, tiny25.audio_vae],
    }
    for folder, files in places.items():
        (base / "models" / folder).mkdir(parents=True)
        for file in files:
            (shutil.copytree if file.is_dir() else shutil.copy2)(file, base / "models" / folder / file.name)
    (base / "input/ball").mkdir(parents=True)
    shutil.copy2(drawn_clip, base / "input/ball/clip.mp4")
    (base / "input/ball/clip.txt").write_text("a red ball bounces")
    with ComfyServer(base) as running:
        running.video = video
        yield running


@pytest.mark.parametrize("form", ["four files", "four files, named", "one file", "LTX-Video"])
def test_a_model_is_cached_for_trained_and_drawn(server, tiny25, form):
    # the folder of T5 rather than its file, with which ComfyUI's tokenizer goes, that is not tiny
    chosen = {
        "four files": (tiny25.checkpoint, tiny25.text_encoder, {}),
        "four files, named": (
            tiny25.checkpoint, tiny25.text_encoder,
            {"video_vae": tiny25.video_vae.name, "audio_vae": tiny25.audio_vae.name},
        ),
        "one file": (tiny25.whole, tiny25.gemma_folder, {}),
        "LTX-Video": (server.video.checkpoint, server.video.gemma_folder, {}),
    }[form]  # fmt: skip
    version, mode = ("ltxv-2b", "video") if form == "LTX-Video" else ("2.5", "av")
    name = form.replace(" ", "_").replace(",", "")
    changes = {
        "LTX2T_LoadBaseModel": {"checkpoint": chosen[0].name, "text_encoder": chosen[1].name, "precision": "fp32",
                                "mode": mode, **chosen[2]},
        "LTX2T_LoadTrainingClips": {"folder": "ball"},
        "LTX2T_PrepareDataset": {**SIZE, "name": name},
        "LTX2T_TrainLoRA": {"run_name": name, "steps": 2, "rank": 2, "sample_every": 2, "sample_prompts": PROMPT},
        "LTX2T_SampleLoRA": {**SIZE, "steps": 1},
    }  # fmt: skip
    graph = copy.deepcopy(json.loads(TWIN.read_text(encoding="utf-8")))
    for node in graph.values():
        node["inputs"] |= changes.get(node["class_type"], {})
    entry = server.run(graph)
    output = server.base / "output"
    (shown,) = [out["images"][0] for out in entry["outputs"].values() if "images" in out]
    assert (output / shown["subfolder"] / shown["filename"]).stat().st_size > 500
    rows = (output / f"ltx2_runs/{name}/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]
    assert inspect_lora(server.base / "models/loras" / name / f"{name}.safetensors").version == version
