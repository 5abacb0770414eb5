"""How a LoRA was shown its references, which whoever samples with it has to repeat, and how its file says so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from ..shapes import floor_frames
from .settings import AudioReference, Condition, Reference

OF_VIDEO, OF_AUDIO = "video", "audio"
_FLAGS = ("negative_positions", "hide_from_video", "hide_text")


@dataclass(frozen=True)
class Trained:
    """`downscale`: how many times smaller a reference was than its clip; `temporal_scale`: how many times fewer frames
    a second it had; `frames`: how many, 0 as many as fit beside the clip, None not known. `seconds`: the longest
    reference sound; `sound`: its switches."""

    downscale: int = 1
    temporal_scale: int = 1
    frames: int | None = None
    seconds: float | None = None
    sound: AudioReference = AudioReference()

    def count(self, clip_frames: int, still: bool) -> int:
        """How many frames a reference has beside a clip of so many; `still`: it is a picture."""
        if self.frames is None and still:
            return 1
        return self.frames or floor_frames(1 + (clip_frames - 1) // self.temporal_scale)

    def metadata(self) -> dict[str, Any]:
        """What the file of a LoRA with a reference in the picture says of it.

        `reference_downscale_factor` is what the IC-LoRA loader of ComfyUI reads; the names beside it are those of the
        official and of the community trainer.
        """
        return {
            "reference_downscale_factor": self.downscale,
            "reference_spatial_scale_factor": self.downscale,
            "reference_temporal_scale_factor": self.temporal_scale,
            "reference_frames": self.frames,
            "ss_reference_downscale_factor": self.downscale,
        }

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> Trained | None:
        """What the metadata of a LoRA say; None where they say nothing of references."""
        told = [key for key in ("reference_downscale_factor", "ss_reference_downscale_factor") if key in metadata]
        sound = _sound_of(metadata.get("conditions"))
        if not told and sound is None:
            return None
        found = cls(
            downscale=_number(metadata.get(told[0])) if told else 1,
            temporal_scale=_number(metadata.get("reference_temporal_scale_factor")),
            frames=_number(metadata["reference_frames"], 0) if "reference_frames" in metadata else None,
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
        return AudioReference(**{key: found[0][key] for key in _FLAGS if key in found[0]}) if found else None
    except (ValueError, TypeError, AttributeError, ValidationError):
        return None


def _number(text: str | None, lowest: int = 1) -> int:
    """A whole number of metadata, which some programs write as 2.0; `lowest` where it is none."""
    try:
        return max(lowest, round(float(text or lowest)))
    except (ValueError, OverflowError):
        return lowest


def reference_of(conditions: Sequence[Condition]) -> Reference | None:
    """The condition of a picture that shows references, or None."""
    return next((one for one in conditions if isinstance(one, Reference)), None)


def reference_sound_of(conditions: Sequence[Condition]) -> AudioReference | None:
    """The condition of a sound that plays references, or None."""
    return next((one for one in conditions if isinstance(one, AudioReference)), None)
