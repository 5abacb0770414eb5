"""The vision-language models and Whispers on this machine, as the choices of a widget."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..ltx2_train.errors import ConfigError
from . import host

NONE = "(none)"


def describers() -> list[str]:
    """Names of the folders whose model looks at pictures and writes."""
    return _names(lambda config: "vision_config" in config and "For" in " ".join(config.get("architectures") or ()))


def listeners() -> list[str]:
    """Names of the folders that hold a Whisper."""
    return _names(lambda config: config.get("model_type") == "whisper")


def chosen_model(widget: str, name: str, path: str) -> Path | None:
    """The folder that `widget`, or the widget for a path beside it, names. Raises ConfigError where it is not there."""
    text = path.strip().strip('"')
    if text:
        place = Path(text).expanduser()
        if not place.is_absolute():
            raise ConfigError(
                f"{widget}_path: {text} is no full path. Write all of it, or choose a name in `{widget}`."
            )
        if not (place / "config.json").is_file():
            raise ConfigError(f"{widget}_path: {place} holds no config.json. Name a folder in Hugging Face form.")
        return place
    if name in ("", NONE):
        return None
    if (found := host.model_folders().get(name)) is None:
        raise ConfigError(
            f"{widget}: {name} is not below ComfyUI's models folder. Press R, and choose one of the list."
        )
    return found


def _names(fits: Callable[[Mapping[str, Any]], bool]) -> list[str]:
    return [name for name, folder in host.model_folders().items() if fits(_config(folder / "config.json"))]


def _config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # of another program, or damaged: not a choice
        return {}
    return config if isinstance(config, dict) else {}
