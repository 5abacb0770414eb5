"""What was sent to ComfyUI for the nodes of this pack: which of them there are, and what none of them could use.

ComfyUI drops an input that a node does not have without a word, and so a number below another choice than the one that
is made; and it makes a value fit: a text of null is "None", a switch of "false" is on, 2.7 steps are 2. A prompt that
was written by hand may have any of them. The page sends more than a node takes, too: the player below a
node that has shown a video, and what other packs put on the nodes of all. Nobody wrote these, so they are passed over.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

CHOICE = "COMFY_DYNAMICCOMBO_V3"
_SOME = 3  # choices that a message names
_WIDGETS = ("STRING", "INT", "FLOAT", "BOOLEAN", "COMBO")
_NOTE = "ltx2_train"  # beside the title of a node in a prompt
_MISSPELT = 0.8  # likeness of names from which on one is meant for the other
# what the page, older ones and other packs put on a node beside its inputs, under names that an input could have
_OF_THE_PAGE = {"audioUI", "control_after_generate", "refresh", "speak_and_recognation", "upload", "videopreview"}
_nodes: list[Any] = []


def look_at(nodes: Iterable[Any]) -> None:
    """Have the prompts of these nodes looked at."""
    _nodes.extend(nodes)


def titles(prompt: Mapping[str, Any]) -> frozenset[str]:
    """The titles of our nodes in `prompt`."""
    return frozenset(schema.display_name for schema, _ in _ours(prompt).values())


def note_values(request: dict[str, Any]) -> dict[str, Any]:
    """Leave in the prompt of a `request`, as it was sent, what is wrong with the values of our nodes: ComfyUI makes
    them fit before anybody else sees them."""
    prompt = request.get("prompt")
    if not isinstance(prompt, dict):  # ComfyUI says so
        return request
    for number, (schema, values) in _ours(prompt).items():
        about = prompt[number].setdefault("_meta", {})
        about.pop(_NOTE, None)
        if faults := list(_misfits(schema, values)):
            about[_NOTE] = faults
    return request


def unknown(prompt: Mapping[str, Any], by_page: bool = False) -> str:
    """What of `prompt` our nodes have no input or no use for, by name; "" where there is nothing.

    `by_page`: the page sent it, where every name is that of a widget.
    """
    wrong = [
        f"{schema.display_name} (node {number}): {text}"
        for number, (schema, values) in _ours(prompt).items()
        for text in dict.fromkeys(
            (*_noted(prompt[number]), *_misfits(schema, values), *_unknown(schema, values, by_page))
        )
    ]
    return "The prompt gives what would not be used:\n  " + "\n  ".join(wrong) if wrong else ""


@functools.cache
def _schemas() -> dict[str, Any]:
    """Id of each node of this pack -> its schema."""
    return {(schema := node.define_schema()).node_id: schema for node in _nodes}


def _ours(prompt: Mapping[str, Any]) -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """Number of each of our nodes in `prompt` -> its schema and what it is given."""
    found = {}
    for number, node in prompt.items():
        if not isinstance(node, Mapping):  # ComfyUI says so
            continue
        schema = _schemas().get(str(node.get("class_type", "")))
        if schema is not None:
            found[number] = schema, node.get("inputs") or {}
    return found


def _noted(node: Mapping[str, Any]) -> list[str]:
    about = node.get("_meta")
    return about.get(_NOTE, []) if isinstance(about, Mapping) else []


def _misfits(schema: Any, values: Mapping[str, Any]) -> Iterator[str]:
    below_choices = {
        f"{choice.id}.{below.id}": below
        for choice in schema.inputs
        if choice.io_type == CHOICE
        for option in choice.options
        for below in option.inputs
    }
    for name, one in ({one.id: one for one in schema.inputs} | below_choices).items():
        if name in values and (fault := _fault(one.io_type, values[name])):
            yield f"{name} {fault}"


def _unknown(schema: Any, values: Mapping[str, Any], by_page: bool) -> Iterator[str]:
    known = {one.id for one in schema.inputs}
    others: dict[str, list[str]] = {}  # input below a choice that is not made -> what goes with it
    for choice in (one for one in schema.inputs if one.io_type == CHOICE):
        for option in choice.options:
            for below in option.inputs:
                others.setdefault(f"{choice.id}.{below.id}", []).append(f"{choice.id} = {option.key}")
        known |= {name for name, goes in others.items() if f"{choice.id} = {values.get(choice.id)}" in goes}
        if values.get(choice.id) not in [option.key for option in choice.options]:  # it says so itself
            known |= {name for name in values if name.startswith(f"{choice.id}.")}
    for name, value in values.items():
        if name in known or isinstance(value, Mapping):  # other packs write tables of their own into the nodes of all
            continue
        if name in others:
            choice = name.partition(".")[0]
            goes = " or ".join(others[name][:_SOME]) + (" or others" if len(others[name]) > _SOME else "")
            yield f"{name} goes with {goes}, and {choice} is {values.get(choice)}. Leave it out, or change {choice}."
        elif not _added(name, known, by_page):
            near = difflib.get_close_matches(name, known, 1, 0.5)
            yield f"it has no input {name}. {f'Did you mean {near[0]}?' if near else 'Leave it out.'}"


def _fault(kind: str, value: Any) -> str:
    """What is wrong with the value of an input of the type `kind`, which ComfyUI would make fit or hand on as it is;
    "" where nothing is. A list is a wire, and the end of it is looked at by ComfyUI."""
    shown, no_number = json.dumps(value, ensure_ascii=False)[:60], isinstance(value, bool)
    if isinstance(value, list):
        return ""
    if value is None:
        return "is null. Leave it out, or give it a value."
    if kind not in _WIDGETS:
        return "" if kind.startswith("COMFY_") else f"is {shown}, and takes a wire alone."
    if kind == "STRING" and isinstance(value, (bool, Mapping)):
        return f"is {shown}. Expected a text."
    if kind == "BOOLEAN" and value not in (True, False):
        return f"is {shown}. Expected true or false."
    if (kind == "INT" and (no_number or (isinstance(value, float) and value % 1))) or (kind == "FLOAT" and no_number):
        return f"is {shown}. Expected {'a whole number' if kind == 'INT' else 'a number'}."
    return ""


def _added(name: str, known: set[str], by_page: bool) -> bool:
    """Whether `name` is a widget that the page or another pack put beside the inputs `known`."""
    if name in _OF_THE_PAGE:
        return True
    of_an_input = all(part.isidentifier() for part in name.split("."))  # unlike video-preview or $$node-text-preview
    return (by_page or not of_an_input) and not difflib.get_close_matches(name, known, 1, _MISSPELT)
