"""The pack in a real ComfyUI: the API twin of the first workflow, on a tiny base and a drawn clip."""

from __future__ import annotations

import asyncio
import copy
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="aiohttp comes with ComfyUI")
import aiohttp
import media
from comfy_server import ROOT, ComfyServer, error_of, executed_nodes, messages_of, why_not

from ltx2_train.config import load_run

pytestmark = [pytest.mark.comfy, pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]

TWIN = ROOT / "example_workflows" / "api" / "01_first_lora.json"
SMALL = {
    "LTX2T_LoadBaseModel": {
        "checkpoint": "tiny.safetensors",
        "text_encoder": "gemma.safetensors",
        "precision": "fp32",
    },
    "LTX2T_PrepareDataset": {"width": 64, "height": 64, "frames": 9},
    "LTX2T_TrainLoRA": {"steps": 4, "rank": 2, "sample_every": 2, "sample_prompts": "ohwx --w 64 --h 64 --f 9 --s 2"},
    "LTX2T_SampleLoRA": {"width": 64, "height": 64, "frames": 9, "steps": 2},
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
    (base / "input/ball/clip.txt").write_text("a red ball bounces")
    with ComfyServer(base) as running:
        yield running


@pytest.fixture
def prompt(server):
    """The twin with small numbers; `prompt(run_name, NodeId={...})` changes more."""

    def small(run_name, **more):
        twin = copy.deepcopy(json.loads(TWIN.read_text(encoding="utf-8")))
        for node in twin.values():
            kind = node["class_type"]
            node["inputs"] |= SMALL.get(kind, {}) | more.get(kind, {})
            if kind == "LTX2T_LoadTrainingClips":
                node["inputs"] |= {"folder": "ball"}
            if kind == "LTX2T_TrainLoRA":
                node["inputs"] |= {"run_name": run_name}
        return twin

    return small


def test_the_pack_loads_without_a_word_of_complaint(server):
    log = server.log.read_text(errors="replace")
    for sign in ("IMPORT FAILED", "Cannot import", "Error while calling comfy_entrypoint"):
        assert sign not in log
    for node in ("LoadBaseModel", "LoadTrainingClips", "PrepareDataset", "TrainLoRA", "SampleLoRA"):
        assert f"LTX2T_{node}" in server.get(f"/object_info/LTX2T_{node}")


def test_the_twin_trains_and_draws(server, prompt):
    entry = server.run(prompt("first"))
    output = server.base / "output"

    name = "first.safetensors"
    assert any(listed.endswith(name) for listed in server.get("/models/loras")), "the LoRA is not in ComfyUI's list"
    (shown,) = [out["images"][0] for out in entry["outputs"].values() if "images" in out]
    assert (output / shown["subfolder"] / shown["filename"]).stat().st_size > 500
    (view,) = [out["ltx2_train"][0] for out in entry["outputs"].values() if "ltx2_train" in out]
    assert (view["state"], view["step"]) == ("finished", 4)
    rows = (output / "ltx2_runs/first/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4]
    assert len(list((output / "ltx2_runs/first/samples").glob("*.mp4"))) == 3  # before the first step, then two

    again = server.run(prompt("first"))
    assert executed_nodes(again) == set(), "a second press has nothing to do"


def test_a_finished_run_is_extended_by_raising_the_steps(server, prompt):
    server.run(prompt("longer", LTX2T_TrainLoRA={"steps": 2, "sample_every": 0}))
    server.run(prompt("longer", LTX2T_TrainLoRA={"steps": 3, "sample_every": 0}))
    rows = (server.base / "output/ltx2_runs/longer/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3]


def test_what_train_lora_would_refuse_stops_the_prompt_before_anything_is_encoded(server, prompt):
    train = next(key for key, node in prompt("x").items() if node["class_type"] == "LTX2T_TrainLoRA")
    refused = server.post("/prompt", {"prompt": prompt("a/b")})
    (error,) = refused["node_errors"][train]["errors"]
    assert "run_name" in error["details"]

    server.run(prompt("longer", LTX2T_TrainLoRA={"steps": 2, "sample_every": 0}))
    wide = {"width": 96}  # which would have to be encoded
    other = prompt("longer", LTX2T_TrainLoRA={"rank": 4, "sample_every": 0}, LTX2T_PrepareDataset=wide)
    entry = server.history(server.queue(other))
    assert error_of(entry).startswith("Train LoRA: The run folder ")
    assert "  rank: was 2, now 4\n" in error_of(entry)
    assert "if_exists" in error_of(entry)
    assert not list((server.base / "output").rglob("*_0096x0064_*"))


def test_a_cache_with_a_changed_byte_is_made_anew_once_training_has_met_it(server, prompt):
    server.run(prompt("whole", LTX2T_TrainLoRA={"steps": 1, "sample_every": 0}))
    spoilt = next(path for path in server.base.rglob("*_ltx2.safetensors") if "prompts" not in path.parts)
    data = bytearray(spoilt.read_bytes())
    data[-9] ^= 64
    spoilt.write_bytes(data)
    again = prompt("spoilt", LTX2T_TrainLoRA={"steps": 2, "sample_every": 0})
    entry = server.history(server.queue(again))
    if entry["status"]["status_str"] == "error":
        assert "Prepare Dataset" in error_of(entry)
        server.run(again)


def test_an_interrupt_saves_and_the_next_press_goes_on(server, prompt):
    long = prompt("stopped", LTX2T_TrainLoRA={"steps": 2000, "sample_every": 0})
    metrics = server.base / "output/ltx2_runs/stopped/metrics.jsonl"
    number = server.queue(long)
    server.wait(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, 120, "three steps")
    live = next(view for view in server.get("/ltx2_train/live").values() if view["title"] == "stopped")
    assert (live["state"], live["stage"], live["total"]) == ("running", "train", 2000)
    again = server.queue(long)  # pressed twice
    server.post("/interrupt", {})
    for press in (number, again):  # who waits for either is told
        assert messages_of(server.history(press))[-1] == "execution_interrupted"
    queue = server.get("/queue")
    assert not queue["queue_running"] + queue["queue_pending"], "one X ends both"

    manifest = json.loads((metrics.parent / "manifest.json").read_text())
    saved = manifest["step"]
    assert manifest["status"] == "stopped"
    assert saved >= 3
    assert list((metrics.parent / "states").iterdir())

    server.run(prompt("stopped", LTX2T_TrainLoRA={"steps": saved + 2, "sample_every": 0}))
    steps = [json.loads(row)["step"] for row in metrics.read_text().splitlines()]
    assert steps == list(range(1, saved + 3)), "no step is repeated, none is left out"


def test_each_choice_of_options_is_validated_and_trained_with(server, prompt):
    media.write_captioned(server.base / "input/held_out/a.mp4", media.moving_square(30, 64, 64), "a square")
    numbers = {"betas": "0.9, 0.99", "eps": 1e-8, "weight_decay": 0.02}
    blocks = {"crepa_mode": "backbone", "crepa_student_block": 0, "crepa_teacher_block": 3}
    options = {
        "20": (
            "Optimizer",
            "optimizer",
            "prodigy",
            numbers,
            {"args": "d_coef = 0.5", "ema_decay": 0.5, "ema_sample": False},
        ),
        "21": ("Regularizers", "regularizer", "crepa", {"crepa_weight": 0.3, **blocks}, {}),
        "22": ("Regularizers", "regularizer", "tread", {"tread_weight": 1.0, "tread_routes": "1:-2:0.5"}, {}),
        "23": ("Validation", "when", "every n steps", {"every": 2}, {"at_start": True, "levels": 2, "clips": 0}),
    }
    train = {"steps": 4, "learning_rate": 1.0, "sample_every": 0, "options": ["23", 0]}
    whole = prompt("chosen", LTX2T_TrainLoRA=train, LTX2T_PrepareDataset={"validation": ["30", 0]})
    loader = next(node for node in whole.values() if node["class_type"] == "LTX2T_LoadTrainingClips")
    whole["30"] = copy.deepcopy(loader)
    whole["30"]["inputs"] |= {"folder": "held_out", "trigger_word": ""}
    behind = None
    for key, (name, widget, choice, chosen, rest) in options.items():
        inputs = {widget: choice, **{f"{widget}.{number}": value for number, value in chosen.items()}, **rest}
        whole[key] = {
            "class_type": f"LTX2T_{name}Options",
            "inputs": inputs | ({"options": [behind, 0]} if behind else {}),
        }
        behind = key

    other = copy.deepcopy(whole)
    del other["21"]["inputs"]["regularizer.crepa_weight"]
    refused = server.post("/prompt", {"prompt": other})["node_errors"]
    assert [error["details"] for error in refused["21"]["errors"]] == ["crepa_weight"]
    other = copy.deepcopy(whole)
    del other["20"]["inputs"]["optimizer"]  # which ComfyUI does not ask for
    assert "optimizer: None is none of auto, adamw" in error_of(server.history(server.queue(other)))
    other = copy.deepcopy(whole)
    next(node for node in other.values() if node["class_type"] == "LTX2T_TrainLoRA")["inputs"]["optimizer"] = "muon"
    twice = error_of(server.history(server.queue(other)))
    assert twice.startswith(
        "Train LoRA: optimizer is set twice: to muon in Train LoRA, and to prodigy by Optimizer Options."
    )
    assert not (server.base / "output/ltx2_runs/chosen").exists(), "before anything is encoded"

    server.run(whole)
    folder = server.base / "output/ltx2_runs/chosen"
    run = load_run(folder / "run.toml")
    assert (run.optimizer.name, run.optimizer.betas, run.optimizer.weight_decay) == ("prodigy", (0.9, 0.99), 0.02)
    assert (run.optimizer.args, run.ema.decay) == ({"d_coef": 0.5}, 0.5)
    assert (run.regularizers.wanted, run.regularizers.crepa.teacher_block) == (["crepa", "tread"], 3)
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "val_loss" in row] == [0, 2, 4]
    assert all(row["loss_crepa"] is not None for row in rows if row["step"])
    assert json.loads((folder / "manifest.json").read_text())["status"] == "finished"
    assert list((folder / "lora").glob("*_ema_*")), "the running mean"


def test_the_lora_goes_on_into_comfyui_s_own_nodes(server, prompt):
    graph = prompt("onward", LTX2T_TrainLoRA={"steps": 1, "sample_every": 0})
    train = next(key for key, node in graph.items() if node["class_type"] == "LTX2T_TrainLoRA")
    draw = next(key for key, node in graph.items() if node["class_type"] == "LTX2T_SampleLoRA")
    graph["90"] = {"class_type": "SaveLoRA", "inputs": {"lora": [train, 0], "prefix": "loras/onward"}}
    graph["91"] = {
        "class_type": "SaveVideo",
        "inputs": {"video": [draw, 0], "filename_prefix": "drawn", "format": "auto", "codec": "auto"},
    }
    server.run(graph)
    assert list((server.base / "output/loras").glob("onward*.safetensors"))
    assert list((server.base / "output").glob("drawn*.mp4"))


def test_a_folder_made_after_the_start_is_listed(server):
    (server.base / "input/late/deep").mkdir(parents=True)
    folders = server.get("/object_info/LTX2T_LoadTrainingClips")["LTX2T_LoadTrainingClips"]["input"]["required"][
        "folder"
    ]
    assert {"ball", "late", "late/deep"} <= set(folders[1]["options"])


def test_a_client_without_our_page_gets_pictures_and_text(server, prompt):
    frames = asyncio.run(watch(server, prompt("watched", LTX2T_TrainLoRA={"steps": 3, "sample_every": 3})))
    kinds = {int.from_bytes(frame[:4], "big") for frame in frames if isinstance(frame, bytes)}
    assert {3, 4} <= kinds, "text and preview with metadata"
    texts = [frame[4:].decode(errors="replace") for frame in frames if isinstance(frame, bytes) and frame[3] == 3]
    assert any("loss" in text and "s/step" in text for text in texts)
    picture = next(frame for frame in frames if isinstance(frame, bytes) and frame[3] == 4)
    about = int.from_bytes(picture[4:8], "big")
    assert picture[8 + about :][:2] == b"\xff\xd8", "a JPEG"
    told = [json.loads(frame, parse_constant=pytest.fail) for frame in frames if isinstance(frame, str)]
    steps = [message["data"] for message in told if message["type"] == "ltx2_train.step"]
    assert steps[-1]["state"] == "finished"


async def watch(server, prompt):
    """Everything the socket says while `prompt` runs."""
    frames = []
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{server.url}/ws?clientId=watcher") as socket:
        await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        async with session.post(f"{server.url}/prompt", json={"prompt": prompt, "client_id": "watcher"}) as answer:
            assert answer.status == 200, await answer.text()
        while True:
            message = await socket.receive(timeout=120)
            frames.append(message.data)
            if isinstance(message.data, str):
                told = json.loads(message.data)
                if told["type"] == "executing" and told["data"]["node"] is None:
                    return frames


def test_a_mistake_is_told_in_one_plain_sentence(server, prompt):
    wrong = prompt("wrong", LTX2T_LoadTrainingClips={"path": str(server.base / "nowhere")})
    entry = server.history(server.queue(wrong))
    assert entry["status"]["status_str"] == "error"
    assert error_of(entry).startswith("The folder ")
    assert "does not exist" in error_of(entry)


def test_what_no_node_knows_is_refused_by_name_before_anything_is_encoded(server, prompt):
    wrong = prompt("misspelt", LTX2T_TrainLoRA={"sample_prompt": "a fox", "options": ["20", 0]})
    wrong["20"] = {
        "class_type": "LTX2T_OptimizerOptions",
        "inputs": {"optimizer": "adafactor", "optimizer.weight_decay": 0.1, "optimizer.betas": "0.5, 0.9"}
        | {"args": "", "ema_decay": 0, "ema_sample": False},
    }
    told = error_of(server.history(server.queue(wrong)))
    assert "it has no input sample_prompt. Did you mean sample_prompts?" in told
    assert "Optimizer Options (node 20): optimizer.betas goes with optimizer = " in told
    assert not (server.base / "output/ltx2_runs/misspelt").exists()
    null = prompt("null", LTX2T_LoadTrainingClips={"trigger_word": None}, LTX2T_TrainLoRA={"steps": 2.7})
    told = error_of(server.history(server.queue(null)))
    assert "trigger_word is null. Leave it out" in told
    assert "steps is 2.7. Expected a whole number" in told
    notes = {"speak_and_recognation": {"__value__": [False, True]}}  # another pack's, in the nodes of all
    server.run(prompt("noted", LTX2T_TrainLoRA={"steps": 1, "sample_every": 0, **notes}))
