"""IC-LoRA, voice reference and sound for a silent film in a real ComfyUI: their API twins, on a tiny base."""

from __future__ import annotations

import copy
import json
import shutil

import media
import pytest

pytest.importorskip("aiohttp", reason="aiohttp comes with ComfyUI")
from comfy_server import ROOT, ComfyServer, error_of, executed_nodes, why_not
from safetensors import safe_open

pytestmark = [pytest.mark.comfy, pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]

SMALL = {
    "LTX2T_LoadBaseModel": {
        "checkpoint": "tiny.safetensors",
        "text_encoder": "gemma.safetensors",
        "precision": "fp32",
    },
    "LTX2T_LoadTrainingClips": {"folder": "after"},
    "LTX2T_LoadTrainingPairs": {"folder": "after", "reference_folder": "before"},
    "LTX2T_PrepareDataset": {"width": 64, "height": 64, "frames": 9, "frame_extraction": "head"},
    "LTX2T_TrainLoRA": {
        "steps": 3,
        "rank": 2,
        "sample_every": 3,
        "sample_prompts": "a square --w 64 --h 64 --f 9 --s 2",
    },
    "LTX2T_SampleLoRA": {"width": 64, "height": 64, "frames": 9, "steps": 2},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny):
    base = tmp_path_factory.mktemp("comfyui")
    for source, place in (
        (tiny.checkpoint, "models/checkpoints/tiny.safetensors"),
        (tiny.text_encoder, "models/text_encoders/gemma.safetensors"),
    ):
        (base / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, base / place)
    for name, way in (("a", 1), ("b", -1)):
        frames = media.moving_square(30, 64, 64)[::way]
        media.write_video(base / f"input/after/{name}.mp4", frames, sound=media.tone(1.2))
        (base / f"input/after/{name}.txt").write_text("a square moves")
        media.write_video(base / f"input/before/{name}.mp4", frames[:, :, ::-1])
        media.write_sound(base / f"input/voices/{name}.wav", media.tone(0.8, 300.0))
    with ComfyServer(base) as running:
        yield running


def twin(name, run_name, **more):
    """A twin with small numbers; `NodeId={...}` changes more."""
    graph = copy.deepcopy(json.loads((ROOT / "example_workflows/api" / f"{name}.json").read_text(encoding="utf-8")))
    for node in graph.values():
        kind = node["class_type"]
        node["inputs"] |= SMALL.get(kind, {}) | more.get(kind, {})
        if kind == "LTX2T_TrainLoRA":
            node["inputs"]["run_name"] = run_name
    return graph


def rows_of(server, run_name):
    """The rows of the steps; that of step 0 says how much the references matter before the first one."""
    text = (server.base / f"output/ltx2_runs/{run_name}/metrics.jsonl").read_text()
    rows = [json.loads(row) for row in text.splitlines()]
    return [row for row in rows if row["step"] > 0]


def branches_of(server, run_name):
    """The first words of the layers that the LoRA has."""
    with safe_open(server.base / f"models/loras/{run_name}/{run_name}.safetensors", "pt") as file:
        return {name.split(".")[3] for name in file.keys()}


def test_an_ic_lora_trains_on_pairs_and_draws(server):
    graph = twin("06_ic_lora", "pairs")
    entry = server.run(graph)
    assert [row["step"] for row in rows_of(server, "pairs")] == [1, 2, 3]
    assert {"attn1", "attn2", "ff"} <= branches_of(server, "pairs"), "the layers of a run with a reference"
    run = (server.base / "output/ltx2_runs/pairs/run.toml").read_text()
    assert 'type = "reference"' in run
    assert 'type = "first_frame"' in run
    assert executed_nodes(server.run(graph)) == set(), "a second press has nothing to do"
    recipe = next(key for key, node in graph.items() if node["class_type"] == "LTX2T_ConditionsRecipe")
    del graph[recipe]
    train = next(node for node in graph.values() if node["class_type"] == "LTX2T_TrainLoRA")
    del train["inputs"]["conditions"]
    train["inputs"]["run_name"] = "unused"
    said = error_of(server.history(server.queue(graph)))
    assert "connect Video Conditions, set to reference, to `conditions` of Train LoRA" in said
    assert entry["status"]["status_str"] == "success"


def test_a_voice_reference_trains_and_is_heard(server):
    voices = {"LTX2T_LoadTrainingPairs": {"folder": "after", "reference_folder": "voices"}}
    graph = twin("07_voice_reference", "voices", **voices)
    entry = server.run(graph)
    assert len(rows_of(server, "voices")) == 3
    assert {"audio_attn1", "audio_to_video_attn", "video_to_audio_attn"} <= branches_of(server, "voices")
    assert "attn1" not in branches_of(server, "voices")
    (played,) = [out["audio"] for key, out in entry["outputs"].items() if graph[key]["class_type"] == "PreviewAudio"]
    assert played


def test_sound_for_a_silent_film_is_learned_alone(server):
    server.run(twin("08_sound_for_silent_film", "foley"))
    rows = rows_of(server, "foley")
    assert all(row["loss_video"] is None and row["loss_audio"] is not None for row in rows)
    assert {"audio_attn1", "video_to_audio_attn"} <= branches_of(server, "foley")
    assert not {"attn1", "attn2", "ff"} & branches_of(server, "foley")


def test_a_number_that_is_missing_is_refused_when_the_prompt_is_sent(server):
    graph = twin("06_ic_lora", "refused")
    recipe = next(node for node in graph.values() if node["class_type"] == "LTX2T_ConditionsRecipe")
    del recipe["inputs"]["recipe.reference_probability"]
    answer = server.post("/prompt", {"prompt": graph})
    assert answer["status"] == 400
    assert "reference_probability" in json.dumps(answer["node_errors"])
