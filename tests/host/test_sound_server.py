"""Sound in a real ComfyUI: the API twins of the talking character and of the voice, on a tiny base."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("aiohttp", reason="aiohttp comes with ComfyUI")
from comfy_server import ROOT, ComfyServer, error_of, executed_nodes, why_not
from lora_files import changes, pair, write_lora

from ltx2_train.cli.demo_media import draw_sound
from ltx2_train.media.sound_media import read_sound
from ltx2_train.media.video import probe_media

pytestmark = [pytest.mark.comfy, pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]

SMALL = {
    "LTX2T_LoadBaseModel": {
        "checkpoint": "tiny.safetensors",
        "text_encoder": "gemma.safetensors",
        "precision": "fp32",
    },
    "LTX2T_LoadTrainingClips": {"folder": "ball"},
    "LTX2T_LoadTrainingAudio": {"folder": "voice"},
    "LTX2T_PrepareDataset": {"width": 64, "height": 64, "frames": 9},
    "LTX2T_TrainLoRA": {"steps": 6, "rank": 2, "sample_every": 3, "sample_prompts": "ohwx --w 64 --h 64 --f 9 --s 2"},
    "LTX2T_SampleLoRA": {"width": 64, "height": 64, "frames": 25, "steps": 2},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny, drawn_clip: Path):
    base = tmp_path_factory.mktemp("comfyui")
    for source, place in (
        (tiny.checkpoint, "models/checkpoints/tiny.safetensors"),
        (tiny.text_encoder, "models/text_encoders/gemma.safetensors"),
        (drawn_clip, "input/ball/clip.mp4"),
    ):
        (base / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, base / place)
    (base / "input/ball/clip.txt").write_text("a red ball bounces to a tune")
    for number, seconds in enumerate((1.0, 1.6)):
        path = draw_sound(base / "input/voice" / f"tune{number}.wav", seconds)
        path.with_suffix(".txt").write_text(f"tune number {number}")
    with ComfyServer(base) as running:
        yield running


@pytest.fixture
def prompt():
    """A twin with small numbers; `prompt(name, run_name, NodeId={...})` changes more."""

    def small(name, run_name, **more):
        path = ROOT / "example_workflows" / "api" / f"{name}.json"
        twin = copy.deepcopy(json.loads(path.read_text(encoding="utf-8")))
        for node in twin.values():
            kind = node["class_type"]
            node["inputs"] |= SMALL.get(kind, {}) | more.get(kind, {})
            if kind == "LTX2T_TrainLoRA":
                node["inputs"] |= {"run_name": run_name}
        return twin

    return small


def outputs_of(entry, prompt, kind):
    """What the nodes of a class left on the page."""
    return [entry["outputs"].get(number, {}) for number, node in prompt.items() if node["class_type"] == kind]


def file_of(server, shown):
    return server.base / shown["type"] / shown["subfolder"] / shown["filename"]


def test_the_talking_character_trains_and_is_seen_and_heard(server, prompt):
    graph = prompt("02_talking_character", "talking")
    entry = server.run(graph)
    folder = server.base / "output/ltx2_runs/talking"
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert any(row["loss_video"] is not None and row["loss_audio"] is not None for row in rows), "the clip"
    assert any(row["loss_video"] is None and row["loss_audio"] is not None for row in rows), "the recordings"

    (train,) = outputs_of(entry, graph, "LTX2T_TrainLoRA")
    (view,) = train["ltx2_train"]
    assert view["state"] == "finished"
    assert any(loss is not None for _, loss, _ in view["curve"])
    assert any(loss is not None for _, loss, _ in view["curve_audio"])
    drawn = file_of(server, view["sample"]["file"])
    assert drawn.suffix == ".mp4"
    assert probe_media(drawn).has_audio

    (sample,) = outputs_of(entry, graph, "LTX2T_SampleLoRA")
    video = file_of(server, sample["images"][0])
    assert video.suffix == ".mp4"
    assert probe_media(video).has_audio
    (played,) = outputs_of(entry, graph, "PreviewAudio")
    sound = read_sound(file_of(server, played["audio"][0]))
    assert sound.samples.shape[1] / sound.rate == pytest.approx(1.0, abs=0.1)

    again = server.run(prompt("02_talking_character", "talking"))
    assert executed_nodes(again) == set(), "a second press has nothing to do"


def test_the_voice_trains_without_a_picture_and_is_compared_with_the_base(server, prompt):
    graph = prompt("03_voice", "voice", LTX2T_TrainLoRA={"learning_rate": 0.05})
    entry = server.run(graph)
    folder = server.base / "output/ltx2_runs/voice"
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["loss_video"] is None and row["loss_audio"] is not None for row in rows)
    assert len(rows) == 6

    (train,) = outputs_of(entry, graph, "LTX2T_TrainLoRA")
    (view,) = train["ltx2_train"]
    assert view["curve_audio"] == [], "there is one curve"
    assert view["curve"][-1][1] == pytest.approx(rows[-1]["loss_audio"])
    assert file_of(server, view["sample"]["file"]).suffix == ".wav"

    paths = [file_of(server, out["audio"][0]) for out in outputs_of(entry, graph, "LTX2T_SampleLoRA")]
    trained, base = (read_sound(path) for path in paths)
    assert paths[0] != paths[1]
    assert trained.samples.shape == base.samples.shape
    assert abs(trained.samples - base.samples).max() > 1e-4, "the LoRA changes what is heard"
    for out in outputs_of(entry, graph, "LTX2T_SampleLoRA"):
        assert file_of(server, out["images"][0]).read_bytes()[:4] == b"\x89PNG"
    assert all(out["audio"] for out in outputs_of(entry, graph, "PreviewAudio"))


def test_the_branches_of_a_lora_part_on_the_wire(server, prompt):
    graph = prompt("02_talking_character", "talking")
    train = next(key for key, node in graph.items() if node["class_type"] == "LTX2T_TrainLoRA")
    for number, action in (("90", "keep"), ("91", "drop")):
        choice = {"action": action, "branches": "audio", "lora_path": "", "save_name": f"parts/{action}"}
        graph[number] = {"class_type": "LTX2T_KeepBranch", "inputs": {**choice, "lora": [train, 0]}}
    graph["92"] = {"class_type": "SaveLoRA", "inputs": {"lora": ["90", 0], "prefix": "loras/voice_only"}}
    server.run(graph)
    listed = {name.replace("\\", "/") for name in server.get("/models/loras")}
    assert {"parts/keep.safetensors", "parts/drop.safetensors"} <= listed
    assert list((server.base / "output/loras").glob("voice_only*.safetensors"))


def test_loras_are_merged_and_converted_in_the_server(server):
    folder = server.base / "models/loras"
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(2):
        write_lora(folder / f"part{seed}.safetensors", {"transformer_blocks.0.attn1.to_q": pair(2, seed=seed)})
    recipe = {f"multiplier_{number}": 1.0 for number in range(1, 5)} | {"method": "concat", "save_name": "whole"}
    paths = {"lora_paths": "part0.safetensors\npart1 | 0.5"}
    convert = {"lora": ["1", 0], "lora_path": "", "save_name": "whole in diffusers", "to": "diffusers"}
    server.run(
        {
            "1": {"class_type": "LTX2T_MergeLoRA", "inputs": recipe | paths},
            "2": {"class_type": "LTX2T_ConvertLoRA", "inputs": convert},
            "3": {"class_type": "SaveLoRA", "inputs": {"lora": ["1", 0], "prefix": "loras/merged"}},
        }
    )
    listed = {name.replace("\\", "/") for name in server.get("/models/loras")}
    assert {"whole.safetensors", "whole in diffusers.safetensors"} <= listed
    one, two, whole = (changes(folder / f"{name}.safetensors") for name in ("part0", "part1", "whole in diffusers"))
    for layer, change in whole.items():
        torch.testing.assert_close(change, one[layer] + 0.5 * two[layer])


def test_recordings_on_a_base_for_video_are_refused_in_one_sentence(server, prompt):
    wrong = prompt("03_voice", "wrong", LTX2T_LoadBaseModel={"mode": "video"})
    entry = server.history(server.queue(wrong))
    assert entry["status"]["status_str"] == "error"
    assert "Set `mode` of Load LTX-2 Base Model" in error_of(entry)


def test_a_node_that_wants_sound_where_there_is_none_is_left_out(server, prompt):
    graph = prompt("01_first_lora", "silent", LTX2T_TrainLoRA={"steps": 1, "sample_every": 0})
    draw = next(key for key, node in graph.items() if node["class_type"] == "LTX2T_SampleLoRA")
    graph["90"] = {"class_type": "PreviewAudio", "inputs": {"audio": [draw, 2]}}
    entry = server.run(graph)
    assert "90" not in entry["outputs"]
    assert not list((server.base / "output/ltx2_runs/silent").rglob("*.wav"))
