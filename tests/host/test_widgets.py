"""Widgets are read off settings fields, and their values go back into tables."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, Field


class Inner(BaseModel):
    count: int = Field(default=5, ge=1, le=9, description="How many.", json_schema_extra={"unit": "frames"})
    rate: float = Field(default=1e-4, gt=0, le=1, description="How fast.")
    alpha: float | None = Field(default=None, gt=0, description="Share.")
    block: int | None = Field(default=None, ge=0, description="Which block.")
    kind: Literal["a", "b"] = Field(default="b", description="Which kind.")
    words: str | None = Field(default=None, description="Words.")
    mood: Literal["x"] | None = Field(default=None, description="Which mood.")
    on: bool = Field(default=True, description="Whether.")
    asked: bool | None = Field(default=None, description="Whether, if that is known.")
    place: Path | None = Field(default=None, description="Where.")
    lines: Path | list[str] | None = Field(default=None, description="Lines.")
    size: tuple[int, int] = Field(default=(960, 544), description="Width and height.")
    lengths: tuple[int, ...] = Field(default=(1,), description="Lengths.")


class Tree(BaseModel):
    inner: Inner = Inner()


@pytest.fixture
def widgets(nodes):
    return nodes.widgets


def make(widgets, name, **options):
    return widgets.widget(Tree, widgets.Setting(f"inner.{name}", **options))


def test_a_number_carries_default_bounds_unit_and_help(widgets):
    shown = make(widgets, "count")
    assert (shown.io_type, shown.id, shown.default, shown.min, shown.max) == ("INT", "count", 5, 1, 9)
    assert shown.tooltip == "How many. (frames; 1 to 9)"


def test_a_small_float_gets_a_step_that_shows_it(widgets):
    shown = make(widgets, "rate")
    assert shown.step == pytest.approx(1e-6)
    assert 0 < shown.min <= 1e-6
    assert f"{shown.default:.{6}f}" == "0.000100"


def test_prompts_are_a_line_each_with_their_commas(nodes):
    tables = nodes.train.FORM.tables({"run_name": "fox", "sample_prompts": "a fox, red; in snow\n#1 hen --w 64\n"})
    assert tables["sample"]["prompts"] == ["a fox, red; in snow", "#1 hen --w 64"]
    assert nodes.train.widget(nodes.train.RunConfig, nodes.train.FORM.visible[6]).multiline


@pytest.mark.parametrize(("name", "unset"), [("alpha", 0), ("block", -1)])
def test_an_optional_number_shows_unset_below_its_smallest_legal_value(widgets, name, unset):
    setting = widgets.Setting(f"inner.{name}")
    shown = widgets.widget(Tree, setting)
    assert shown.default == shown.min == unset
    assert f"{unset} = not set" in shown.tooltip
    form = widgets.Form(Tree, [setting])
    assert form.tables({name: unset}) == {}
    assert form.tables({name: 3}) == {"inner": {name: 3}}


def test_what_a_group_sets_of_its_parts_is_the_default_and_can_be_switched_off(nodes, widgets):
    setting = widgets.Setting("sample.tiles.spatial_tile", "tile")
    shown = widgets.widget(nodes.train.RunConfig, setting)
    assert (shown.default, shown.min) == (512, 0)
    assert "0 = off" in shown.tooltip
    form = widgets.Form(nodes.train.RunConfig, [setting])
    off = nodes.train.RunConfig.model_validate(form.changed({"tile": 0}))
    assert (off.sample.tiles.spatial_tile, off.sample.tiles.chunk_size) == (None, 32)
    assert form.changed({"tile": 512}) == {}
    assert widgets.widget(nodes.train.RunConfig, widgets.Setting("cache.tiles.spatial_tile")).default == 0


def test_choices_become_a_combo_and_unset_is_one_of_them(widgets):
    assert make(widgets, "kind").options["options"] == ["a", "b"]
    assert make(widgets, "kind").default == "b"
    assert make(widgets, "mood").options["options"] == ["not set", "x"]
    form = widgets.Form(Tree, [widgets.Setting("inner.kind"), widgets.Setting("inner.mood")])
    assert form.tables({"kind": "a", "mood": "not set"}) == {"inner": {"kind": "a"}}


def test_a_yes_or_no_that_may_be_left_open_has_three_choices(widgets):
    shown = make(widgets, "asked")
    assert (shown.io_type, shown.options["options"], shown.default) == ("COMBO", ["auto", "on", "off"], "auto")
    assert shown.tooltip == "Whether, if that is known. (auto = not set)"
    form = widgets.Form(Tree, [widgets.Setting("inner.asked")])
    told = {word: form.tables({"asked": word}) for word in ("auto", "on", "off")}
    assert told == {"auto": {}, "on": {"inner": {"asked": True}}, "off": {"inner": {"asked": False}}}


def test_a_text_that_may_be_unset_can_be_empty_all_the_same(widgets):
    setting = widgets.Setting("inner.words")
    form = widgets.Form(Tree, [setting])
    assert widgets.widget(Tree, setting).tooltip == 'Words. (empty = not set; "" = none)'
    shown = {given: form.tables({"words": given}) for given in ("", '""', " a fox ")}
    assert shown == {"": {}, '""': {"inner": {"words": ""}}, " a fox ": {"inner": {"words": "a fox"}}}


def test_what_a_node_leaves_unset_is_not_taken_from_the_tables_before_it(widgets):
    form = widgets.Form(Tree, [widgets.Setting("inner.alpha"), widgets.Setting("inner.count")])
    before = {"inner": {"alpha": 0.5, "count": 3, "rate": 0.1}, "other": {"on": True}}
    assert form.instead(before, {"alpha": 0, "count": 7}) == {"inner": {"count": 7, "rate": 0.1}, "other": {"on": True}}
    assert before["inner"]["alpha"] == 0.5


def test_an_empty_text_leaves_a_path_and_a_list_unset(widgets):
    form = widgets.Form(Tree, [widgets.Setting("inner.place"), widgets.Setting("inner.lines")])
    assert form.tables({"place": " ", "lines": "\n"}) == {}
    assert form.tables({"place": "/x", "lines": "one\n\n two "}) == {"inner": {"place": "/x", "lines": ["one", "two"]}}


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("optimizer.args", "d_coef = 0.5\nuse = true", {"d_coef": 0.5, "use": True}),
        ("train.lr_args", "attn1 = 1e-5", {"attn1": 1e-5}),
        ("lora.modules", "*.attn1.* = rank 8, algo lokr\n*.ff.* = alpha=4", {"*.attn1.*": {"rank": 8, "algo": "lokr"}}),
    ],
)
def test_a_table_is_written_a_line_an_entry(nodes, widgets, path, text, value):
    form = widgets.Form(nodes.options.RunConfig, [widgets.Setting(path, "it")])
    group, name = path.split(".")
    made = form.tables({"it": text})[group][name]
    assert made.items() >= value.items()
    nodes.train.core.make_run({group: {name: made}})
    with pytest.raises(nodes.widgets.ConfigError, match="Write one of them a line"):
        form.tables({"it": "nothing"})


def test_items_of_a_row_of_numbers_are_widgets_of_their_own(widgets):
    form = widgets.Form(
        Tree,
        [
            widgets.Setting("inner.size", "width", item=0, step=32, extra={"min": 32}),
            widgets.Setting("inner.size", "height", item=1),
            widgets.Setting("inner.lengths", "frames", item=0, default=49),
        ],
    )
    width, height, frames = form.visible_inputs()
    assert (width.default, width.min, width.step) == (960, 32, 32)
    assert (height.default, frames.default, frames.io_type) == (544, 49, "INT")
    assert form.tables({"width": 64, "height": 96, "frames": 9}) == {"inner": {"size": [64, 96], "lengths": [9]}}


def test_a_row_of_numbers_can_be_written_as_text(widgets):
    shown = make(widgets, "lengths")
    assert (shown.io_type, shown.default) == ("STRING", "1")
    form = widgets.Form(Tree, [widgets.Setting("inner.lengths")])
    assert form.tables({"lengths": "25, 49"}) == {"inner": {"lengths": [25, 49]}}


def test_advanced_widgets_are_optional_with_their_default_in_the_signature(widgets):
    form = widgets.Form(
        Tree, [widgets.Setting("inner.count")], [widgets.Setting("inner.kind"), widgets.Setting("inner.on")]
    )
    assert all(shown.optional and shown.advanced for shown in form.advanced_inputs())

    @form.fill
    def execute(model, **settings):
        return model, settings

    parameters = inspect.signature(execute).parameters
    assert list(parameters) == ["model", "count", "kind", "on"]
    assert (parameters["kind"].default, parameters["on"].default) == ("b", True)
    assert parameters["count"].default is inspect.Parameter.empty
    assert execute("m", count=1) == ("m", {"count": 1}), "what is not given has its default where it is read"
    assert execute("m", count=1, on=False)[1]["on"] is False


def every_float(nodes):
    """Node, id and widget of each number with a fraction, those below a choice too."""
    for node in nodes.NODES:
        schema = node.define_schema()
        for shown in schema.inputs:
            choices = shown.options["options"] if "DYNAMIC" in shown.io_type else ()
            below = [one for choice in choices for one in choice.inputs]
            for one in (shown, *below):
                if one.io_type == "FLOAT":
                    yield schema.node_id, one.id, one


def test_a_number_can_be_left_as_it_is_and_typed_as_people_type_it(nodes):
    """The page rounds to `round`, and the server refuses what is not between `min` and `max`."""
    typed = {"learning_rate": 1e-5, "momentum": 0.999, "ema_decay": 0.9999}
    found = list(every_float(nodes))
    for node, name, shown in found:
        for value in (shown.default, *(number for word, number in typed.items() if name.endswith(word))):
            assert shown.min <= value <= shown.max, f"{node} {name}: {value}"
            grain = getattr(shown, "round", None) or getattr(shown, "step", None) or 0.1  # as the page has it
            assert abs(round(value / grain) * grain - value) < 1e-12, f"{node} {name}: {value} is rounded"
    assert {word for word in typed if any(name.endswith(word) for _, name, _ in found)} == set(typed)
