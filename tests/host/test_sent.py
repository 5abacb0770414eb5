"""What a prompt gives our nodes: each name is one of an input, and errors name the nodes that there are."""

from __future__ import annotations

import json
import re

import pytest
from comfy_server import ROOT


def sent(kind, **inputs):
    return {"5": {"class_type": f"LTX2T_{kind}", "inputs": inputs}, "6": {"class_type": "KSampler", "inputs": {"x": 1}}}


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (
            sent("LoadTrainingClips", triger_word="ohwx"),
            r"Clips \(node 5\): .*Did you mean trigger_word\?",
        ),
        (sent("LoadTrainingClips", zzz=["4", 0]), r"it has no input zzz\. Leave it out"),
        (
            sent("TrainingRecipe", recipe="nothing of the kind", **{"recipe.rank": 4}),
            "",  # the node says so itself
        ),
        (
            sent("ValidationOptions", when="every n steps", **{"when.every": 2, "when.every_epochs": 3}),
            r"when\.every_epochs goes with when = every n epochs or when = steps and epochs, and when is every n steps",
        ),
        (sent("PickCheckpoints", pick="spread over the run", **{"pick.count": 2}), ""),
    ],
)
def test_what_no_input_takes_is_named(nodes, prompt, words):
    told = nodes.sent.unknown(prompt)
    assert re.search(words, told) if words else not told


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"run_name": None}, "run_name is null"),
        ({"run_name": {}}, r"run_name is \{\}\. Expected a text"),
        ({"sample_at_start": "false"}, 'sample_at_start is "false". Expected true or false'),
        ({"steps": 2.7}, "steps is 2.7. Expected a whole number"),
        ({"steps": True}, "steps is true. Expected a whole number"),
        ({"learning_rate": False}, "learning_rate is false. Expected a number"),
        ({"prepared": "x"}, 'prepared is "x", and takes a wire alone'),
        ({"prepared": ["3", 0], "steps": 5.0, "run_name": 7, "sample_at_start": 1, "learning_rate": 1}, ""),
    ],
)
def test_a_value_that_comfyui_would_make_fit_is_named(nodes, inputs, words):
    told = nodes.sent.unknown(sent("TrainLoRA", **inputs))
    assert re.search(words, told) if words else not told


def test_what_was_sent_is_looked_at_before_comfyui_makes_it_fit(nodes):
    prompt = sent("TrainLoRA", run_name=None, steps=2.7)
    assert nodes.sent.note_values({"prompt": prompt})["prompt"] is prompt
    prompt["5"]["inputs"].update(run_name="None", steps=2)  # as ComfyUI does
    told = nodes.sent.unknown(prompt)
    assert "run_name is null" in told
    assert "steps is 2.7. Expected a whole number" in told
    nodes.sent.note_values({"prompt": prompt})
    assert nodes.sent.unknown(prompt) == "", "sent again, mended"
    assert nodes.sent.note_values({"x": 1}) == {"x": 1}


@pytest.mark.parametrize(
    "name", ["video-preview", "$$comfy_animation_preview", "$$node-text-preview", "audioUI", "upload", "choose file"]
)
@pytest.mark.parametrize("by_page", [True, False])
def test_what_the_page_adds_to_any_node_is_passed_over(nodes, name, by_page):
    """As sent by the page, and as exported from it for the API."""
    assert nodes.sent.unknown(sent("SampleLoRA", width=64, **{name: ""}), by_page) == ""


def test_a_widget_of_another_pack_is_passed_over_where_the_page_sent_it(nodes):
    prompt = sent("SampleLoRA", width=64, speak=True)
    assert "no input speak" in nodes.sent.unknown(prompt)
    assert nodes.sent.unknown(prompt, by_page=True) == ""
    for name in ("widht", "trigger-word"):
        prompt = sent("LoadTrainingClips" if "-" in name else "SampleLoRA", **{name: 64})
        for by_page in (False, True):
            assert f"no input {name}. Did you mean" in nodes.sent.unknown(prompt, by_page)


def test_a_setting_of_several_nodes_is_that_of_those_in_the_graph(nodes):
    words = nodes.words
    for kinds, said in (
        (["LoadTrainingClips"], "trigger_word of Load Training Clips"),
        (["LoadTrainingPairs", "TrainLoRA"], "trigger_word of Load Training Pairs"),
        (["LoadTrainingAudio"], "speaker_word of Load Training Audio"),
        (
            ["LoadTrainingClips", "LoadTrainingAudio"],
            "speaker_word of Load Training Audio or trigger_word of Load Training Clips",
        ),
    ):
        prompt = {str(number): {"class_type": f"LTX2T_{kind}"} for number, kind in enumerate(kinds)}
        with words.in_graph(nodes.sent.titles(prompt)), words.speaking_as("Prepare Dataset"):
            assert words.in_widget_words("Set trigger_word in it.") == f"Set {said} in it."


def test_a_setting_of_a_dataset_that_no_node_of_the_graph_has_goes_by_its_own_name(nodes):
    words = nodes.words
    copy = "Remove one; num_repeats repeats a dataset."
    for titles, text, said in (
        ({"Load Training Clips", "Check Dataset"}, copy, copy.replace("num_repeats", "repeats of Load Training Clips")),
        ({"Load Training Clips"}, "speech_segments: no", "speech_segments: no"),
        ({"Load Training Clips"}, "Set caption_lines", "Set caption_lines of Dataset Options"),
        ({"Load Training Clips"}, "let `ltx2-train data caption` do it", "let Caption Clips do it"),
        ({"Load Training Clips"}, "with `ltx2-train data cut --speech`", "with Cut Long Videos"),
        ({"Dataset from File"}, "datasets[0].source_fps: no. Use num_repeats to", None),
        ({"Dataset from File"}, "[[validation_datasets]], datasets[1].mask_directory: no", None),
        ({"Dataset from File"}, "lora.rank", "rank"),
        (
            {"Dataset from File", "Load Training Clips"},
            "datasets[0].source_fps: no",
            "source_fps of Load Training Clips: no",
        ),
    ):
        with words.in_graph(titles), words.speaking_as("Train LoRA"):
            assert words.in_widget_words(text) == (said or text)
    for titles in (set(), {"Dataset from File", "Load Training Clips", "Dataset Options"}):
        with words.in_graph(titles), words.speaking_as("Dataset from File"):
            text = "datasets[0].source_fps: no. Known: caption_lines, audio_normalize"
            assert words.in_widget_words(text) == text
            assert words.in_widget_words("train.steps") == "steps of Train LoRA"


def test_conditions_are_those_of_the_node_that_gives_them(nodes):
    words = nodes.words
    for titles, giver in (
        ({"Conditions Recipe"}, "Conditions Recipe"),
        ({"Conditions Recipe", "Audio Conditions"}, "Audio Conditions"),
        (set(), "Audio Conditions"),
    ):
        with words.in_graph(titles):
            said = words.in_widget_words("audio.generated is set, but. Or take audio.generated out.")
            assert said == f"{giver} gives all of the audio, but. Or take {giver} out."
            assert words.in_widget_words("audio.conditions asks for").startswith(f"{giver} asks")


def test_the_prompts_that_we_ship_are_known(nodes):
    for file in (ROOT / "example_workflows" / "api").glob("*.json"):
        assert nodes.sent.unknown(json.loads(file.read_text(encoding="utf-8"))) == "", file.name
