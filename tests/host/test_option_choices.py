"""Optimizer, Regularizers and Validation Options: each choice has its own numbers, and they are what the run gets."""

from __future__ import annotations

from pathlib import Path

import pytest

OTHER = {"betas": "0.5, 0.7", "class_name": "torch.optim.SGD", "tread_routes": "3:5:0.25, 7:-2:0.5"}
TABLE = {"betas": [0.5, 0.7], "tread_routes": ["3:5:0.25", "7:-2:0.5"]}
TITLES = {"optimizer": "Optimizer Options", "regularizer": "Regularizers Options", "when": "Validation Options"}


def node_of(nodes, widget):
    return next(one for one in nodes.option_choices.CHOICE_NODES if one.CHOICES.widget == widget)


def below(node, name):
    """The widgets below the choice `name`."""
    return next(one for one in node.define_schema().inputs[0].options["options"] if one.key == name).inputs


def values_of(node, name, **changed):
    """What the page hands over for the choice `name`."""
    chosen = {shown.id: shown.default for shown in below(node, name)}
    rest = node.REST.defaults(visible=True)
    assert set(changed) <= {*chosen, *rest}
    chosen |= {key: value for key, value in changed.items() if key in chosen}
    rest |= {key: value for key, value in changed.items() if key in rest}
    return {node.CHOICES.widget: {node.CHOICES.widget: name, **chosen}, **rest}


@pytest.fixture
def made(nodes, comfy):
    def once(widget, name, before=None, **changed):
        node = node_of(nodes, widget)
        return node.execute(**values_of(node, name, **changed), options=before).args[0]

    return once


def every_choice(nodes):
    return [(node, name) for node in nodes.option_choices.CHOICE_NODES for name in node.CHOICES.forms]


def other_value(shown):
    """Something else than what stands there."""
    if shown.id in OTHER:
        return OTHER[shown.id]
    if shown.io_type == "COMBO":
        return next(one for one in shown.options["options"] if one != shown.default)
    if shown.io_type == "BOOLEAN":
        return not shown.default
    return "else" if shown.io_type == "STRING" else min(shown.default + 1, shown.max)


def test_the_choices_are_all_there_are_and_every_setting_is_below_one(nodes):
    core = nodes.train.RunConfig
    name = nodes.fields.field_at(core, "optimizer.name").annotation
    optimizer, regularizer, when = nodes.option_choices.CHOICE_NODES
    assert [*optimizer.CHOICES.forms] == [*name.__args__, nodes.option_choices.BY_CLASS]
    kinds = core.model_fields["regularizers"].annotation.model_fields
    assert [*regularizer.CHOICES.forms] == [*kinds] == [*nodes.option_choices.STARTS]
    for node, tables in ((optimizer, ("optimizer", "ema")), (regularizer, ("regularizers",)), (when, ("validation",))):
        shown = {*node.CHOICES.paths, *(one.path for one in node.REST.settings)}
        assert shown == {path for path, _ in nodes.fields.settings_below(core, *tables)}


def test_an_optimizer_has_the_numbers_that_it_uses_and_no_others(nodes):
    used = nodes.train.core.optimizer_numbers()
    node = node_of(nodes, "optimizer")
    for name, numbers in used.items():
        assert {shown.id for shown in below(node, name)} == set(numbers), name
    assert [shown.id for shown in below(node, "muon")] == ["eps", "weight_decay"]
    by_class = [shown.id for shown in below(node, nodes.option_choices.BY_CLASS)]
    assert by_class == ["class_name", "betas", "eps", "weight_decay"]


def test_a_regularizer_begins_on_with_its_weight_in_view(nodes, made):
    for name, start in nodes.option_choices.STARTS.items():
        shown = below(node_of(nodes, "regularizer"), name)
        assert (shown[0].id, shown[0].default) == (f"{name}_weight", start)
        assert sum(not one.options.get("advanced") for one in shown) <= 8
        run = nodes.train.core.make_run(made("regularizer", name).tables)
        assert run.regularizers.wanted == [name]
        assert getattr(run.regularizers, name).weight == start > 0


def test_each_number_goes_where_its_setting_is(nodes, made):
    for node, name in every_choice(nodes):
        form = {one.id: one for forms in node.CHOICES.forms[name] for one in forms.settings}
        for shown in below(node, name):
            value = other_value(shown)
            first = {"class_name": "torch.optim.SGD"} if name == nodes.option_choices.BY_CLASS else {}
            tables = made(node.CHOICES.widget, name, **{**first, shown.id: value}).tables
            *groups, last = form[shown.id].path.split(".")
            for group in groups:
                tables = tables[group]
            assert tables[last] == TABLE.get(shown.id, value), shown.id


