"""What was sent to ComfyUI for the nodes of this pack: which of them there are, and names that none of them knows.

ComfyUI drops an input that a node does not have without a word, and so a number below another choice than the one that
is made. The page sends none; a prompt that was written by hand may.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

CHOICE = "COMFY_DYNAMICCOMBO_V3"
_SOME = 3  # choices that a message names
_nodes: list[Any] = []


def look_at(nodes: Iterable[Any]) -> None:
    """Have the prompts of these nodes looked at."""
    _nodes.extend(nodes)


def titles(prompt: Mapping[str, Any]) -> frozenset[str]:
    """The titles of our nodes in `prompt`."""
    return frozenset(schema.display_name for schema, _ in _ours(prompt).values())


def unknown(prompt: Mapping[str, Any]) -> str:
    """What of `prompt` our nodes have no input for, by name; "" where there is nothing."""
    wrong = [
        f"{schema.display_name} (node {number}): {text}"
        for number, (schema, values) in _ours(prompt).items()
        for text in _unknown(schema, values)
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
        schema = _schemas().get(str(node.get("class_type", "")))
        if schema is not None:
            found[number] = schema, node.get("inputs") or {}
    return found


def _unknown(schema: Any, values: Mapping[str, Any]) -> Iterator[str]:
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
        else:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            yield f"it has no input {name}. {f'Did you mean {near[0]}?' if near else 'Leave it out.'}"
