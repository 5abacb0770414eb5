"""The workflows that make datasets in a real ComfyUI: their API twins, what is shown of long work, and its end by X."""

from __future__ import annotations

import asyncio
import copy
import json
import shutil

import media
import pytest
import tiny_listeners

pytest.importorskip("aiohttp", reason="aiohttp comes with ComfyUI")
import aiohttp
from comfy_server import ROOT, ComfyServer, error_of, messages_of, why_not

pytestmark = [pytest.mark.comfy, pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]

NO_FOLDER = "(folder from the path below)"
SIZE = {"width": 64, "height": 64}
# what a person chooses, and sizes for tiny models
CHOSEN = {
    "04_make_a_dataset": {
        "LTX2T_CutLongVideos": {"folder": "films"},
        "LTX2T_CaptionClips": {"model": "LLM/eye", "whisper": "LLM/ear"},
        "LTX2T_CheckDataset": SIZE,
        "LTX2T_PreviewItem": SIZE,
    },
    "05_dataset_from_lists": {
        "LoadImageTextDataSetFromFolder": {"folder": "pictures"},
        "LTX2T_LoadTrainingClips": {"folder": "clips"},
        "LTX2T_LoadBaseModel": {"checkpoint": "tiny.safetensors", "text_encoder": "gemma.safetensors"}
        | {"precision": "fp32"},
        "LTX2T_CheckDataset": SIZE,
        "LTX2T_PrepareDataset": SIZE,
        "LTX2T_PreviewItem": SIZE,
        "LTX2T_TrainLoRA": {"run_name": "mixed", "steps": 2, "rank": 2, "sample_every": 0},
    },
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
    tiny_listeners.make_describer(base / "models/LLM/eye")
    tiny_listeners.make_whisper(base / "models/LLM/ear")
    films = base / "input/films"
    media.write_video(films / "film.mp4", media.moving_square(225, 96, 64), sound=media.tone(9.0))
    media.write_video(films / "second film.mp4", media.moving_square(120, 96, 64)[::-1])
    for number in range(3):
        media.write_image(base / f"input/pictures/p{number}.png", 96, 64, f"a picture, number {number}")
    media.write_captioned(base / "input/clips/a.mp4", media.moving_square(60, 96, 64), "a square crosses")
    media.write_video(base / "input/long/long.mp4", media.moving_square(900, 96, 64))
    for number in range(24):
        media.write_video(base / f"input/many/clip{number:02d}.mp4", media.moving_square(10, 64, 64 + 2 * number))
    with ComfyServer(base) as running:
        yield running


def twin(name, **more):
    graph = copy.deepcopy(json.loads((ROOT / "example_workflows/api" / f"{name}.json").read_text(encoding="utf-8")))
    for node in graph.values():
        node["inputs"] |= CHOSEN[name].get(node["class_type"], {}) | more.get(node["class_type"], {})
    return graph


def of_kind(graph, entry, kind):
    """What the node of a kind left on the page."""
    return entry["outputs"][next(number for number, node in graph.items() if node["class_type"] == kind)]


def files(server, pattern):
    return sorted((server.base / "output/ltx2_runs").glob(pattern))


def test_films_become_a_dataset_that_is_checked_and_shown(server):
    graph = twin("04_make_a_dataset")
    entry = server.run(graph)
    clips = files(server, "clips/films-*/*.mp4")
    assert [clip.name for clip in clips] == ["film_0001.mp4", "film_0002.mp4", "second film_0001.mp4"]
    assert all(clip.with_suffix(".txt").read_text().strip() for clip in clips)
    report = of_kind(graph, entry, "LTX2T_CheckDataset")["text"][0]
    assert ": 3 files" in report
    assert "0 red" in report, "the pieces are as long as the workflow's frames want them"
    (shown,) = of_kind(graph, entry, "LTX2T_PreviewItem")["images"]
    assert (server.base / "output" / shown["subfolder"] / shown["filename"]).stat().st_size > 500

    written = {path: path.stat().st_mtime_ns for path in files(server, "clips/films-*/*")}
    server.run(graph)
    assert {path: path.stat().st_mtime_ns for path in files(server, "clips/films-*/*")} == written, "all was there"
    clips[0].with_suffix(".txt").write_text("")
    entry = server.run(graph)
    assert "1 red" in of_kind(graph, entry, "LTX2T_CheckDataset")["text"][0], "a caption that was changed is noticed"


def test_without_a_model_the_captions_that_lack_are_named(server):
    graph = twin("04_make_a_dataset", LTX2T_CaptionClips={"model": "(none)", "whisper": "(none)"})
    graph["2"]["inputs"]["name"] = "bare"
    said = error_of(server.history(server.queue(graph)))
    assert said.startswith("3 of 3 files in ")
    assert "no model is chosen" in said
    for clip in files(server, "clips/bare/*.mp4"):
        clip.with_suffix(".txt").write_text(f"by hand: {clip.stem}")
    entry = server.run(graph)
    assert "0 red" in of_kind(graph, entry, "LTX2T_CheckDataset")["text"][0]


def test_pictures_of_another_node_are_mixed_with_clips_and_trained_on(server):
    graph = twin("05_dataset_from_lists")
    entry = server.run(graph)
    written = files(server, "datasets/my_pictures/media/*")
    names = [f"my_pictures_000{n}.{ending}" for n in (1, 2, 3) for ending in ("png", "txt")]
    assert [path.name for path in written] == names
    assert ": 4 files" in of_kind(graph, entry, "LTX2T_CheckDataset")["text"][0]
    (shown,) = of_kind(graph, entry, "LTX2T_PreviewItem")["images"]
    assert shown["filename"].endswith("_decoded.mp4")
    (view,) = of_kind(graph, entry, "LTX2T_TrainLoRA")["ltx2_train"]
    assert (view["state"], view["step"]) == ("finished", 2)


def node(kind, **inputs):
    return {"1": {"class_type": kind, "inputs": inputs}}


CUT = {"folder": "long", "path": "", "cut_at": "seconds", "seconds": 0.4, "min_seconds": 0.2, "max_seconds": 0.0}
CAPTION = {"folder": "many", "path": "", "model": "LLM/eye", "whisper": "(none)", "speaker": "", "prompt": ""}


def stopped(server, graph, pattern, least):
    """The messages of a prompt that is interrupted once `least` files of `pattern` are there."""
    number = server.queue(graph)
    server.wait(lambda: len(list(server.base.glob(pattern))) >= least, 60, f"{least} files")
    server.post("/interrupt", {})
    return messages_of(server.history(number, 30))


def test_a_cut_is_stopped_by_x_and_goes_on(server):
    graph = node("LTX2T_CutLongVideos", **CUT, name="halted")
    place = "output/ltx2_runs/clips/halted/long_*.mp4"
    assert stopped(server, graph, place, 3)[-1] == "execution_interrupted"
    there = {path: path.stat().st_mtime_ns for path in server.base.glob(place)}
    assert 3 <= len(there) < 80
    entry, told = asyncio.run(watched(server, graph))
    assert len(list(server.base.glob(place))) == 90
    assert {path: path.stat().st_mtime_ns for path in there} == there, "what was cut stays as it is"
    assert entry["status"]["status_str"] == "success"
    counts = [state["1"] for state in told if "1" in state]
    assert {count["max"] for count in counts} >= {90.0}
    assert max(count["value"] for count in counts if count["max"] == 90.0) == 90.0


def test_captions_are_stopped_by_x_and_go_on(server):
    graph = node("LTX2T_CaptionClips", **CAPTION, overwrite=False)
    assert stopped(server, graph, "input/many/*.txt", 2)[-1] == "execution_interrupted"
    there = {path: path.stat().st_mtime_ns for path in server.base.glob("input/many/*.txt")}
    assert 2 <= len(there) < 24
    assert all(path.read_text().strip() for path in there)
    server.run(graph)
    assert len(list(server.base.glob("input/many/*.txt"))) == 24
    assert {path: path.stat().st_mtime_ns for path in there} == there


def test_a_model_that_is_not_in_the_list_is_refused_at_once(server):
    for name in ("../../secret", "/etc", "LLM/nowhere"):
        answer = server.post("/prompt", {"prompt": node("LTX2T_CaptionClips", **{**CAPTION, "model": name})})
        assert answer["status"] == 400
    entry = server.history(server.queue(node("LTX2T_CutLongVideos", **{**CUT, "folder": NO_FOLDER}, name="x")))
    assert "No folder is chosen" in error_of(entry)
    climbing = node("LTX2T_CutLongVideos", **{**CUT, "folder": NO_FOLDER, "path": "../models"}, name="x")
    assert "leads out of ComfyUI's input folder" in error_of(server.history(server.queue(climbing)))


async def watched(server, prompt):
    """The history of `prompt`, and every state of progress that the socket told of meanwhile."""
    told = []
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{server.url}/ws?clientId=counts") as socket:
        async with session.post(f"{server.url}/prompt", json={"prompt": prompt, "client_id": "counts"}) as answer:
            number = (await answer.json())["prompt_id"]
        while True:
            message = await socket.receive(timeout=120)
            data = json.loads(message.data) if isinstance(message.data, str) else {"type": ""}
            if data["type"] == "progress_state":
                told.append(data["data"]["nodes"])
            if data["type"] == "executing" and data["data"]["node"] is None:
                return server.history(number), told
