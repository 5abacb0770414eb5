"""Add Reference: one more reference for each target of Load Training Pairs, from a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..ltx2_train import DatasetSettings
from ..ltx2_train.errors import ConfigError
from ..ltx2_train.settings import parse
from . import handles, host, source_folder
from .entries import media_folder, media_kind
from .host import io
from .pairs import Targets, named_alone, of_kind
from .widgets import Form, Setting

TITLE = "Add Reference"
# the setting of a first reference and that of those behind it
FURTHER = {
    "reference_directory": "more_reference_directories",
    "reference_audio_directory": "more_reference_audio_directories",
}
FORM = Form(DatasetSettings, visible=[Setting("reference_frames")], nodes=(TITLE,))


class AddReference(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_AddReference",
            display_name=TITLE,
            category="LTX-2 training",
            description="Gives each target of Load Training Pairs a further reference: a second subject, a control "
            "video beside a face, another voice. Each needs a condition of type reference of its own. Chain several.",
            search_aliases=["reference", "subjects", "several", "pairs", "ic-lora", "in-context", "train", "voice"],
            inputs=[
                handles.Dataset.Input("pairs", tooltip="From Load Training Pairs, or another Add Reference."),
                *source_folder.folder_inputs("references", "reference_"),
                *FORM.visible_inputs(),
            ],
            outputs=source_folder.outputs("Number of targets that have all their references."),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, reference_folder: str | None, reference_path: str | None, **given: Any) -> Any:
        return source_folder.fingerprint(reference_folder, reference_path, True)

    @classmethod
    @FORM.fill
    def execute(
        cls, pairs: handles.ClipFolder, reference_folder: str, reference_path: str, **settings: Any
    ) -> io.NodeOutput:
        with host.training_job(TITLE):
            place = source_folder.chosen_folder(reference_folder, reference_path, "reference_")
            if {media_folder(entry) for entry in pairs.entries} != {pairs.folder}:
                raise ConfigError(
                    f"`pairs` is made of several folders. Connect {TITLE} behind Load Training Pairs, before the "
                    "datasets are combined."
                )
            targets = Targets(pairs.folder, bool(pairs.entries[0].get("recursive")))
            found, lone = targets.settings("reference", place), targets.alone(place)
            frames = FORM.tables(settings)["reference_frames"]
            entries = tuple(_with_more(entry, found, frames) for entry in pairs.entries)
            for entry in entries:
                parse(DatasetSettings, entry, TITLE)
            count = max(0, pairs.count - len(lone))
            told = [f"{count} {pairs.noun} with a reference in {place.name}", *named_alone("without it", lone)]
            host.ComfyEvents(cls.hidden.unique_id).finish("finished", " | ".join(told))
            return io.NodeOutput(handles.ClipFolder(pairs.folder, entries, count, pairs.noun, pairs.label), count)


def _with_more(entry: Mapping[str, Any], found: dict[str, str], frames: int) -> dict[str, Any]:
    """`entry` with the folders `found`, as far as its kind of media can have them, behind what it has."""
    out = dict(entry)
    for first, place in of_kind(media_kind(entry), found).items():
        seen = first == "reference_directory"
        if first not in out:
            out |= {first: place, "reference_frames": frames} if seen else {first: place}
            continue
        out[FURTHER[first]] = [*out.get(FURTHER[first], ()), place]
        if seen:
            out["more_reference_frames"] = [*out.get("more_reference_frames", ()), frames]
    return out
