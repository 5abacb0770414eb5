"""How a LoRA was shown its references, which whoever samples with it has to repeat, and how its file says so."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from ..shapes import floor_frames
from .settings import SWITCHES, AudioReference, Condition, Reference

OF_VIDEO, OF_AUDIO = "video", "audio"
SLOTS = "keyframe_slots"  # of the file of a LoRA: how many its clips had


@dataclass(frozen=True)
class Trained:
    """`downscale`: how many times smaller references were than their clips; `temporal_scale`: how many times fewer
    frames a second they had; `frames`: how many the first had, 0 as many as fit beside the clip, None not known, and
    `more_frames` those behind it. `seconds`: the longest reference sound; `sound`: the switches of all."""

    downscale: int = 1
    temporal_scale: int = 1
    frames: int | None = None
    seconds: float | None = None
    sound: AudioReference = AudioReference()
    more_frames: tuple[int, ...] = ()

    def count(self, clip_frames: int, still: bool, number: int = 0) -> int:
        """How many frames the reference `number` has beside a clip of so many; `still`: it is a picture."""
        frames = self.more_frames[number - 1] if 0 < number <= len(self.more_frames) else self.frames
        if frames is None and still:
            return 1
        return frames or floor_frames(1 + (clip_frames - 1) // self.temporal_scale)

    def metadata(self) -> dict[str, Any]:
        """What the file of a LoRA with a reference in the picture says of it.

        `reference_downscale_factor` is what the IC-LoRA loader of ComfyUI reads; the names beside it are those of the
        official and of the community trainer.
        """
        about: dict[str, Any] = {
            "reference_downscale_factor": self.downscale,
            "reference_spatial_scale_factor": self.downscale,
            "reference_temporal_scale_factor": self.temporal_scale,
            "reference_frames": self.frames,
            "ss_reference_downscale_factor": self.downscale,
        }
        return about | ({"more_reference_frames": list(self.more_frames)} if self.more_frames else {})

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> Trained | None:
        """What the metadata of a LoRA say; None where they say nothing of references."""
        told = [key for key in ("reference_downscale_factor", "ss_reference_downscale_factor") if key in metadata]
        sound = _sound_of(metadata.get("conditions"))
        if not told and sound is None:
            return None
        more = re.findall(r"\d+", metadata.get("more_reference_frames", ""))
        found = cls(
            downscale=_number(metadata.get(told[0])) if told else 1,
            temporal_scale=_number(metadata.get("reference_temporal_scale_factor")),
            frames=_number(metadata["reference_frames"], 0) if "reference_frames" in metadata else None,
            more_frames=tuple(_number(text, 0) for text in more),
        )
        return found if sound is None else replace(found, sound=sound)


def condition_tables(streams: Mapping[str, Sequence[Condition]]) -> list[dict[str, Any]]:
    """The conditions of each stream as plain tables, for metadata: what is at its default is left out."""
    tables: list[dict[str, Any]] = []
    for stream, conditions in streams.items():
        for one in conditions:
            kind = one.model_dump(mode="json")["type"]
            tables.append({"stream": stream, "type": kind, **one.model_dump(mode="json", exclude_defaults=True)})
    return tables


def _sound_of(conditions: str | None) -> AudioReference | None:
    """The switches of the reference sound that `condition_tables` wrote; None where there is none."""
    try:
        tables = json.loads(conditions or "[]")
        found = [one for one in tables if one.get("stream") == OF_AUDIO and one.get("type") == "reference"]
        return AudioReference(**{key: found[0][key] for key in SWITCHES if key in found[0]}) if found else None
    except (ValueError, TypeError, AttributeError, ValidationError):
        return None


def _number(text: str | None, lowest: int = 1) -> int:
    """A whole number of metadata, which some programs write as 2.0; `lowest` where it is none."""
    try:
        return max(lowest, round(float(text or lowest)))
    except (ValueError, OverflowError):
        return lowest


def slots_of(metadata: Mapping[str, str]) -> int:
    """How many keyframe slots the clips had that the LoRA with these metadata learned from."""
    return _number(metadata.get(SLOTS), 0)


def references_of(conditions: Sequence[Condition]) -> list[Reference]:
    """The conditions of a picture that show references: the first shows the first of a sample, and so on."""
    return [one for one in conditions if isinstance(one, Reference)]


def reference_sounds_of(conditions: Sequence[Condition]) -> list[AudioReference]:
    """The conditions of a sound that play references: the first plays the first of a sample, and so on."""
    return [one for one in conditions if isinstance(one, AudioReference)]
