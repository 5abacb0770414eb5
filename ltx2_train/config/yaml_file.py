"""YAML, of which nothing is lost: a key that stands twice is refused, as the reader would take the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ConfigError


def read_yaml(path: Path, text: str) -> Any:
    """What `text`, that of the file at `path`, holds. Raises ConfigError where it is no YAML, or says a thing twice."""
    try:
        import yaml
    except ImportError:
        raise ConfigError(f"{path} is YAML, which needs the package pyyaml. Install it: pip install pyyaml") from None
    try:
        if (top := yaml.compose(text, yaml.SafeLoader)) is not None:
            _require_plain_keys(yaml, path, top)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None


def _require_plain_keys(yaml: Any, path: Path, top: Any) -> None:
    """Raise ConfigError where a key below the node `top` stands twice, of which the reader takes the last without a
    word, or is no text: of `1` and `true` it takes one for both."""
    nodes, known = [top], set[int]()
    while nodes:
        node = nodes.pop()
        if id(node) in known or isinstance(node, yaml.ScalarNode):
            continue
        known.add(id(node))
        if not isinstance(node, yaml.MappingNode):
            nodes += node.value
            continue
        seen: dict[str, tuple[int, Any]] = {}
        for key_node, value_node in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if key_node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise ConfigError(f"{path}: line {line}: the key {key} is no name. Put it in quotes, or take it out.")
            if key in seen:
                raise ConfigError(
                    f"{path}: {key} stands twice in one section, in lines {seen[key][0]} and {line}: "
                    f"{_said(seen[key][1])} and {_said(value_node)}. Keep one."
                )
            seen[key] = line, value_node
        nodes += [value for _, value in seen.values()]


def _said(node: Any) -> str:
    return str(node.value) if isinstance(node.value, str) else "a table or list"
