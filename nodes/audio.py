"""Load Training Audio: a folder of recordings, each with what is said in it."""

from __future__ import annotations

from typing import Any

from ..ltx2_train import DatasetSettings
from . import handles, host, source_folder
from .host import io
from .widgets import Form, Setting

TITLE = "Load Training Audio"

FORM = Form(
    DatasetSettings,
    visible=[
        Setting("trigger_word", "speaker_word"),
        Setting("audio_normalize", "normalise", default=True),
        Setting("speech_segments", "cut_at_pauses"),
        Setting("speech_min_seconds", "min_seconds"),
        Setting("speech_max_seconds", "max_seconds"),
    ],
    advanced=[
        Setting("speech_pause_seconds", "pause_seconds"),
        Setting("caption_extension"),
        Setting("num_repeats", "repeats"),
        Setting("recursive"),
        Setting("min_seconds", "shortest_file"),
        Setting("max_seconds", "longest_file"),
        Setting("audio_loss_weight", "loss_weight"),
        Setting("audio_bucket_strategy", "bucket_strategy"),
        Setting("audio_bucket_interval", "bucket_interval"),
    ],
    nodes=(TITLE,),
)


class LoadTrainingAudio(source_folder.FolderNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_LoadTrainingAudio",
            display_name=TITLE,
            category="LTX-2 training",
            description="Chooses a folder of recordings to train a voice or a sound on. Each file has its caption "
            "beside it, in a text file of the same name: what is said, and how.",
            search_aliases=["dataset", "audio", "voice", "speech", "sound", "recordings", "folder", "lora", "train"],
            inputs=[
                *source_folder.folder_inputs("recordings"),
                *FORM.visible_inputs(),
                *FORM.advanced_inputs(),
            ],
            outputs=source_folder.outputs("Number of sound files found."),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @FORM.fill
    def execute(cls, folder: str, path: str, **settings: Any) -> io.NodeOutput:
        with host.training_job(TITLE):
            root = source_folder.chosen_folder(folder, path)
            shared = FORM.tables(settings)
            source_folder.ending(shared)
            count = source_folder.media(root, shared["recursive"], ("audio",))["audio"]
            entry = {"audio_directory": str(root), **shared}
            host.ComfyEvents(cls.hidden.unique_id).finish(
                "finished", f"{source_folder.counts_in_words({'audio': count})} in {root.name}"
            )
            return io.NodeOutput(handles.ClipFolder(root, (entry,), count, "recordings"), count)
