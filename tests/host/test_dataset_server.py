"""Check Dataset, Dataset from Lists and Combine Datasets in a real ComfyUI, fed by its own nodes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="aiohttp comes with ComfyUI")
from comfy_server import ComfyServer, error_of, executed_nodes, why_not

from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.media.sound_media import read_sound
from ltx2_train.media.video import probe_media

pytestmark = [pytest.mark.comfy, pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]

SIZE = {"width": 64, "height": 64, "frames": 9, "frame_extraction": "head", "buckets": False}
BASE = {"checkpoint": "tiny.safetensors", "text_encoder": "gemma.safetensors", "precision": "fp32", "mode": "av"}
LOAD = {"folder": "ball", "path": "", "trigger_word": "ohwx", "fps": 25.0}


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny, drawn_clip: Path):
    base = tmp_path_factory.mktemp("comfyui")
    for source, place in (
        (tiny.checkpoint, "models/checkpoints/tiny.safetensors"),
        (tiny.text_encoder, "models/text_encoders/gemma.safetensors"),
        (drawn_clip, "input/ball/clip.mp4"),
        (drawn_clip, "input/mute/mute.mp4"),
        (drawn_clip, "input/loose.mp4"),
    ):
        (base / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, base / place)
    (base / "input/ball/clip.txt").write_text("a red ball bounces")
    with ComfyServer(base) as running:
        yield running


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def check_graph(folder, **more):
    return {
        "1": node("LTX2T_LoadTrainingClips", **{**LOAD, "folder": folder}),
        "2": node("LTX2T_CheckDataset", dataset=["1", 0], **{"goal": "motion", "stop_on_red": False, **SIZE, **more}),
    }


def test_a_check_is_seen_on_the_page_and_runs_again_after_a_change(server):
    entry = server.run(check_graph("ball"))
    shown = entry["outputs"]["2"]
    assert shown["text"][0].startswith("AMBER: 1 files")
    assert "a motion needs 20" in shown["text"][0]
    (picture,) = shown["images"]
    assert (server.base / "output" / picture["subfolder"] / picture["filename"]).read_bytes()[:4] == b"\x89PNG"
    assert executed_nodes(server.run(check_graph("ball"))) == set()
    (server.base / "input/ball/second.mp4").write_bytes(b"not a video")
    assert server.run(check_graph("ball"))["outputs"]["2"]["text"][0].startswith("RED: 2 files")
    (server.base / "input/ball/second.mp4").unlink()


def test_red_stops_a_graph_that_asks_for_it(server):
    entry = server.history(server.queue(check_graph("mute", stop_on_red=True)))
    assert entry["status"]["status_str"] == "error"
    assert "mute.mp4: " in error_of(entry)
    assert "switch stop_on_red off" in error_of(entry)


def lists_graph(name, video=()):
    return {
        "1": node("LoadVideo", file="loose.mp4"),
        "2": node("GetVideoComponents", video=["1", 0]),
        "3": node("EmptyImage", width=64, height=64, batch_size=2, color=0x3366CC),
        "4": node("CreateVideo", images=["2", 0], audio=["2", 1], fps=25.0),
        "5": node(
            "LTX2T_DatasetFromLists",
            images=["3", 0],
            videos=[*(video or ["4", 0])],
            audios=["2", 1],
            captions="blue\nmore blue\na ball\na tune",
            name=name,
            batches="pictures",
            trigger_word="ohwx",
            fps=25.0,
        ),
        "6": node("LTX2T_LoadTrainingClips", **LOAD),
        "7": node(
            "LTX2T_CombineDatasets",
            dataset_1=["5", 0],
            dataset_2=["6", 0],
            share_1=1,
            share_2=3,
            share_3=1,
            share_4=1,
        ),
        "8": node("LTX2T_LoadBaseModel", **BASE),
        "9": node("LTX2T_PrepareDataset", model=["8", 0], dataset=["7", 0], **SIZE),
        "10": node("PreviewAny", source=["9", 1]),
    }


def test_what_other_nodes_made_is_combined_with_a_folder_and_prepared(server):
    entry = server.run(lists_graph("wired"))
    datasets = server.base / "output/ltx2_runs/datasets"
    media = datasets / "wired/media"
    names = ["wired_0001.png", "wired_0002.png", "wired_0003.mp4", "wired_0004.wav"]
    assert sorted(path.name for path in media.iterdir() if path.suffix != ".txt") == names
    assert (media / "wired_0003.txt").read_text() == "a ball"
    info = probe_media(media / names[2])
    assert (info.frames, info.has_audio) == (40, True)
    assert abs(read_sound(media / names[3]).samples).max() > 0.01
    (file,) = datasets.glob("wired*/dataset-*.toml")
    config = DatasetConfig.read(file)
    assert [(part.kind, part.num_repeats) for part in config.datasets] == [
        ("image", 1),
        ("video", 1),
        ("audio", 1),
        ("video", 3),
    ]
    assert all(list(part.caches.glob("*.safetensors")) for part in config.datasets)
    assert "made" in entry["outputs"]["10"]["text"][0]
    assert executed_nodes(server.run(lists_graph("wired"))) == set()


def test_a_video_of_a_file_is_written_as_it_is(server):
    graph = lists_graph("file", video=["1", 0])
    server.run(graph)
    info = probe_media(server.base / "output/ltx2_runs/datasets/file/media/file_0003.mp4")
    assert (info.frames, info.has_audio) == (40, True)


def test_a_name_that_climbs_out_is_refused(server):
    entry = server.history(server.queue(lists_graph("../../climbed")))
    assert "cannot be a folder's name" in error_of(entry)
    assert not list(server.base.rglob("climbed*"))


def cut_graph(name, **more):
    cut = {"folder": "ball", "path": "", "cut_at": "seconds", "seconds": 0.5, "min_seconds": 0.2, "max_seconds": 0.0}
    return {"1": node("LTX2T_CutLongVideos", **{**cut, "name": name, **more})}


def test_a_film_is_cut_and_a_sample_of_it_is_shown(server):
    pieces = server.base / "output/ltx2_runs/clips/halves"
    server.run(cut_graph("halves"))
    assert sorted(path.name for path in pieces.glob("clip_*.mp4")) == [f"clip_000{n}.mp4" for n in (1, 2, 3)]
    for path in pieces.glob("clip_*.mp4"):
        path.with_suffix(".txt").write_text(f"a red ball, part {path.stem[-1]}")
    graph = {
        **cut_graph("halves"),
        "2": node("LTX2T_LoadTrainingClips", **{**LOAD, "folder": "(folder from the path below)", "path": ["1", 0]}),
        "3": node("LTX2T_PreviewItem", dataset=["2", 0], item="clip_0002", decode=False, **SIZE),
        "4": node("PreviewAny", source=["3", 2]),
    }
    entry = server.run(graph)
    (shown,) = entry["outputs"]["3"]["images"]
    info = probe_media(server.base / "output" / shown["subfolder"] / shown["filename"])
    assert (info.frames, info.width, info.has_audio) == (9, 64, True)
    assert entry["outputs"]["4"]["text"] == ["ohwx, a red ball, part 2"]


def test_a_folder_of_pieces_cannot_climb_out(server):
    entry = server.history(server.queue(cut_graph("../../climbed")))
    assert "leads out" in error_of(entry)
    refused = server.post("/prompt", {"prompt": cut_graph("x", folder="../x")})
    assert refused["status"] == 400
    assert not list(server.base.rglob("climbed*"))
