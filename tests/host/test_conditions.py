"""Conditions on the pretended ComfyUI: what the nodes come to, pairs of every kind, and what is refused before work."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import fake_comfy
import media
import pytest
import torch

from ltx2_train.config.recipes import RECIPES
from ltx2_train.dataset.dataset_file import DatasetConfig

SIZE = {"width": 64, "height": 64, "frames": 17, "frame_extraction": "head", "buckets": False}
TRAIN = {
    "run_name": "given",
    "steps": 2,
    "rank": 2,
    "learning_rate": 1e-3,
    "train_seed": 7,
    "sample_every": 0,
    "sample_prompts": "",
}


def choice(widget, name, **numbers):
    return {widget: name, **numbers}


FIRST = choice("condition", "first_frame", probability=0.2)
REFERENCE = choice("condition", "reference", probability=1.0)


@pytest.fixture
def graph(nodes, comfy, tiny):
    """Runs single nodes with the widgets that matter."""

    class Graph:
        def video(self, chosen, before=None):
            return nodes.VideoConditions.execute(condition=chosen, conditions=before).args[0]

        def audio(self, chosen, before=None):
            return nodes.AudioConditions.execute(condition=chosen, conditions=before).args[0]

        def recipe(self, name, **numbers):
            return nodes.ConditionsRecipe.execute(recipe=choice("recipe", name, **numbers)).args[0]

        def pairs(self, **more):
            given = {"folder": "after", "path": "", "reference_folder": "before", "reference_path": ""}
            given |= {"trigger_word": "", "fps": 25.0, "reference_frames": 1, "reference_downscale": 1, **more}
            return nodes.LoadTrainingPairs.execute(**given).args

        def more(self, pairs, folder, frames=1):
            given = {"reference_folder": folder, "reference_path": "", "reference_frames": frames}
            return nodes.AddReference.execute(pairs=pairs, **given).args

        def clips(self):
            given = {"folder": "after", "path": "", "trigger_word": "", "fps": 25.0}
            return nodes.LoadTrainingClips.execute(**given).args[0]

        def prepared(self, dataset, mode="video"):
            for kind, file in (("checkpoints", tiny.checkpoint), ("text_encoders", tiny.text_encoder)):
                target = comfy.folder("models", kind) / "tiny.safetensors"
                if not target.exists():
                    shutil.copy2(file, target)
            files = {"checkpoint": "tiny.safetensors", "text_encoder": "tiny.safetensors", "precision": "fp32"}
            model = nodes.LoadBaseModel.execute(**files, device="cpu", mode=mode).args[0]
            return nodes.PrepareDataset.execute(model=model, dataset=dataset, **SIZE).args[0]

        def trained(self, prepared, conditions=None, **more):
            return nodes.TrainLoRA.execute(prepared=prepared, conditions=conditions, **{**TRAIN, **more}).args[1]

    with torch.inference_mode():  # as in ComfyUI
        yield Graph()


@pytest.fixture
def pair(comfy):
    """A clip with sound and a reference picture of its name."""
    after, before = comfy.folder("input", "after"), comfy.folder("input", "before")
    media.write_video(after / "a.mp4", media.moving_square(30, 64, 64), sound=media.tone(1.2))
    (after / "a.txt").write_text("a square moves")
    media.write_image(before / "a.png", 64, 64, None)
    return after, before


# ------------------------------------------------------------------------------------------------- the three nodes


def test_each_node_adds_its_condition_to_those_before(graph, comfy):
    made = graph.audio(choice("condition", "whole"), graph.video(FIRST, graph.video(REFERENCE)))
    assert made.tables == {
        "video": {
            "conditions": [
                {"type": "reference", "probability": 1.0},
                {"type": "first_frame", "probability": 0.2},
            ]
        },
        "audio": {"generated": False},
    }
    assert repr(made) == "<video: reference, first_frame (20%) | audio: whole>"
    assert comfy.texts[-1][1] == "video: reference, first_frame (20%) | audio: whole"


def test_every_number_of_a_condition_has_a_widget(nodes, graph):
    for node, options in ((nodes.VideoConditions, 7), (nodes.AudioConditions, 5)):
        shown = node.define_schema().inputs[0].options["options"]
        assert len(shown) == options
        for one in shown:
            kind = nodes.conditions._KINDS[node.TITLE.split()[0].lower()].get(one.key)
            ids = {widget.id for widget in one.inputs}
            wanted = set() if kind is None else set(kind.model_fields) - nodes.conditions._SAID_ELSEWHERE
            assert ids == (wanted - {"spatial_region"} | ({"top", "left", "bottom", "right"} & ids))
            assert len(ids) <= 8
            chosen = {"condition": one.key, **{widget.id: widget.default for widget in one.inputs}}
            node.execute(condition=chosen)  # what stands there at first is a condition


@pytest.mark.parametrize(
    ("chosen", "table"),
    [
        (choice("condition", "prefix", probability=1.0, temporal_boundary="3", seconds=""), {"temporal_boundary": [3]}),
        (choice("condition", "suffix", probability=1.0, temporal_boundary="", seconds="0.5, 1"), {"seconds": [0.5, 1]}),
        (
            choice("condition", "spatial_crop", probability=1.0, top=0, left=32, bottom=64, right=96),
            {"spatial_region": [0, 32, 64, 96]},
        ),
    ],
)
def test_numbers_go_where_the_setting_wants_them(nodes, graph, chosen, table):
    given = graph.video(chosen).tables
    assert given["video"]["conditions"] == [{"type": chosen["condition"], "probability": 1.0, **table}]
    (one,) = nodes.train.core.make_run(given).video.conditions
    assert one.type == chosen["condition"]


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (
            choice("condition", "prefix", probability=1.0, temporal_boundary="3", seconds="1"),
            "either temporal_boundary",
        ),
        (choice("condition", "prefix", probability=1.0, temporal_boundary="4, 2", seconds=""), "ascending order"),
        (choice("condition", "first_frame", probability=1.5), r"probability: must be at most 1 \(given: 1.5\)"),
        (choice("condition", "spatial_crop", probability=1.0, top=64, left=0, bottom=0, right=64), "top < bottom"),
        (choice("condition", "mask"), "mask needs probability"),
        (choice("condition", "sideways"), "'sideways' is none of first_frame, prefix"),
        (None, "None is none of first_frame"),
    ],
)
def test_a_condition_that_cannot_be_is_refused_where_it_is_chosen(graph, chosen, said):
    with pytest.raises(RuntimeError, match=said):
        graph.video(chosen)


@pytest.mark.parametrize("name", RECIPES)
def test_the_numbers_of_a_recipe_are_shown_and_are_those_that_are_used(nodes, name):
    (shown,) = [one for one in nodes.ConditionsRecipe.define_schema().inputs[0].options["options"] if one.key == name]
    numbers = {widget.id: widget.default for widget in shown.inputs}
    made = nodes.ConditionsRecipe.execute(recipe={"recipe": name, **numbers}).args[0]
    core = nodes.train.core
    assert core.make_run(made.tables).video == core.make_run(RECIPES[name].streams()).video
    assert core.make_run(made.tables).audio == core.make_run(RECIPES[name].streams()).audio
    for widget in shown.inputs:
        if widget.id.endswith("probability"):
            (one,) = nodes.ConditionsRecipe.execute(recipe={"recipe": name, **numbers, widget.id: 0.125}).args
            chances = [c["probability"] for stream in one.tables.values() for c in stream.get("conditions", ())]
            assert 0.125 in chances


# ------------------------------------------------------------------------------------------------------- the pairs


def test_a_reference_may_be_a_sound_or_both(graph, comfy, pair):
    _, before = pair
    media.write_sound(before / "a.wav", media.tone(0.5, 300.0))
    (entry,) = graph.pairs()[0].entries
    assert (entry["reference_directory"], entry["reference_audio_directory"]) == (str(before), str(before))
    (before / "a.png").unlink()
    (entry,) = graph.pairs()[0].entries
    assert "reference_directory" not in entry
    assert entry["reference_audio_directory"] == str(before)


def test_further_references_have_folders_and_frames_of_their_own(nodes, graph, comfy, pair, unencoded):
    media.write_image(comfy.folder("input", "faces") / "a.png", 64, 64, None)
    media.write_sound(comfy.folder("input", "voices") / "a.wav", media.tone(0.5))
    two, count = graph.more(graph.pairs(reference_frames=0)[0], "faces")
    assert (count, comfy.texts[-1][1]) == (1, "1 pairs with a reference in faces")
    three, _ = graph.more(graph.more(two, "before", 9)[0], "voices")
    (entry,) = DatasetConfig.read(graph.prepared(three, mode="av").config).datasets
    faces = comfy.folder("input", "faces")
    assert (entry.reference_directory, entry.more_reference_directories) == (pair[1], (faces, pair[1]))
    assert (entry.reference_frames, entry.more_reference_frames) == (0, (1, 9))
    assert entry.reference_audio_directory == comfy.folder("input", "voices")
    assert entry.more_reference_audio_directories == ()
    places = {nodes.entries._cache_name({**one.entries[0], "cache_directory": ""}, one.folder, False)
              for one in (graph.pairs(reference_frames=0)[0], two, three)}  # fmt: skip
    assert len(places) == 3, "each has caches of its own"
    media.write_image(comfy.folder("input", "strange") / "b.png", 64, 64, None)
    with pytest.raises(RuntimeError, match="No file in .* is called as one in"):
        graph.more(two, "strange")


def test_a_further_reference_goes_before_datasets_are_combined(nodes, graph, comfy, pair):
    media.write_captioned(comfy.folder("input", "other") / "b.mp4", media.moving_square(30, 64, 64), "b")
    other = nodes.LoadTrainingClips.execute(folder="other", path="", trigger_word="", fps=25.0).args[0]
    shares = {f"share_{number}": 1 for number in range(1, 5)}
    both = nodes.CombineDatasets.execute(dataset_1=graph.pairs()[0], dataset_2=other, **shares).args[0]
    with pytest.raises(RuntimeError, match="`pairs` is made of several folders. Connect Add Reference behind Load"):
        graph.more(both, "before")


def test_recordings_are_paired_with_recordings(graph, comfy):
    media.write_sound(comfy.folder("input", "after") / "a.wav", media.tone(1.0), caption="she says yes")
    media.write_image(comfy.folder("input", "before") / "a.png", 64, 64, None)
    with pytest.raises(RuntimeError, match=r"for a\.wav it is a\.wav\."):
        graph.pairs()
    media.write_sound(comfy.folder("input", "before") / "a.wav", media.tone(1.0))
    dataset, count = graph.pairs()
    (entry,) = dataset.entries
    assert (count, "audio_directory" in entry, "reference_audio_directory" in entry) == (1, True, True)
    assert "reference_directory" not in entry


def test_masks_go_with_clips_with_references_or_without(nodes, graph, comfy, pair):
    masks = comfy.folder("input", "masks")
    media.write_image(masks / "a.png", 64, 64, None)
    (masks / "a.json").write_text("[[0, 0.2]]")
    (entry,) = graph.pairs(mask_folder="masks")[0].entries
    assert {key for key in entry if key.endswith("_directory")} == {
        "video_directory",
        "reference_directory",
        "mask_directory",
        "audio_mask_directory",
    }
    nothing = {"reference_folder": "(folder from the path below)"}
    dataset, _ = graph.pairs(mask_folder="masks", **nothing)
    assert (repr(dataset), "reference_directory" in dataset.entries[0]) == ("<1 masked clips in after>", False)

    def mark(**more):
        given = {"folder": "after", "path": "", "reference_path": "", "mask_folder": "masks", **nothing, **more}
        return nodes.LoadTrainingPairs.fingerprint_inputs(**given)

    before = mark()
    assert mark() == before
    (masks / "a.json").write_text("[[0, 0.4]]")
    assert mark() != before


def test_what_lies_beside_gives_the_caches_a_folder_of_their_own(nodes, graph, comfy, pair):
    media.write_image(comfy.folder("input", "masks") / "a.png", 64, 64, None)

    def caches(dataset):
        shape = nodes.data.SHAPE.tables({**nodes.data.SHAPE.defaults(visible=True), **SIZE})
        folder = nodes.entries.dataset_folder(dataset)
        return nodes.entries.dataset_config([dataset], shape, folder, "Prepare Dataset").datasets[0].caches

    folders = {caches(one) for one in (graph.clips(), graph.pairs()[0], graph.pairs(mask_folder="masks")[0])}
    assert len(folders) == 3, "a mask that lies in a cache folder would be taken for one of every dataset there"


# ------------------------------------------------------------------------------------------------- the way to a LoRA


def test_pairs_are_trained_on(graph, pair):
    prepared = graph.prepared(graph.pairs()[0])
    run = graph.trained(prepared, graph.recipe("ic_lora", reference_probability=1.0, first_frame_probability=0.0))
    assert run.step == 2
    conditions = run.tables["video"]["conditions"]
    assert [one["type"] for one in conditions] == ["reference", "first_frame"]
    text = (run.folder / "run.toml").read_text()
    assert 'type = "reference"' in text


@pytest.fixture
def unencoded(nodes, monkeypatch):
    """Prepare Dataset writes its dataset file and encodes nothing."""
    report = SimpleNamespace(summary=str, kinds={}, left_out=[], files=())
    monkeypatch.setattr(nodes.data.core, "build_caches", lambda *_, **__: report)


def test_references_that_no_condition_uses_stop_train_lora_in_words_of_the_graph(graph, pair, unencoded):
    prepared = graph.prepared(graph.pairs()[0])
    with pytest.raises(RuntimeError) as caught:
        graph.trained(prepared)
    assert str(caught.value).splitlines()[1].strip() == (
        "reference_folder of Load Training Pairs: No condition uses references: connect Video Conditions, set to "
        "reference, to `conditions` of Train LoRA (IC-LoRA). Leave it out to train a plain LoRA."
    )


@pytest.fixture
def pressed(nodes, graph, monkeypatch):
    """Prepare Dataset as a press on Run runs it, before Train LoRA and the conditions that go into it."""

    def press(dataset, mode="video", conditions=None, **more):
        train = {"class_type": "LTX2T_TrainLoRA", "inputs": {"prepared": ["3", 0], **TRAIN}}
        prompt = {"4": train, **more}
        if conditions is not None:
            train["inputs"]["conditions"] = conditions
        monkeypatch.setattr(fake_comfy.ComfyNode, "hidden", SimpleNamespace(unique_id="3", prompt=prompt))
        monkeypatch.setattr(nodes.data.core, "build_caches", lambda *_, **__: pytest.fail("encoding began"))
        return graph.prepared(dataset, mode)

    return press


def node(kind, **inputs):
    return {"class_type": f"LTX2T_{kind}", "inputs": inputs}


CROP = {"condition": "reference", "condition.probability": 1.0}


@pytest.mark.parametrize(
    ("paired", "more", "said"),
    [
        (True, {}, "reference_folder of Load Training Pairs: No condition uses references: connect Video Conditions"),
        (
            True,
            {"8": node("VideoConditions", condition="first_frame", **{"condition.probability": 0.5})},
            "No condition uses references",
        ),
        (
            False,
            {"8": node("VideoConditions", **CROP)},
            "^Train LoRA: Video Conditions asks for a reference, and not one sample has any. "
            "Set reference_folder of Load Training Pairs",
        ),
        (
            True,
            {
                "8": node("VideoConditions", **CROP, conditions=["9", 0]),
                "9": node("VideoConditions", condition="whole"),
            },
            "all of the video is given, but mode of Load LTX-2 Base Model is video",
        ),
        (
            True,
            {"8": node("VideoConditions", condition="first_frame", **{"condition.probability": 2})},
            "^Video Conditions: .*\n  probability: must be at most 1",
        ),
        (False, {"8": node("ConditionsRecipe", recipe="foley")}, "all of the video is given, but mode of"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_encoded(graph, pair, pressed, paired, more, said):
    dataset = graph.pairs()[0] if paired else graph.clips()
    with pytest.raises(RuntimeError, match=said):
        pressed(dataset, conditions=["8", 0] if more else None, **more)


def test_a_prefix_longer_than_the_clips_is_refused_before_anything_is_encoded(graph, comfy, pair, monkeypatch):
    numbers = {"condition.probability": 1.0, "condition.temporal_boundary": "3", "condition.seconds": ""}
    train = {"prepared": ["3", 0], **TRAIN, "conditions": ["8", 0]}
    prompt = {"4": node("TrainLoRA", **train), "8": node("VideoConditions", condition="prefix", **numbers)}
    monkeypatch.setattr(fake_comfy.ComfyNode, "hidden", SimpleNamespace(unique_id="3", prompt=prompt))
    with pytest.raises(RuntimeError, match=r"a_.* 3 latent frames, and a prefix of up to 3 .*: see Video Conditions"):
        graph.prepared(graph.clips())
    assert not list(comfy.folder("output").rglob("*_ltx2.safetensors"))


def test_each_further_reference_needs_a_condition_of_its_own(graph, comfy, pair, pressed):
    media.write_image(comfy.folder("input", "faces") / "a.png", 64, 64, None)
    one = {"8": node("VideoConditions", **CROP)}
    two = {"8": node("VideoConditions", **CROP, conditions=["9", 0]), "9": node("VideoConditions", **CROP)}
    both = graph.more(graph.pairs()[0], "faces")[0]
    with pytest.raises(
        RuntimeError,
        match="reference_folder of Add Reference: .*faces is used by no condition.*"
        "Connect another Video Conditions, set to reference, to `conditions` of Train LoRA",
    ):
        pressed(both, conditions=["8", 0], **one)
    with pytest.raises(
        RuntimeError, match="Video Conditions asks for a reference 2, .* Set reference_folder of Add Reference"
    ):
        pressed(graph.pairs()[0], conditions=["8", 0], **two)
    with pytest.raises(pytest.fail.Exception, match="encoding began"):
        pressed(both, conditions=["8", 0], **two)


def test_what_goes_together_or_is_not_known_yet_is_encoded(graph, pair, pressed):
    chained = {
        "8": node("VideoConditions", condition="first_frame", conditions=["9", 0], **{"condition.probability": 0.5}),
        "9": node("VideoConditions", **CROP),
    }
    wired = {"8": node("VideoConditions", condition="first_frame", **{"condition.probability": ["1", 0]})}
    foreign = {"8": {"class_type": "Switch", "inputs": {}}}
    for more in (chained, wired, foreign):
        with pytest.raises(pytest.fail.Exception, match="encoding began"):
            pressed(graph.pairs()[0], conditions=["8", 0], **more)


def test_the_dataset_file_names_what_lies_beside(graph, pair, unencoded):
    media.write_sound(pair[1] / "a.wav", media.tone(0.5))
    (entry,) = DatasetConfig.read(graph.prepared(graph.pairs()[0], mode="av").config).datasets
    assert (entry.reference_directory, entry.reference_audio_directory) == (pair[1], pair[1])
