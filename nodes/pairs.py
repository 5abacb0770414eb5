"""Load Training Pairs: a folder of targets, with references and masks of the same names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train import DatasetSettings
from ..ltx2_train.errors import DataError
from ..ltx2_train.files import is_hidden
from ..ltx2_train.settings import parse
from . import handles, host, source_folder
from .host import io
from .source_folder import NO_FOLDER
from .widgets import Form, Setting

TITLE = "Load Training Pairs"
PICTURES = ("video", "image")
ALL = (*PICTURES, "audio")
SPANS = (".json",)  # masks of sound, as spans in seconds

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
        Setting("reference_temporal_scale"),
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
            description="Chooses a folder of videos, images or recordings to learn to make, and a folder of references "
            "of the same names to make them from: videos or images, sounds, or both. Masks may go with them.",
            search_aliases=[
                "dataset",
                "pairs",
                "reference",
                "control",
                "edit",
                "ic-lora",
                "in-context",
                "train",
                "mask",
                "voice",
            ],
            inputs=[
                *source_folder.folder_inputs("targets"),
                *source_folder.folder_inputs("references", "reference_"),
                *FORM.visible_inputs(),
                *FORM.advanced_inputs(),
                *source_folder.folder_inputs("masks", "mask_", advanced=True),
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
        mask_folder: str | None = NO_FOLDER,
        mask_path: str | None = "",
        **settings: Any,
    ) -> Any:
        places = [(folder, path), (reference_folder, reference_path), (mask_folder, mask_path)]
        marks = [
            source_folder.fingerprint(place, text, recursive)
            for place, text in places
            if place is None or text is None or source_folder.named(place, text)
        ]
        # a NaN inside a list is equal to itself, and would hide what is not known
        return next((mark for mark in marks if isinstance(mark, float)), marks)

    @classmethod
    @FORM.fill
    def execute(
        cls,
        folder: str,
        path: str,
        reference_folder: str,
        reference_path: str,
        mask_folder: str = NO_FOLDER,
        mask_path: str = "",
        **settings: Any,
    ) -> io.NodeOutput:
        with host.training_job(TITLE):
            root = source_folder.chosen_folder(folder, path)
            masks = references = None
            if source_folder.named(mask_folder, mask_path):
                masks = source_folder.chosen_folder(mask_folder, mask_path, "mask_")
            if masks is None or source_folder.named(reference_folder, reference_path):
                references = source_folder.chosen_folder(reference_folder, reference_path, "reference_")
            shared = FORM.tables(settings)
            source_folder.ending(shared)
            targets = Targets(root, shared["recursive"])
            beside: dict[str, str] = {}
            told, count = [], sum(targets.kinds.values())
            if references is not None:
                beside |= targets.settings("reference", references)
                lone = targets.alone(references)
                count -= len(lone)
                told += named_alone("without a reference", lone)
            if masks is not None:
                beside |= targets.settings("mask", masks)
                told += named_alone("without a mask", targets.alone(masks))
            entries = tuple(
                {f"{kind}_directory": str(root), **of_kind(kind, beside), **shared} for kind in targets.kinds
            )
            for entry in entries:
                parse(DatasetSettings, entry, TITLE)
            noun = "masked clips" if references is None else "pairs"
            host.ComfyEvents(cls.hidden.unique_id).finish(
                "finished", " | ".join([f"{count} {noun} in {root.name}", *told])
            )
            return io.NodeOutput(handles.ClipFolder(root, entries, count, noun), count)


class Targets:
    """The files of the folder of targets. Recordings count where there are no pictures, whose sound they may be."""

    def __init__(self, root: Path, recursive: bool) -> None:
        self.root, self.recursive = root, recursive
        of_sound = not any(self._inside(root, PICTURES)) and any(self._inside(root, ("audio",)))
        self.kinds = source_folder.media(root, recursive, ("audio",) if of_sound else PICTURES)
        self.files = sorted(self._inside(root, tuple(self.kinds)))

    def settings(self, what: str, place: Path) -> dict[str, str]:
        """The settings that name `place`, a folder of references or masks, by what it holds under the names of targets.

        Raises DataError where it holds nothing that the targets could have.
        """
        prefix = "reference" if what == "reference" else "mask"
        of_sound = "reference_audio_directory" if what == "reference" else "audio_mask_directory"
        found: dict[str, str] = {}
        if set(self.kinds) != {"audio"} and self._any(place, self._inside(place, PICTURES)):
            found[f"{prefix}_directory"] = str(place)
        spans = SPANS if what == "mask" else ()
        if set(self.kinds) != {"image"} and self._any(place, self._inside(place, ("audio",), spans)):
            found[of_sound] = str(place)
        if found:
            return found
        name, stem = self.files[0].name, self.files[0].stem
        called = f"{stem}.wav" if set(self.kinds) == {"audio"} else f"{stem}.png or {stem}.mp4"
        if "video" in self.kinds:
            called += f", and {stem}.wav for its sound"
        raise DataError(
            f"No file in {place} is called as one in {self.root}. A {what} has the name of its target, whatever its "
            f"ending: for {name} it is {called}."
        )

    def alone(self, place: Path) -> list[Path]:
        """Targets without a file of their name in `place`, at their own place below the folder or at its top."""
        names = {_name(place, path) for path in self._inside(place, ALL, SPANS)}
        return [path for path in self.files if not {_name(self.root, path), path.stem.casefold()} & names]

    def _any(self, place: Path, paths: Iterable[Path]) -> bool:
        names = {_name(place, path) for path in paths}
        return any({_name(self.root, path), path.stem.casefold()} & names for path in self.files)

    def _inside(self, folder: Path, kinds: Collection[str], more: Collection[str] = ()) -> Iterator[Path]:
        """The files of `folder` of these kinds of media, and those with other endings `more`."""
        endings = set(more).union(*(core.MEDIA_SUFFIXES[kind] for kind in kinds))
        found = folder.rglob("*") if self.recursive else folder.iterdir()
        return (path for path in found if path.suffix.lower() in endings and not is_hidden(path, folder))


def _name(folder: Path, path: Path) -> str:
    """The name of a file as seen from `folder`, without its ending."""
    return path.relative_to(folder).with_suffix("").as_posix().casefold()


def of_kind(kind: str, beside: dict[str, str]) -> dict[str, str]:
    """What of `beside` targets of `kind` can have: images have no sound, recordings no picture."""
    if kind == "video":
        return beside
    return {key: place for key, place in beside.items() if ("audio" in key) == (kind == "audio")}


def named_alone(what: str, lone: list[Path]) -> list[str]:
    if not lone:
        return []
    return [f"{what}: {', '.join(sorted(path.name for path in lone)[:5])}{' ...' if len(lone) > 5 else ''}"]
