"""Load Training Pairs: a folder of targets, and one of references of the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train import DatasetSettings
from ..ltx2_train.errors import DataError
from ..ltx2_train.settings import parse
from . import handles, host, source_folder
from .host import io
from .widgets import Form, Setting

TITLE = "Load Training Pairs"

FORM = Form(
    DatasetSettings,
    visible=[
        Setting("trigger_word"),
        Setting("target_fps", "fps"),
        Setting("reference_frames"),
        Setting("reference_downscale"),
    ],
    advanced=[
        Setting("caption_extension"),
        Setting("num_repeats", "repeats"),
        Setting("recursive"),
        Setting("source_fps"),
    ],
    nodes=(TITLE,),
)


class LoadTrainingPairs(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_LoadTrainingPairs",
            display_name=TITLE,
            category="LTX-2 training",
            description="Chooses a folder of videos or images to learn to make, and a folder of references of the same "
            "names to make them from.",
            search_aliases=["dataset", "pairs", "reference", "control", "edit", "ic-lora", "in-context", "train"],
            inputs=[
                *source_folder.inputs("targets"),
                *source_folder.inputs("references", "reference_"),
                *FORM.visible_inputs(),
                *FORM.advanced_inputs(),
            ],
            outputs=source_folder.outputs("Number of targets that have a reference."),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        folder: str | None,
        path: str | None,
        reference_folder: str | None,
        reference_path: str | None,
        recursive: bool | None = False,
        **settings: Any,
    ) -> Any:
        marks = [
            source_folder.fingerprint(folder, path, recursive),
            source_folder.fingerprint(reference_folder, reference_path, recursive),
        ]
        # a NaN inside a list is equal to itself, and would hide what is not known
        return next((mark for mark in marks if isinstance(mark, float)), marks)

    @classmethod
    @FORM.fill
    def execute(
        cls, folder: str, path: str, reference_folder: str, reference_path: str, **settings: Any
    ) -> io.NodeOutput:
        with host.training_job(TITLE):
            root = source_folder.chosen(folder, path)
            references = source_folder.chosen(reference_folder, reference_path, "reference_")
            shared = FORM.tables(settings)
            source_folder.ending(shared)
            kinds = source_folder.media(root, shared["recursive"], ("video", "image"))
            found = tuple(
                {f"{kind}_directory": str(root), "reference_directory": str(references), **shared} for kind in kinds
            )
            for entry in found:
                parse(DatasetSettings, entry, "Load Training Pairs")
            total = sum(kinds.values())
            count = total - len(lone := _alone(root, references, shared["recursive"]))
            if not count:
                raise DataError(
                    f"No file in {references} is called as one in {root}. A reference has the name of its target, "
                    f"whatever its ending: for {lone[0].name} it is {lone[0].stem}.png or {lone[0].stem}.mp4."
                )
            told = f"{count} pairs in {root.name}" + (
                f" | without a reference: {', '.join(sorted(path.name for path in lone)[:5])}"
                f"{' ...' if len(lone) > 5 else ''}"
                if lone
                else ""
            )
            host.ComfyEvents(cls.hidden.unique_id).finish("finished", told)
            return io.NodeOutput(handles.ClipFolder(root, found, count, "pairs"), count)


def _alone(root: Path, references: Path, recursive: bool) -> list[Path]:
    """Targets without a reference of their name, at their own place below the folder or at its top."""
    pictures = core.MEDIA_SUFFIXES["video"] | core.MEDIA_SUFFIXES["image"]

    def inside(folder: Path) -> list[Path]:
        return [
            path for path in (folder.rglob("*") if recursive else folder.iterdir()) if path.suffix.lower() in pictures
        ]

    names = {path.relative_to(references).with_suffix("").as_posix().casefold() for path in inside(references)}
    return [
        path
        for path in sorted(inside(root))
        if path.relative_to(root).with_suffix("").as_posix().casefold() not in names
        and path.stem.casefold() not in names
    ]
