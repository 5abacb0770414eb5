"""What travels along the wires between the nodes: paths and settings, never weights.

Whoever needs a model loads it from its handle and lets it go again, so nothing stays on the card between two nodes and
ComfyUI's cache of outputs costs nothing. ComfyUI prints every input of a node that fails, hence the short texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .host import io

Model = io.Custom("LTX2T_MODEL")
Dataset = io.Custom("LTX2T_DATASET")
Prepared = io.Custom("LTX2T_PREPARED")
Run = io.Custom("LTX2T_RUN")
Options = io.Custom("LTX2T_OPTIONS")
Conditions = io.Custom("LTX2T_CONDITIONS")
Checkpoints = io.Custom("LTX2T_CHECKPOINTS")


@dataclass(frozen=True)
class BaseModel:
    """A base that was probed: `tables` are the groups of settings that are its own, `label` says what it is."""

    tables: Mapping[str, Any]
    label: str

    def __repr__(self) -> str:
        return f"<{self.label}>"


@dataclass(frozen=True)
class ClipFolder:
    """Clips or recordings: `entries` are `[[datasets]]` tables without size and caches, `count` their media files,
    `noun` what these are called. `folder` is that of the first entry; `label` says where they lie if it does not.
    `seen` is how many files one pass over the data shows, where that is not `count` times the repeats."""

    folder: Path
    entries: tuple[Mapping[str, Any], ...]
    count: int
    noun: str = "clips"
    label: str = ""
    seen: int | None = None

    @property
    def weight(self) -> int:
        """Files seen in one pass, each as often as it is repeated."""
        return self.count * int(self.entries[0].get("num_repeats", 1)) if self.seen is None else self.seen

    @property
    def title(self) -> str:
        return self.label or self.folder.name

    def __repr__(self) -> str:
        return f"<{self.count} {self.noun} in {self.title}>"


@dataclass(frozen=True)
class PreparedDataset:
    """A dataset with its caches: the dataset file, and the settings the caches were made with."""

    config: Path
    tables: Mapping[str, Any]
    summary: str = field(default="", compare=False)

    def __repr__(self) -> str:
        return f"<dataset {self.config.parent.name}>"


@dataclass(frozen=True)
class GivenSettings:
    """What a run is given beside the text: the groups `video` and `audio` of its settings."""

    tables: Mapping[str, Any]

    def describe(self) -> str:
        """ "video: reference, first_frame (20%) | audio: whole"."""
        parts = []
        for stream, table in self.tables.items():
            named = [_condition(one) for one in table.get("conditions", ())]
            parts.append(f"{stream}: {', '.join(named if table.get('generated', True) else ['whole', *named])}")
        return " | ".join(parts)

    def __repr__(self) -> str:
        return f"<{self.describe()}>"


@dataclass(frozen=True)
class FinishedRun:
    """A trained run: its folder, its newest LoRA and the settings it was trained with.

    `lora` is None where the run trained the weights themselves: its settings name the checkpoint as the base then.
    """

    folder: Path
    lora: Path | None
    step: int
    tables: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"<run {self.folder.name}, step {self.step}>"


@dataclass(frozen=True)
class PickedCheckpoints:
    """LoRAs that are compared, by their labels: the first run they are of, and the settings it was trained with."""

    folder: Path
    loras: Mapping[str, Path]
    tables: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"<{len(self.loras)} checkpoints of {self.folder.name}>"


@dataclass(frozen=True)
class GivenOptions:
    """Settings of option nodes: the titles of the nodes, and the tables of what differs from the defaults.

    `modes` are those of the base that a recipe among them is for, by its title and choice. `by` is who of several says
    each setting.
    """

    groups: tuple[str, ...]
    tables: Mapping[str, Any]
    modes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    by: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<{', '.join(self.groups)}>"


def _condition(table: Mapping[str, Any]) -> str:
    chance = float(table.get("probability", 1.0))
    return str(table["type"]) if chance == 1 else f"{table['type']} ({chance:.0%})"
