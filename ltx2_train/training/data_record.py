"""What a run was trained on: a short mark of each sample's media and captions, kept in its folder.

Which samples there are is part of what the run is (`identity`). What they hold may be changed under the same names
between two starts, or the caches made anew by another text encoder or VAE: the run goes on with it, and it is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import TrainerError
from ..feed.loader import TrainingSet
from ..files import digest, parse_json
from ..toml import read_toml
from ..weights.fingerprint import same_weights

DATA_RECORD = "data.json"  # {"media": {sample: mark}, "captions": {sample: mark}, "encoders": {name: fingerprint}}
SHOWN = 3  # names


def data_record(data: TrainingSet) -> dict[str, dict[str, str]]:
    """The marks of the samples of `data`, also of those for validation; none of what caches of others do not say."""
    media, captions = {}, {}
    for sample in (*data.samples, *data.validation):
        origins = [data.origins.get(path, "") for path in sample.paths]
        if any(origins):
            media[sample.key] = digest(*origins)
        captions[sample.key] = digest(*sample.captions)
    recipe = data.recipe
    encoders = {
        "the text encoder": recipe.text.encoder,
        "the text projection": recipe.text.checkpoint,
        "the video VAE": recipe.video_encoder,
        "the audio VAE": recipe.audio_vae,
    }
    return {"media": media, "captions": captions, "encoders": {name: one for name, one in encoders.items() if one}}


def changed_data(folder: Path, data: TrainingSet) -> list[str]:
    """What of `data` is not as the run in `folder` has recorded it: "the media of a, b and 2 more", "the text encoder".
    Nothing where no record can be read."""
    then = _recorded(folder)
    return [words for what, marks in data_record(data).items() if (words := _changed(what, then, marks))]


def lost_words(folder: Path, tables: Iterable[str] = ()) -> str:
    """A sentence where the run in `folder` has no record of its data, or of the settings in the files `tables`, that
    can be read; empty where it has."""
    lost = {name: "settings" for name in tables if not _is_table(folder / name)}
    if not isinstance(_recorded(folder), dict):
        lost[DATA_RECORD] = "media and captions"
    if not lost:
        return ""
    are, what = "is" if len(lost) == 1 else "are", " and ".join(dict.fromkeys(lost.values()))
    return (
        f"{' and '.join(lost)} of {folder.name} {are} gone or damaged, so whether {what} were changed since the run "
        "was last started cannot be told."
    )


def _is_table(path: Path) -> bool:
    try:
        return bool(read_toml(path))
    except TrainerError:
        return False


def _recorded(folder: Path) -> object:
    try:
        return parse_json((folder / DATA_RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, TrainerError):
        return None


def _changed(what: str, then: object, marks: dict[str, str]) -> str:
    before = then.get(what) if isinstance(then, dict) else None
    if not isinstance(before, dict):
        return ""
    if what == "encoders":
        return ", ".join(key for key, mark in marks.items() if key in before and not same_weights(before[key], mark))
    names = [key for key, mark in marks.items() if before.get(key, mark) != mark]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"the {what} of {', '.join(names[:SHOWN])}{more}" if names else ""
