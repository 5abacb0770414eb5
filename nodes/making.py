"""Cut Long Videos and Caption Clips: from raw recordings to a folder that can be trained on."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train.errors import ConfigError, DataError
from ..ltx2_train.files import digest
from . import entries, host, local_models, source_folder, words
from .host import io
from .made import always

CUT_TITLE, CAPTION_TITLE = "Cut Long Videos", "Caption Clips"

SCENES, SECONDS, SPEECH = "scenes", "seconds", "pauses of speech"
LENGTH = 5.0  # of pieces, in seconds, where nobody touches the widget
# how the core calls what a node calls otherwise
WORDS = {"out": "name", "min": "min_seconds", "max": "max_seconds"}
NAMED = 3  # files that a sentence names
WIDGETS = ("model", "whisper")  # where a model is chosen

for _widget in ("min_seconds", "max_seconds"):  # settings of recordings have these names too, other nodes show those
    words.note_widget(CUT_TITLE, _widget, _widget)

_written_over: dict[Path, str] = {}  # folders whose captions were written anew, and with which settings


class CutLongVideos(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        lengths = {"min": 0.0, "max": 3600.0, "step": 0.1}
        return io.Schema(
            node_id="LTX2T_CutLongVideos",
            display_name=CUT_TITLE,
            category="LTX-2 training",
            description="Cuts the videos and recordings of a folder into clips, with their sound, and without encoding "
            "them again where that is possible. The sources are only read; what was cut before is kept.",
            search_aliases=["dataset", "scenes", "split", "cut", "trim", "clips", "speech", "lora", "train"],
            is_output_node=True,
            inputs=[
                *source_folder.folder_inputs("long videos or recordings"),
                io.Combo.Input(
                    "cut_at",
                    options=[SCENES, SECONDS, SPEECH],
                    default=SCENES,
                    tooltip="Cuts of the film (needs PySceneDetect: pip install scenedetect), every so many seconds, "
                    "or pauses of speech, which makes sound files.",
                ),
                io.Float.Input(
                    "seconds",
                    default=LENGTH,
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
                    tooltip="Name of the folder under output/ltx2_runs/clips. Empty: after the folder above, "
                    "and another one for each way to cut.",
                ),
            ],
            outputs=[
                io.String.Output("folder", display_name="folder", tooltip="For `path` of the loader nodes."),
                io.Int.Output("count", display_name="count", tooltip="Number of clips."),
                io.String.Output(
                    "summary", display_name="summary", tooltip="What was made, kept and left out, in words."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **settings: Any) -> Any:
        return always()  # what was cut is kept, so a second look is quick

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
        with host.training_job(CUT_TITLE):
            root = source_folder.chosen_folder(folder, path)
            if cut_at == SECONDS and 0 < max_seconds < seconds:
                raise ConfigError(
                    f"seconds is {seconds:g}, and max_seconds is {max_seconds:g}: each piece would be longer than the "
                    "longest that is wanted. Lower `seconds`, or set max_seconds to 0."
                )
            lengths = (seconds, min_seconds) if cut_at == SECONDS else (min_seconds, max_seconds)
            out = own_folder("clips", name, root, cut_at, *map(str, lengths))
            events = host.ComfyEvents(cls.hidden.unique_id)
            if cut_at != SECONDS and seconds != LENGTH:
                events.message(f"seconds = {seconds:g} has no effect: cut_at is {cut_at}.", "warning")
            if cut_at == SECONDS and max_seconds:
                told = f"max_seconds = {max_seconds:g} has no effect: no piece of {seconds:g} seconds is longer."
                events.message(told, "warning")
            least, most = min_seconds or None, max_seconds or None
            with node_words():
                if cut_at == SPEECH:
                    report = core.cut_recordings(root, out, shortest=least, longest=most, events=events)
                elif cut_at == SECONDS:
                    report = core.cut_videos(root, out, seconds=seconds, shortest=least, events=events)
                elif cut_at == SCENES:
                    report = core.cut_videos(root, out, shortest=least, longest=most, events=events)
                else:
                    raise ConfigError(f"cut_at: {cut_at!r} is not known. Use {SCENES}, {SECONDS} or {SPEECH}.")
            count, summary = report.kept + len(report.clips), in_node_words(report.text())
            if not count:
                raise DataError(f"Nothing was cut from {root}.\n{summary}", root)
            # a line for each clip is for the summary; the node says how many
            told = "\n".join(summary.splitlines()[len(report.clips) :])
            events.finish("finished", f"{count} clips in {out}\n{told}")
            return io.NodeOutput(str(out), count, summary)


class CaptionClips(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_CaptionClips",
            display_name=CAPTION_TITLE,
            category="LTX-2 training",
            description="Writes a caption beside each video, image or recording of a folder, by a vision-language "
            "model and a Whisper of your own. Captions that are there stay.",
            search_aliases=["dataset", "caption", "describe", "whisper", "transcribe", "VLM", "lora", "train"],
            is_output_node=True,
            inputs=[
                *source_folder.folder_inputs("clips"),
                io.Combo.Input(
                    "model",
                    options=[local_models.NONE, *local_models.describers()],
                    default=local_models.NONE,
                    tooltip="Vision-language model that says what is seen: a folder in Hugging Face form in "
                    "models/LLM or models/text_encoders. Press R after adding one. None: only speech is written.",
                ),
                io.Combo.Input(
                    "whisper",
                    options=[local_models.NONE, *local_models.listeners()],
                    default=local_models.NONE,
                    tooltip="Whisper that hears what is said: a folder in Hugging Face form in models/LLM. None: "
                    "speech is left out.",
                ),
                io.String.Input(
                    "speaker",
                    default=core.SPEAKER,
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
                    default=core.CAPTION_FRAMES,
                    min=1,
                    max=64,
                    optional=True,
                    advanced=True,
                    tooltip="How many frames of a clip the model sees.",
                ),
                *(
                    io.String.Input(
                        f"{widget}_path",
                        default="",
                        optional=True,
                        advanced=True,
                        tooltip=f"Folder elsewhere on this machine, used instead of the one chosen in {widget}.",
                    )
                    for widget in WIDGETS
                ),
            ],
            outputs=[
                io.String.Output("folder", display_name="folder", tooltip="For `path` of the loader nodes."),
                io.String.Output(
                    "summary", display_name="summary", tooltip="What was made, kept and left out, in words."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **settings: Any) -> Any:
        return always()  # captions that are there are kept, so a second look is quick

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
        frames: int = core.CAPTION_FRAMES,
        model_path: str = "",
        whisper_path: str = "",
    ) -> io.NodeOutput:
        with host.training_job(CAPTION_TITLE):
            root = source_folder.chosen_folder(folder, path)
            eye = local_models.chosen_model("model", model, model_path)
            ear = local_models.chosen_model("whisper", whisper, whisper_path)
            events = host.ComfyEvents(cls.hidden.unique_id)
            asked = {"prompt": prompt.strip(), "frames": frames != core.CAPTION_FRAMES and frames,
                     "speaker": speaker != core.SPEAKER and speaker.strip(), "prefix": prefix.strip(),
                     "overwrite": overwrite}  # fmt: skip
            for told in _idle_words(asked, eye is not None, ear is not None):
                events.message(told, "warning")
            if eye is None and ear is None:
                summary = _as_they_are(root)
            else:
                chosen = [str(part) for part in (eye, ear, prompt, prefix, speaker, frames)]
                # pressing Run again, to train, must not write all anew
                anew = overwrite and _written_over.get(root) != digest(*chosen)
                try:
                    with node_words():
                        report = core.caption_media(
                            root,
                            eye,
                            whisper=ear,
                            prompt=" ".join(prompt.split()) or None,
                            prefix=prefix,
                            speaker=speaker,
                            overwrite=anew,
                            frames=frames,
                            events=events,
                        )
                finally:
                    events.close()
                if anew:
                    _written_over[root] = digest(*chosen)
                summary = in_node_words(report.text())
            events.finish("finished", summary)
            return io.NodeOutput(str(root), summary)


def _idle_words(asked: dict[str, Any], sees: bool, hears: bool) -> Iterator[str]:
    """A sentence for each widget that is set to something and belongs to a model that is not chosen."""
    for widget, value in asked.items():
        needs = ("model",) if widget in ("prompt", "frames") else ("whisper",) if widget == "speaker" else WIDGETS
        if value and not any({"model": sees, "whisper": hears}[name] for name in needs):
            said = "" if value is True else f" = {value}"
            yield f"{widget}{said} has no effect: nothing is chosen in {' or '.join(needs)}."


def _as_they_are(root: Path) -> str:
    """What is said of a folder where no model is chosen. Raises ConfigError where a file of it has no caption."""
    media = {ending for endings in core.MEDIA_SUFFIXES.values() for ending in endings}
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in media and not path.name.startswith("."))
    bare = [path.name for path in files if not path.with_suffix(".txt").is_file()]
    if not files:
        raise DataError(f"{root} holds no images, videos or sounds. Choose another folder.", root)
    if bare:
        named = ", ".join(bare[:NAMED]) + (" ..." if len(bare) > NAMED else "")
        raise ConfigError(
            f"{len(bare)} of {len(files)} files in {root} have no caption ({named}), and no model is chosen. Choose "
            "one in `model` for what is seen, or in `whisper` for what is said; or write a text file of the same name "
            "beside each by hand."
        )
    return f"{len(files)} files have their captions; no model is chosen, and none was written."


@contextlib.contextmanager
def node_words() -> Iterator[None]:
    """Errors of the core inside speak of the widgets of a node instead of the options of the command line."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise ConfigError(in_node_words(str(error))) from error


def in_node_words(text: str) -> str:
    return re.sub(r"--([a-z]+)", lambda found: WORDS.get(found[1], found[1]), text)


def own_folder(kind: str, name: str, source: Path, *marks: str) -> Path:
    """The folder `kind`/`name` of the runs folder, called after `source` and `marks` where no name is given.

    Raises ConfigError where the name leads out of it.
    """
    name, root = name.strip(), host.runs_folder() / kind
    host.place_inside(root, name)
    if not name:
        name = f"{entries.plain(source.name) or kind}-{digest(str(source.resolve()), *marks, length=8)}"
    return host.place_inside(root, entries.plain(name) or kind)
