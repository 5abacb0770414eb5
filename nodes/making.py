"""Cut Long Videos and Caption Clips: from raw recordings to a folder that can be trained on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..ltx2_train.data.captioning import FRAMES, SPEAKER, caption_media
from ..ltx2_train.data.cut import cut_videos
from ..ltx2_train.data.cut_speech import cut_recordings
from ..ltx2_train.errors import ConfigError
from ..ltx2_train.files import digest
from . import entries, folders, host
from .host import io

SCENES, SECONDS, SPEECH = "scenes", "seconds", "pauses of speech"


class CutLongVideos(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        lengths = {"min": 0.0, "max": 3600.0, "step": 0.1}
        return io.Schema(
            node_id="LTX2T_CutLongVideos",
            display_name="Cut Long Videos",
            category="LTX-2 training",
            description="Cuts the videos and recordings of a folder into clips, with their sound, and without encoding "
            "them again where that is possible. The sources are only read; what was cut before is kept.",
            search_aliases=["dataset", "scenes", "split", "cut", "trim", "clips", "speech", "lora", "train"],
            is_output_node=True,
            inputs=[
                *folders.inputs("long videos or recordings"),
                io.Combo.Input(
                    "cut_at",
                    options=[SCENES, SECONDS, SPEECH],
                    default=SCENES,
                    tooltip="Cuts of the film (needs PySceneDetect), every so many seconds, or pauses of speech, which "
                    "makes sound files.",
                ),
                io.Float.Input(
                    "seconds",
                    default=5.0,
                    tooltip="Length of the pieces, where seconds count.",
                    **{**lengths, "min": 0.1},
                ),
                io.Float.Input(
                    "min_seconds",
                    default=0.0,
                    tooltip="What is shorter is left out. (0 = 1 second; of speech 2)",
                    **lengths,
                ),
                io.Float.Input(
                    "max_seconds",
                    default=0.0,
                    tooltip="Scenes that are longer are cut into equal parts. (0 = no limit; of speech 12)",
                    **lengths,
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="Name of the folder under output/ltx2_runs/clips. Empty: the name of the folder above.",
                ),
            ],
            outputs=[
                io.String.Output("folder", display_name="folder", tooltip="For `path` of the loader nodes."),
                io.Int.Output("count", display_name="count", tooltip="Number of clips."),
                io.String.Output("summary", display_name="summary"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **settings: Any) -> Any:
        return math.nan  # what was cut is kept, so a second look is quick

    @classmethod
    def execute(
        cls,
        folder: str,
        path: str,
        cut_at: str,
        seconds: float,
        min_seconds: float,
        max_seconds: float,
        name: str,
    ) -> io.NodeOutput:
        with host.training_job():
            root = folders.chosen(folder, path)
            out = own_folder("clips", name, root, cut_at)
            events = host.ComfyEvents(cls.hidden.unique_id)
            least = min_seconds or None
            if cut_at == SPEECH:
                report = cut_recordings(root, out, shortest=least, longest=max_seconds or None, events=events)
            elif cut_at == SECONDS:
                report = cut_videos(root, out, seconds=seconds, shortest=least, events=events)
            elif cut_at == SCENES:
                report = cut_videos(root, out, shortest=least, longest=max_seconds or None, events=events)
            else:
                raise ConfigError(f"cut_at: {cut_at!r} is not known. Use {SCENES}, {SECONDS} or {SPEECH}.")
            events.finish("finished", report.text())
            return io.NodeOutput(str(out), report.kept + len(report.clips), report.text())


class CaptionClips(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_CaptionClips",
            display_name="Caption Clips",
            category="LTX-2 training",
            description="Writes a caption beside each video, image or recording of a folder, by a vision-language "
            "model and a Whisper of your own. Captions that are there stay.",
            search_aliases=["dataset", "caption", "describe", "whisper", "transcribe", "VLM", "lora", "train"],
            is_output_node=True,
            inputs=[
                *folders.inputs("clips"),
                io.String.Input(
                    "model",
                    default="",
                    tooltip="Folder of a vision-language model in Hugging Face form, or its name below ComfyUI's "
                    "models folder. Empty: only speech is written.",
                ),
                io.String.Input(
                    "whisper",
                    default="",
                    tooltip="Folder of a Whisper in Hugging Face form, for what is said. Empty: speech is left out.",
                ),
                io.String.Input(
                    "speaker",
                    default=SPEAKER,
                    tooltip="Who says what is heard: one word for each speaker, as the trigger word, or voices merge.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What the model is asked. Empty: a paragraph on what is seen and how it moves.",
                ),
                io.Boolean.Input("overwrite", default=False, tooltip="Also write over captions that are there."),
                io.String.Input(
                    "prefix", default="", optional=True, advanced=True, tooltip="Text put before each caption."
                ),
                io.Int.Input(
                    "frames",
                    default=FRAMES,
                    min=1,
                    max=64,
                    optional=True,
                    advanced=True,
                    tooltip="How many frames of a clip the model sees.",
                ),
            ],
            outputs=[
                io.String.Output("folder", display_name="folder", tooltip="For `path` of the loader nodes."),
                io.String.Output("summary", display_name="summary"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **settings: Any) -> Any:
        return math.nan  # captions that are there are kept, so a second look is quick

    @classmethod
    def execute(
        cls,
        folder: str,
        path: str,
        model: str,
        whisper: str,
        speaker: str,
        prompt: str,
        overwrite: bool,
        prefix: str = "",
        frames: int = FRAMES,
    ) -> io.NodeOutput:
        with host.training_job():
            root = folders.chosen(folder, path)
            if not model.strip() and not whisper.strip():
                raise ConfigError("Name a model: `model` for what is seen, `whisper` for what is said, or both.")
            events = host.ComfyEvents(cls.hidden.unique_id)
            try:
                report = caption_media(
                    root,
                    host.model_folder(model) if model.strip() else None,
                    whisper=host.model_folder(whisper) if whisper.strip() else None,
                    prompt=" ".join(prompt.split()) or None,
                    prefix=prefix,
                    speaker=speaker,
                    overwrite=overwrite,
                    frames=frames,
                    events=events,
                )
            finally:
                events.close()
            events.finish("finished", report.text())
            return io.NodeOutput(str(root), report.text())


def own_folder(kind: str, name: str, source: Path, *marks: str) -> Path:
    """The folder `kind`/`name` of the runs folder, called after `source` and `marks` where no name is given.

    Raises ConfigError where the name leads out of it.
    """
    name = name.strip()
    if not host.stays_inside(name):
        raise ConfigError(f"name: {name!r} leads out of the folder it is made in. Use letters, digits, - and _.")
    if not name:
        name = f"{entries.plain(source.name) or kind}-{digest(str(source.resolve()), *marks, length=8)}"
    return host.runs_folder() / kind / entries.plain(name)
