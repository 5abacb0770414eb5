"""Recipes of training and of samples: numbers in view below a choice, and each of them is what the run gets."""

from __future__ import annotations

import pytest


def shown(node, name):
    """What stands in the widgets below the choice `name`."""
    option = next(one for one in node.define_schema().inputs[0].options["options"] if one.key == name)
    return {widget.id: widget.default for widget in option.inputs}


@pytest.fixture
def made(nodes, comfy):
    def once(node, name, before=None, **changed):
        return node.execute(recipe={"recipe": name, **shown(node, name), **changed}, options=before).args[0]

    return once


def test_the_numbers_that_are_seen_are_those_of_the_core_and_those_that_are_used(nodes, made):
    for node, recipes in (
        (nodes.TrainingRecipe, nodes.recipes.TRAINING_RECIPES),
        (nodes.SamplesRecipe, nodes.recipes.SAMPLE_RECIPES),
    ):
        for name, recipe in recipes.items():
            assert list(shown(node, name).values()) == list(recipe.settings.values())
            assert made(node, name).tables == recipe.tables()
    chain = made(nodes.SamplesRecipe, "fast", made(nodes.TrainingRecipe, "style", steps=900))
    brought = nodes.options.given(chain, "Train LoRA")
    off = {"guidance": 1.0, "stg": 0.0, "rescale": 0.0, "modality_guidance": 1.0}
    assert (brought["train"]["steps"], brought["train"]["caption_dropout"]) == (900, 0.1)
    assert brought["sample"] == {"every": 250, "steps": 8, "sigmas": "distilled", **off}


def test_a_number_that_is_given_twice_is_refused_by_name_and_one_that_is_not_given_is_the_recipe_s(nodes, made):
    voice = made(nodes.TrainingRecipe, "voice")
    said = nodes.train.said
    alike = {"steps": 1200, "rank": 32, "learning_rate": 1e-4, "sample_every": 100}  # as the page has them
    brought = nodes.options.given(voice, "Train LoRA", said(alike))
    assert (brought["train"]["steps"], brought["train"]["save_every"]) == (1200, 100)
    for steps in (500, 2000):  # the second is what Train LoRA holds where there is no recipe
        match = rf"train.steps is set twice: to {steps} in Train LoRA, and to 1200 by Training Recipe"
        with pytest.raises(nodes.options.ConfigError, match=match):
            nodes.options.given(voice, "Train LoRA", said({**alike, "steps": steps}))
    with pytest.raises(nodes.options.ConfigError, match=r"train.save_every is set twice: to 250 in Train LoRA"):
        nodes.options.given(voice, "Train LoRA", said({**alike, "save_every": 250}))
    with pytest.raises(RuntimeError, match=r"Training Recipe is in the chain twice"):
        made(nodes.TrainingRecipe, "style", voice)
    with pytest.raises(nodes.options.ConfigError, match=r"Training Recipe is connected to Sample LoRA, but goes into"):
        nodes.options.given(voice, "Sample LoRA")


def test_the_page_is_told_which_setting_each_number_is(nodes):
    """By which it shows the numbers of a recipe in the nodes that they go into."""
    train = {shown.id: shown for shown in nodes.TrainLoRA.define_schema().inputs}
    recipes = nodes.TrainingRecipe.define_schema().inputs[0].options["options"]
    for shown in (one for choice in recipes for one in choice.inputs):
        assert train[shown.id].extra_dict == shown.extra_dict, shown.id


def test_a_recipe_says_which_mode_it_is_for(nodes, made):
    voice = made(nodes.TrainingRecipe, "voice")
    nodes.options.require_recipe_mode(voice, "audio")
    with pytest.raises(
        nodes.options.ConfigError, match=r"Recipe voice is for mode audio, and the base is set to video"
    ):
        nodes.options.require_recipe_mode(voice, "video")


def test_train_lora_is_foretold_with_the_recipe_of_the_prompt(nodes, made, monkeypatch):
    seen = []
    monkeypatch.setattr(nodes.train.core, "foresee", seen.append)
    base = {"model": {"checkpoint": "x.safetensors", "text_encoder": "y"}}
    numbers = {f"recipe.{name}": value for name, value in shown(nodes.TrainingRecipe, "motion").items()}
    prompt = {
        "1": {"class_type": "LTX2T_TrainingRecipe", "inputs": {"recipe": "motion", **numbers, "recipe.rank": 8}},
        "2": {"class_type": "LTX2T_LossOptions", "inputs": {"type": "mae", "options": ["1", 0]}},
        "3": {"class_type": "LTX2T_TrainLoRA", "inputs": {"run_name": "a", "prepared": ["0", 0], "options": ["2", 0]}},
    }
    nodes.train.check_ahead(prompt, "0", base)
    (run,) = seen
    assert (run.lora.rank, run.train.first_frame_probability, run.loss.type) == (8, 0.8, "mae")
    prompt["3"]["inputs"]["rank"] = 16
    with pytest.raises(
        nodes.options.ConfigError, match=r"Train LoRA: rank is set twice: to 16 in Train LoRA, and to 8"
    ):
        nodes.train.check_ahead(prompt, "0", base)
    prompt["3"]["inputs"]["rank"] = 8
    prompt["1"]["inputs"] = {"recipe": "voice", "recipe.steps": 5}
    with pytest.raises(nodes.options.ConfigError, match=r"recipe: voice needs rank"):
        nodes.train.check_ahead(prompt, "0", base)