def test_what_stands_below_a_choice_is_used_and_of_the_rest_what_was_changed(nodes, made):
    make_run = nodes.train.core.make_run
    prodigy = made("optimizer", "prodigy", betas="0.8, 0.9", args="d0 = 1e-5\nuse = true", ema_decay=0.5)
    assert prodigy.tables == {
        "optimizer": {
            "name": "prodigy",
            "betas": [0.8, 0.9],
            "eps": 1e-8,
            "weight_decay": 0.01,
            "args": {"d0": 1e-5, "use": True},
        },
        "ema": {"decay": 0.5},
    }
    assert make_run(made("optimizer", "auto").tables) == make_run({})
    of_class = make_run(made("optimizer", "by class", class_name="torch.optim.RAdam").tables)
    assert of_class.optimizer.name == "torch.optim.RAdam"
    for when, numbers in (("every n steps", (250, 0)), ("every n epochs", (0, 1)), ("steps and epochs", (250, 1))):
        run = make_run(made("when", when, levels=2).tables)
        assert (run.validation.every, run.validation.every_epochs, run.validation.levels) == (*numbers, 2)
    for name in ("", "prodigy"):
        with pytest.raises(RuntimeError, match=rf"class_name: {name!r} is no dotted name of a class"):
            made("optimizer", "by class", class_name=name)
    with pytest.raises(RuntimeError, match="'eleven' is not `name = value`"):
        made("optimizer", "adamw", args="eleven")


def test_several_regularizers_are_chained_and_none_twice(nodes, made):
    crepa = made("regularizer", "crepa", crepa_weight=0.2)
    chain = made("when", "every n steps", made("regularizer", "tread", crepa), every=2)
    run = nodes.train.core.make_run(nodes.options.given(chain, "Train LoRA"))
    assert (run.regularizers.wanted, run.regularizers.crepa.weight) == (["crepa", "tread"], 0.2)
    for weight in (0.2, 0.3):
        with pytest.raises(RuntimeError, match="Regularizers Options crepa is in the chain twice"):
            made("regularizer", "crepa", chain, crepa_weight=weight)
    with pytest.raises(RuntimeError, match="Optimizer Options is in the chain twice"):
        made("optimizer", "muon", made("optimizer", "muon"))
    for title in ("Regularizers Options crepa", "Validation Options"):
        with pytest.raises(nodes.options.ConfigError, match="connected to Train Slider, but goes into"):
            nodes.options.given(chain if "crepa" in title else made("when", "every n steps"), "Train Slider")


# Train LoRA's own widgets, the node's choice and its weight decay, and what the run gets or what is said
BOTH = [
    ({}, "prodigy", 0.01, "prodigy"),
    ({"optimizer": "auto", "weight_decay": 0.01}, "prodigy", 0.2, "prodigy"),
    ({"optimizer": "prodigy", "weight_decay": 0.2}, "prodigy", 0.2, "prodigy"),
    ({"optimizer": "muon"}, "prodigy", 0.01, "optimizer.name is set twice: to muon in {}, and to prodigy by Optim"),
    ({"optimizer": "muon"}, "adamw", 0.01, "optimizer.name is set twice: to muon in {}, and to adamw by Optimizer O"),
    ({"optimizer": "adamw"}, "muon", 0.01, "optimizer.name is set twice: to adamw in {}, and to muon by Optimizer O"),
    ({"optimizer": "muon"}, "auto", 0.01, "optimizer.name is set twice: to muon in {}, and to auto by Optimizer Opt"),
    ({"optimizer": "muon"}, "by class", 0.01, r"to muon in {}, and to torch.optim.RAdam by Optimizer Options"),
    ({"weight_decay": 0.3}, "prodigy", 0.01, "optimizer.weight_decay is set twice: to 0.3 in {}, and to 0.01 by"),
]


@pytest.mark.parametrize("title", ["Train LoRA", "Train Slider"])
@pytest.mark.parametrize(("own", "name", "decay", "expected"), BOTH)
def test_two_optimizers_that_were_chosen_and_differ_are_refused_by_name(nodes, made, title, own, name, decay, expected):
    first = {"class_name": "torch.optim.RAdam"} if name == "by class" else {}
    chain = made("optimizer", name, weight_decay=decay, **first)
    said = nodes.train.said(own) if title == "Train LoRA" else nodes.slider.FORM.said(own)
    if " " in expected:
        with pytest.raises(nodes.options.ConfigError, match=expected.format(title)):
            nodes.options.given(chain, title, said)
    else:
        brought = nodes.options.given(chain, title, said)["optimizer"]
        assert (brought["name"], brought["weight_decay"]) == (expected, decay)


