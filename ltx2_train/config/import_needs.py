"""What a run must say so that it uses all that a dataset file gives: conditions, and the streams that it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..dataset.entry import SOURCE_KEYS

# what a dataset lays beside its media: the stream and the type of the condition for it, and where there are more
_SIDE_DATA = {
    "reference_directory": ("video", "reference", "more_reference_directories"),
    "mask_directory": ("video", "mask", ""),
    "reference_audio_directory": ("audio", "reference", "more_reference_audio_directories"),
    "audio_mask_directory": ("audio", "mask", ""),
}


def needed_settings(data: Mapping[str, Any]) -> dict[str, Any]:
    """Setting -> value, for the table of a dataset file that comes without a run."""
    entries = list(data.get("datasets", ()))
    tables = [data.get("general", {}), *entries]
    conditions: dict[str, list[dict[str, Any]]] = {"video": [], "audio": []}
    for key, (stream, kind, more) in _SIDE_DATA.items():
        if any(table.get(key) for table in tables):
            count = 1 + max(len(table.get(more) or ()) for table in tables)
            conditions[stream] += [{"type": kind}] * count
    needed: dict[str, Any] = {f"{stream}.conditions": given for stream, given in conditions.items() if given}
    sources = {key for entry in entries for key in entry.keys() & {*SOURCE_KEYS}}
    if sources and all(key.startswith("audio_") for key in sources):
        needed["model.mode"] = "audio"
    elif conditions["audio"]:
        needed["model.mode"] = "av"
    return needed
