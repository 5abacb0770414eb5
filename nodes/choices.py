"""A choice, and below it the settings of what is chosen: the widget, and the nodes of `options` that have one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from ..ltx2_train import RunConfig
from ..ltx2_train.errors import ConfigError
from . import handles, host, options
from .host import io
from .widgets import Form, Setting, merged


class Choices:
    """One dynamic widget: for each choice the forms that are shown below it, none with a box of several lines, which
    would keep, unseen, what it held before another choice. `setting` is the path of what the choice
    itself sets, where it sets something that another node shows."""

    def __init__(self, widget: str, tooltip: str, forms: Mapping[str, Sequence[Form]], setting: str = "") -> None:
        self.widget = widget
        self.tooltip = tooltip
        self.forms = forms
        self.setting = setting

    def input(self) -> Any:
        """The widget. Its first choice is the one that stands there at first."""
        shown = [
            io.DynamicCombo.Option(
                name, [one for form in forms for one in (*form.visible_inputs(), *form.advanced_inputs())]
            )
            for name, forms in self.forms.items()
        ]
        extra = {"setting": self.setting} if self.setting else None
        return io.DynamicCombo.Input(self.widget, options=shown, tooltip=self.tooltip, extra_dict=extra)

    @property
    def paths(self) -> set[str]:
        """The settings that it shows."""
        below = {one.path for forms in self.forms.values() for form in forms for one in form.settings}
        return below | {self.setting} if self.setting else below

    def chosen(self, values: Mapping[str, Any] | None) -> str:
        """The choice in `values`, of which nothing is missing. Raises ConfigError."""
        values = values or {}
        name = values.get(self.widget)
        if not isinstance(name, str) or name not in self.forms:
            raise ConfigError(f"{self.widget}: {name!r} is none of {', '.join(self.forms)}.")
        missing = [one.id for form in self.forms[name] for one in form.visible if one.id not in values]
        if missing:
            raise ConfigError(f"{self.widget}: {name} needs {', '.join(missing)}.")
        return name

    def tables(self, values: Mapping[str, Any], name: str) -> dict[str, Any]:
        """The settings below the choice `name`, all as they stand there."""
        return merged(*(form.tables(values) for form in self.forms[name]))

    def shown_by(self, node: str) -> None:
        """Have errors of the core speak of these widgets of `node`."""
        for forms in self.forms.values():
            for form in forms:
                for one in form.settings:
                    one.shown_by(node)
        if self.setting:
            Setting(self.setting, self.widget).shown_by(node)


def handed_over(widget: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a prompt as ComfyUI hands them to the node: "recipe.rank" stands below `recipe`, beside itself."""
    handed: dict[str, Any] = {widget: {}}
    for name, value in values.items():
        first, _, inner = name.partition(".")
        if first == widget:
            handed[widget][inner or widget] = value
        else:
            handed[name] = value
    return handed


class ChoiceNode(io.ComfyNode):
    """A node of `options` with one choice, joined to the options that come in. What stands below the choice is used as
    it stands there; of the further settings `REST`, what was changed."""

    ID: ClassVar[str] = ""
    TITLE: ClassVar[str] = ""
    ABOUT: ClassVar[str] = ""
    CATEGORY: ClassVar[str] = "LTX-2 training"
    ALIASES: ClassVar[list[str]] = []
    CHOICES: ClassVar[Choices]
    REST: ClassVar[Form] = Form(RunConfig, [])

    @classmethod
    def schema(cls) -> io.Schema:
        return io.Schema(
            node_id=cls.ID,
            display_name=cls.TITLE,
            category=cls.CATEGORY,
            description=cls.ABOUT,
            search_aliases=["settings", "lora", "train", "ltx", *cls.ALIASES],
            inputs=[
                cls.CHOICES.input(),
                *cls.REST.visible_inputs(),
                handles.Options.Input(
                    "options", optional=True, tooltip="Options nodes, or another recipe, to bring all over one wire."
                ),
                *cls.REST.advanced_inputs(),
            ],
            outputs=[
                handles.Options.Output(
                    "options",
                    display_name="options",
                    tooltip="For `options` of the node that the settings are for, or of another Options node.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def groups(cls) -> Iterable[str]:
        """What the node may be called in a chain, where each stands once."""
        return (cls.TITLE,)

    @classmethod
    def read(cls, chosen: Mapping[str, Any] | None, rest: Mapping[str, Any]) -> handles.GivenOptions:
        """What the choice, its settings and the further ones give. Raises ConfigError."""
        name = cls.CHOICES.chosen(chosen)
        tables = cls.CHOICES.tables(chosen or {}, name)
        return handles.GivenOptions((cls.TITLE,), merged(tables, cls.REST.changed(rest)))

    @classmethod
    def of_prompt(cls, values: Mapping[str, Any]) -> handles.GivenOptions:
        """The same from the widgets of a prompt."""
        handed = handed_over(cls.CHOICES.widget, values)
        return cls.read(handed.pop(cls.CHOICES.widget), handed)

    @classmethod
    def finished(
        cls,
        chosen: Mapping[str, Any] | None,
        before: handles.GivenOptions | None,
        rest: Mapping[str, Any] | None = None,
    ) -> io.NodeOutput:
        with host.training_job(cls.TITLE):
            made = cls.read(chosen, rest or {})
            told = [f"{path.rpartition('.')[2]} {value}" for path, value in options.values_in(made.tables)]
            host.ComfyEvents(cls.hidden.unique_id).finish("finished", ", ".join(told))
            return io.NodeOutput(options.chained(before, made))


def enter(node: type[ChoiceNode], into: tuple[str, ...]) -> None:
    """Have the nodes with these titles take what `node` gives, and read it in a prompt."""
    for group in node.groups():
        options.GOES_INTO[group] = into
    options.READERS[node.ID] = node.of_prompt
