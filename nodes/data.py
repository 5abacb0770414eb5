"""Load Training Clips and Prepare Dataset: a folder of media, and its caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train import DatasetSettings, RunConfig
from ..ltx2_train.errors import DataError
from ..ltx2_train.files import digest, write_text
from . import entries, handles, host, options, source_folder
from .host import io
from .made import compared, keep_made
from .train import check_ahead
from .widgets import Form, Setting, merged

CLIPS_TITLE, TITLE = "Load Training Clips", "Prepare Dataset"
further_settings = options.given  # `options` is the name of a socket where the nodes run

CLIPS = Form(
    DatasetSettings,
    visible=[Setting("trigger_word"), Setting("target_fps", "fps")],
    advanced=[
        Setting("caption_extension"),
        Setting("num_repeats", "repeats"),
        Setting("recursive"),
        Setting("source_fps"),
        Setting("audio_source"),
        Setting("audio_normalize"),
        Setting("audio_loss_weight"),
        Setting("audio_bucket_strategy"),
        Setting("audio_bucket_interval"),
        Setting("separate_audio_buckets"),
    ],
    nodes=(CLIPS_TITLE,),
)

SHAPE = Form(
    DatasetSettings,
    visible=[
        Setting("resolution", "width", default=512, item=0, step=32, extra={"min": 32, "max": 8192}),
        Setting("resolution", "height", default=512, item=1, step=32, extra={"min": 32, "max": 8192}),
        Setting("target_frames", "frames", default=49, item=0, step=8, extra={"min": 1, "max": 1025}),
        Setting("frame_extraction"),
        Setting("enable_bucket", "buckets", default=True),
    ],
    advanced=[
        Setting("bucket_no_upscale"),
        Setting("frame_stride"),
        Setting("frame_sample"),
        Setting("max_frames"),
        Setting("min_frames"),
        Setting("pad_short"),
        Setting("batch_size"),
    ],
    nodes=(TITLE, "Check Dataset", "Preview Item"),
)
# came later, and workflows store values by position
SIZE_SETTINGS = Form(
    DatasetSettings,
    visible=[],
    advanced=[
        Setting("resolution_buckets", "sizes", extra={"placeholder": "768x512x49\n512x512x97, one size a line"}),
    ],
    nodes=(TITLE, "Check Dataset", "Preview Item"),
)

CACHES = Form(
    RunConfig,
    visible=[],
    advanced=[
        Setting("cache.tiles.spatial_tile"),
        Setting("cache.tiles.temporal_tile"),
        Setting("cache.vae_dtype"),
        Setting("cache.text_form"),
        Setting("cache.skip_existing"),
    ],
    nodes=(TITLE,),
)


LATER = Form(DatasetSettings, visible=[], advanced=[Setting("max_left_out")], nodes=(TITLE,))  # came later: at the end


class LoadTrainingClips(source_folder.FolderNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_LoadTrainingClips",
            display_name=CLIPS_TITLE,
            category="LTX-2 training",
            description="Chooses a folder of videos or images to train on. Each file has its caption beside it, in a "
            "text file of the same name.",
            search_aliases=["dataset", "clips", "videos", "captions", "folder", "lora", "train"],
            inputs=[
                *source_folder.folder_inputs("clips"),
                *CLIPS.visible_inputs(),
                *CLIPS.advanced_inputs(),
                options.socket(),
            ],
            outputs=source_folder.outputs("Number of media files found."),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @CLIPS.fill
    def execute(
        cls, folder: str, path: str, options: handles.GivenOptions | None = None, **settings: Any
    ) -> io.NodeOutput:
        with host.training_job(CLIPS_TITLE):
            root = source_folder.chosen_folder(folder, path)
            shared = {**CLIPS.tables(settings), **further_settings(options, CLIPS_TITLE)}
            source_folder.ending(shared)
            kinds = source_folder.media(root, shared["recursive"], ("video", "image"))
            found = tuple({f"{kind}_directory": str(root), **shared} for kind in kinds)
            clips = handles.ClipFolder(root, found, sum(kinds.values()))
            host.ComfyEvents(cls.hidden.unique_id).finish(
                "finished", f"{source_folder.counts_in_words(kinds)} in {root.name}"
            )
            return io.NodeOutput(clips, clips.count)


class PrepareDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_PrepareDataset",
            display_name=TITLE,
            category="LTX-2 training",
            description="Cuts the clips to size and encodes them and their captions once, so that training needs "
            "neither the video encoder nor the text encoder. What is up to date is kept.",
            search_aliases=["cache", "latents", "encode", "bucket", "dataset", "lora", "train"],
            inputs=[
                handles.Model.Input("model", tooltip="The base to train on; its encoders make the caches."),
                handles.Dataset.Input("dataset", tooltip="The clips of Load Training Clips."),
                *SHAPE.visible_inputs(),
                io.String.Input(
                    "name",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Name of the folder under output/ltx2_runs/datasets that keeps the caches. Empty: the name "
                    "of the clips' folder.",
                ),
                *SHAPE.advanced_inputs(),
                *CACHES.advanced_inputs(),
                handles.Dataset.Input(
                    "audio",
                    optional=True,
                    tooltip="A second dataset to train on together with the first, as the recordings of Load Training "
                    "Audio.",
                ),
                *LATER.advanced_inputs(),
                options.socket(),
                *SIZE_SETTINGS.advanced_inputs(),
                handles.Dataset.Input(
                    "validation",
                    optional=True,
                    tooltip="Clips that are never trained on: Validation Options measures the loss on them, Samples "
                    "Options draws them.",
                ),
            ],
            outputs=[
                handles.Prepared.Output(
                    "prepared", display_name="prepared", tooltip="The encoded dataset, for Train LoRA."
                ),
                io.String.Output(
                    "summary", display_name="summary", tooltip="What was made, kept and left out, in words."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],  # what follows is checked before hours of encoding
        )

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> Any:
        return compared(cls.hidden.unique_id, given)

    @classmethod
    @SHAPE.fill
    @CACHES.fill
    @LATER.fill
    @SIZE_SETTINGS.fill
    def execute(
        cls,
        model: handles.BaseModel,
        dataset: handles.ClipFolder,
        name: str = "",
        audio: handles.ClipFolder | None = None,
        options: handles.GivenOptions | None = None,
        validation: handles.ClipFolder | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        with host.training_job(TITLE):
            parts = [dataset] if audio is None else [dataset, audio]
            _need_mode(model.tables["model"].get("mode", "video"), [*parts, *([validation] if validation else [])])
            config = _write_dataset(parts, {**size_settings(settings), **LATER.tables(settings)}, name, validation)
            chosen = merged(CACHES.tables(settings), further_settings(options, TITLE))
            tables = {**model.tables, "data": {"config": str(config)}, **chosen}
            runs = check_ahead(cls.hidden.prompt, cls.hidden.unique_id, tables)
            events = host.ComfyEvents(cls.hidden.unique_id)
            if idle := idle_sizes(parts, settings, model.tables["model"].get("mode", "video")):
                events.message(idle, "warning")
            try:
                report = core.build_caches(core.make_run(tables, config.parent, TITLE), events, runs)
            finally:
                events.close()
            summary = events.with_told(report.summary())
            made = list(report.kinds.values())
            told = (f"{part.kind}: {part.made} made, {part.kept} kept" for part in made)
            failed = sum(len(part.failed) for part in made) + len(report.left_out)
            events.finish(
                "finished",
                " | ".join([*told, *([f"{failed} not usable, see the summary"] if failed else [])]),
                of_dataset=True,
            )
            keep_made(cls.hidden.unique_id, [config, *report.files])
            return io.NodeOutput(handles.PreparedDataset(config, tables, summary), summary)


def size_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes that the widgets say, as settings of a dataset."""
    return merged(SHAPE.tables(settings), SIZE_SETTINGS.tables(settings))