def test_train_lora_trains_with_the_optimizer_of_the_node(nodes, made, monkeypatch):
    runs = []

    def train(run, events=None):
        runs.append(run)
        raise nodes.train.ConfigError("far enough")

    monkeypatch.setattr(nodes.train.core, "train", train)
    prepared = nodes.handles.PreparedDataset(Path("dataset.toml"), {"data": {"config": "/clips/dataset.toml"}})
    values = {**nodes.train.FORM.defaults(visible=True), "run_name": "fox", "sample_prompts": ""}
    chain = made("when", "every n steps", made("optimizer", "came", betas="0.7, 0.8", weight_decay=0.3))
    with pytest.raises(RuntimeError, match="far enough"):
        nodes.TrainLoRA.execute(prepared=prepared, **values, options=chain)
    (run,) = runs
    assert (run.optimizer.name, run.optimizer.betas, run.optimizer.weight_decay) == ("came", (0.7, 0.8), 0.3)
    with pytest.raises(RuntimeError, match=r"optimizer is set twice: .*take Optimizer Options off\.$"):
        nodes.TrainLoRA.execute(prepared=prepared, **{**values, "optimizer": "muon"}, options=chain)


def test_a_prompt_is_read_before_anything_is_encoded(nodes, monkeypatch):
    seen = []
    monkeypatch.setattr(nodes.train.core, "foresee", seen.append)
    base = {"model": {"checkpoint": "x.safetensors", "text_encoder": "y"}}

    def in_prompt(widget, name, behind=None, **changed):
        node = node_of(nodes, widget)
        handed = values_of(node, name, **changed)
        chosen = handed.pop(widget)
        names = {key if key == widget else f"{widget}.{key}": value for key, value in chosen.items()}
        return {"class_type": node.ID, "inputs": {**names, **handed, **({"options": [behind, 0]} if behind else {})}}

    train = {"run_name": "a", "prepared": ["0", 0], "options": ["4", 0]}
    prompt = {
        "1": in_prompt("optimizer", "prodigy", betas="0.5, 0.6", ema_decay=0.5),
        "2": in_prompt("regularizer", "crepa", "1", crepa_weight=0.3),
        "3": in_prompt("regularizer", "tread", "2"),
        "4": in_prompt("when", "every n steps", "3", every=2, clips=3),
        "5": {"class_type": "LTX2T_TrainLoRA", "inputs": train},
    }
    nodes.train.check_ahead(prompt, "0", base)
    (run,) = seen
    assert (run.optimizer.name, run.optimizer.betas, run.ema.decay) == ("prodigy", (0.5, 0.6), 0.5)
    assert (run.regularizers.wanted, run.regularizers.crepa.weight) == (["crepa", "tread"], 0.3)
    assert (run.validation.every, run.validation.clips) == (2, 3)

    def refused(said, **changed):
        with pytest.raises(nodes.train.TrainerError, match=said):
            nodes.train.check_ahead({**prompt, **{f"{key[1:]}": value for key, value in changed.items()}}, "0", base)

    refused(
        "Train LoRA: optimizer is set twice: to muon in Train LoRA, and to prodigy by Optimizer Options",
        n5={"class_type": "LTX2T_TrainLoRA", "inputs": {**train, "optimizer": "muon"}},
    )
    refused("Regularizers Options crepa is in the chain twice", n3=in_prompt("regularizer", "crepa", "2"))
    refused(
        "betas of Optimizer Options: each must be at least 0", n1=in_prompt("optimizer", "muon", None) | bad_betas()
    )
    refused("crepa_weight of Regularizers Options", n2=in_prompt("regularizer", "crepa", "1", crepa_weight=5000.0))
    refused("regularizer: crepa needs crepa_weight", n2={"class_type": "LTX2T_RegularizersOptions", "inputs": OLD})


OLD = {"regularizer": "crepa", "regularizer.crepa_mode": "dino"}


def bad_betas():
    numbers = {"betas": "1, 2", "eps": 1e-8, "weight_decay": 0.01}
    inputs = {"optimizer": "adamw", **{f"optimizer.{name}": value for name, value in numbers.items()}}
    return {"inputs": {**inputs, "args": "", "ema_decay": 0.0, "ema_sample": True}}
