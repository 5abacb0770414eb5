"""Recipes are run files that a run accepts, with the data that their dataset brings."""

from __future__ import annotations

import pytest

from ltx2_train.cli import main
from ltx2_train.config import DrawSettings, make_run
from ltx2_train.config.beginnings import SAMPLE_RECIPES, TRAINING_RECIPES
from ltx2_train.config.groups import plain_toml
from ltx2_train.config.recipes import MODEL_RECIPES, RECIPES, recipe_text
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.sampling.prompts import parse_prompt
from ltx2_train.toml import tomllib
from ltx2_train.training.check_given import check_streams, check_supplied
from ltx2_train.training.unused import require_used

EVERY = {**RECIPES, **MODEL_RECIPES}


@pytest.mark.parametrize("name", EVERY)
def test_a_recipe_is_a_run_file_that_its_dataset_serves(name, tmp_path):
    recipe, text = EVERY[name], recipe_text(name)
    run = make_run(tomllib.loads(text), tmp_path)
    assert (run.run.name, run.model.mode) == (name, recipe.modes[0])
    assert [one.type for one in run.video.conditions] == [one["type"] for one in recipe.video]
    assert [one.type for one in run.audio.conditions] == [one["type"] for one in recipe.audio]
    assert [run.video.generated, run.audio.generated] == [recipe.given != "video", recipe.given != "audio"]
    assert not run.without_effect
    for group, values in recipe.settings.items():
        has = plain_toml(getattr(run, group).model_dump())
        assert values == {one: has[one] for one in values}
    entry = tomllib.loads("\n".join(line[4:] for line in text.splitlines() if line.startswith("#   ")))
    assert entry["datasets"] == [dict(recipe.dataset)]
    dataset = DatasetConfig.from_table(entry, tmp_path)
    for mode in recipe.modes:
        this = make_run({"model": {"mode": mode}, **recipe.streams()})
        check_streams(this)
        check_supplied(this, dataset)
        require_used(this, dataset)


@pytest.mark.parametrize("name", TRAINING_RECIPES)
def test_the_numbers_of_a_recipe_are_those_of_its_run_file_and_each_counts(name, tmp_path):
    recipe = TRAINING_RECIPES[name]
    run = make_run(tomllib.loads(recipe_text(name)), tmp_path)
    assert run.model.mode == (RECIPES[name] if name in RECIPES else recipe).modes[0]
    for mode in recipe.modes:
        other = make_run({**recipe.tables(), "model": {"mode": mode}})
        assert not [one.setting for one in other.without_effect], "a number that changes nothing"
    assert (run.train.steps, run.lora.rank, run.train.learning_rate) == tuple(
        recipe.settings[path] for path in ("train.steps", "lora.rank", "train.learning_rate")
    )


@pytest.mark.parametrize("name", SAMPLE_RECIPES)
def test_the_numbers_of_a_sample_recipe_go_together(name):
    run = make_run({**SAMPLE_RECIPES[name].tables(), "model": {"mode": "av"}})
    assert not [one.setting for one in run.without_effect if one.setting.startswith("sample.")]
    prompt = parse_prompt("a ball", DrawSettings.of(run.sample, "2.5"))
    assert (prompt.steps, prompt.needs_negative) == ({"fast": 8, "faithful": 30}[name], name == "faithful")


@pytest.mark.parametrize(
    ("name", "target"),
    [("ic_lora", "v2v"), ("voice_reference", "audio_ref_only_ic"), ("foley", "audio"), ("lip_sync", "auto")],
)
def test_the_layers_follow_the_task_where_nothing_else_is_said(name, target):
    tables = {"model": {"mode": "av"}, **RECIPES[name].streams()}
    assert make_run(tables).settled_lora.target == target
    assert make_run({**tables, "lora": {"target": "full"}}).settled_lora.target == "full"


def test_a_plain_run_and_a_voice_alone_choose_by_their_layers():
    assert make_run({"video": {"conditions": [{"type": "mask"}]}}).settled_lora.target == "auto"
    voice = {"model": {"mode": "audio"}, **RECIPES["voice_reference"].streams()}
    assert make_run(voice).settled_lora.target == "auto"


def test_recipes_are_printed_and_a_slip_names_the_nearest(capsys):
    assert main(["config", "--recipe", "foley"]) == 0
    assert capsys.readouterr().out.strip() == recipe_text("foley").strip()
    assert main(["config", "--recipe", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list({**EVERY, **TRAINING_RECIPES})
    assert main(["config", "--recipe", "folley"]) == 2
    assert "Did you mean foley" in capsys.readouterr().err