def _need_mode(mode: str, parts: Sequence[handles.ClipFolder]) -> None:
    """Raise DataError where the goal of the base has no use for one of the datasets."""
    for entry in (entry for part in parts for entry in part.entries):
        if mode == "video" and "audio_directory" in entry:
            raise DataError(
                f"{entries.media_folder(entry).name} holds recordings, but the base is set to train video alone. Set "
                "`mode` of Load LTX-2 Base Model to av (video with sound) or audio (sound alone)."
            )


def idle_sizes(parts: Sequence[handles.ClipFolder], settings: Mapping[str, Any], mode: str = "av") -> str:
    """A sentence on the sizes that were set and that none of `parts` has, or a base that is set to `mode`; "" where
    none were."""
    recorded = all("audio_directory" in entry for part in parts for entry in part.entries)
    if not recorded and mode != "audio":
        return ""
    defaults = {**SHAPE.defaults(visible=True), **SIZE_SETTINGS.defaults()}
    named = [one for one in defaults if one not in entries.SIZELESS] if recorded else ["width", "height"]
    changed = [f"{name} = {settings[name]}" for name in named if settings.get(name, defaults[name]) != defaults[name]]
    if not changed:
        return ""
    has = "has" if len(changed) == 1 else "have"
    why = "the base is set to sound alone, which has no picture. Set `mode` of Load LTX-2 Base Model to video or av, or"
    if recorded:
        why = "recordings have neither pictures nor frames. Connect clips, or"
    return f"{', '.join(changed)} {has} no effect: {why} put it back."


def _write_dataset(
    parts: Sequence[handles.ClipFolder], shape: dict[str, Any], name: str, held_out: handles.ClipFolder | None
) -> Path:
    """Write the dataset file beside its caches; its name tells settings apart, so that older handles stay good."""
    folder = entries.dataset_folder(parts[0], name)
    text = entries.dataset_config(parts, shape, folder, "Prepare Dataset", held_out).to_toml()
    path = folder / f"dataset-{digest(text, length=8)}.toml"
    write_text(path, text)
    return path
