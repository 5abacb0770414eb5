"""Sample LoRA: draw a video, with its sound or without, or a sound alone, with a trained LoRA at any strength."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train import RunConfig
from ..ltx2_train.errors import ConfigError
from ..ltx2_train.files import digest
from . import given, handles, host, lora_names, options, tensors, words
from .host import io
from .made import compared, keep_made
from .widgets import Form, Setting, merged
from .wire import read_audio

TITLE = "Sample LoRA"
FOLDER = "ltx2_samples"  # in ComfyUI's output folder
NO_PROMPT = "The prompt is empty. Write what the video shows."

FORM = Form(
    RunConfig,
    visible=[
        Setting("sample.strength", step=0.05),
        Setting("sample.width", step=32),
        Setting("sample.height", step=32),
        Setting("sample.frames", step=8),
        Setting("sample.steps"),
        Setting("sample.guidance", step=0.1, unset=0),
        Setting("sample.seed", extra={"control_after_generate": io.ControlAfterGenerate.fixed}),
    ],
    advanced=[
        Setting("sample.negative_prompt", extra={"multiline": True}),
        Setting("sample.fps"),
        Setting("sample.stg"),
        Setting("sample.stg_block"),
        Setting("sample.rescale"),
        Setting("sample.shift_tokens"),
        Setting("sample.audio", "audio_file"),
        Setting("sample.audio_format"),
    ],
    nodes=(TITLE,),
)
words.note_widget(TITLE, "sample.prompts", "prompt")
# shown by Samples Options too, so errors speak of the setting
LATER = Form(RunConfig, visible=[], advanced=[Setting("sample.sigmas")])


class SampleLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_SampleLoRA",
            display_name=TITLE,
            category="LTX-2 training",
            description="Draws with the LoRA of a run or with a LoRA file: a video, one with sound, or a sound alone, "
            "as the base is set to. Strength 0 is the base alone.",
            search_aliases=["test", "preview", "compare", "lora", "video", "audio", "voice", "sample"],
            is_output_node=True,
            inputs=[
                handles.Run.Input(
                    "run", optional=True, tooltip="The run of Train LoRA; its base and its LoRA are used."
                ),
                handles.Model.Input("model", optional=True, tooltip="A base, where no run is connected."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    placeholder="What is seen and heard, with the trigger word.",
                    tooltip="What the video shows. Put the trigger word in, if the LoRA was trained with one.",
                ),
                *FORM.visible_inputs(),
                io.String.Input(
                    "lora_path",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="LoRA file to use instead of the run's newest one; a name in its lora folder or in "
                    "ComfyUI's loras folders will do.",
                ),
                *FORM.advanced_inputs(),
                *given.given_inputs(),
                *LATER.advanced_inputs(),
                lora_names.more_loras_input(),
                options.samples_socket(),
            ],
            outputs=[
                io.Video.Output("video", display_name="video", tooltip="The video, as ComfyUI's nodes take it."),
                io.String.Output("path", display_name="path", tooltip="Path of the file that was written."),
                io.Audio.Output("audio", display_name="audio", tooltip="The sound, in the modes av and audio."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None) -> bool | str:
        """Refuse what cannot be drawn as soon as the prompt is sent, and not when the LoRA has been trained."""
        if prompt is not None and not prompt.strip():  # None comes over a wire
            return NO_PROMPT
        return host.no_output(FOLDER) or True

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> Any:
        named = lora_names.stamp(given.get("lora_path"))
        if isinstance(named, float):  # it may lie beside the LoRA of the run
            named = None
        return compared(cls.hidden.unique_id, given, named, lora_names.stamps(given.get("more_loras")))

    @classmethod
    @FORM.fill
    @LATER.fill
    def execute(
        cls,
        prompt: str,
        run: handles.FinishedRun | None = None,
        model: handles.BaseModel | None = None,
        lora_path: str = "",
        first_frame: Any = None,
        reference: Any = None,
        reference_audio: Any = None,
        given_frames: Any = None,
        given_mask: Any = None,
        given_audio: Any = None,
        reference_2: Any = None,
        reference_audio_2: Any = None,
        more_loras: str = "",
        options: handles.GivenOptions | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        with host.training_job(TITLE):
            if run is not None and model is not None:
                raise ConfigError("`run` has its own base, and `model` is connected too. Take one of the wires off.")
            base = model if run is None else run
            if base is None:
                raise ConfigError("Nothing to sample with: connect `run`, or `model` and write a `lora_path`.")
            text = " ".join(prompt.split())
            if not text:
                raise ConfigError(NO_PROMPT)
            lora = _lora(run, lora_path)
            config = _config(base, settings, options)
            beside = lora_names.listed_loras(more_loras, "more_loras")
            out = host.output_folder() / FOLDER / (run.folder.name if run is not None else "base")
            told = tensors.Changes()
            conditions = given.conditions(
                {"first_frame": first_frame, "reference": reference, "reference_audio": reference_audio,
                 "given_frames": given_frames, "given_mask": given_mask, "given_audio": given_audio,
                 "reference_2": reference_2, "reference_audio_2": reference_audio_2},
                told,
            )  # fmt: skip
            prompts = [{"prompt": text, "conditions": conditions} if conditions else text]
            events = host.ComfyEvents(cls.hidden.unique_id)
            told.tell(events)
            try:
                drawn = core.sample(config, lora, out, events, prompts=prompts, beside=beside)[0]
            finally:
                events.close()
            # a name of its own for every way to draw it: other nodes and the page go on using what they were given
            said = (*map(str, conditions), config.sample.model_dump_json(), config.model.mode)
            mark = digest(text, *said, str(lora), *map(str, beside), length=8)
            moved = {file: file.replace(_marked(file, mark)) for file in _files(drawn)}
            path = moved[drawn.path]
            keep_made(cls.hidden.unique_id, moved.values())
            events.finish("finished", path.name)
            video = None if drawn.latents is None else host.InputImpl.VideoFromFile(str(path))
            audio = None if drawn.audio_path is None else read_audio(moved[drawn.audio_path])
            return io.NodeOutput(
                video or host.nothing("Sample LoRA drew sound alone, as the base is set to; there is no video."),
                str(path),
                audio or host.nothing("Sample LoRA drew no sound. Set `mode` of Load LTX-2 Base Model to av or audio."),
                ui=host.preview(path, moved.get(_picture_of(drawn.path))),
            )


def _config(
    base: handles.FinishedRun | handles.BaseModel, settings: Mapping[str, Any], brought: handles.GivenOptions | None
) -> RunConfig:
    """The settings of `base`, with those of the widgets in their place, and over them what `options` brings."""
    shown = LATER.instead(FORM.instead(base.tables, settings), settings)
    said = merged(FORM.said(settings), LATER.said(settings))
    return core.make_run(merged(shown, options.given(brought, TITLE, said)), host.runs_folder(), TITLE)


def _picture_of(path: Path) -> Path:
    """The picture of the sound, which lies beside the sample."""
    return path.with_name(f"{path.stem}.sound.png")


def _files(drawn: core.SampleFile) -> list[Path]:
    """The sample and what belongs to it."""
    found = {drawn.path, drawn.audio_path or drawn.path, _picture_of(drawn.path)}
    return [path for path in found if path.is_file()]


def _marked(path: Path, mark: str) -> Path:
    stem, dot, ending = path.name.partition(".sound.") if ".sound." in path.name else path.name.rpartition(".")
    return path.with_name(f"{stem}_{mark}{dot}{ending}")


def _lora(run: handles.FinishedRun | None, text: str) -> Path | None:
    """The LoRA to draw with; None is the base alone. Raises ConfigError where the file is missing."""
    text = text.strip().strip('"')
    if not text:
        return None if run is None or run.lora is None else lora_names.whole_lora(run.lora, run.folder.name)
    places = [Path(text).expanduser()]
    if not places[0].is_absolute() and not host.stays_inside(text):
        raise ConfigError(f"lora_path: {text} leads out of the loras folders. Write a name in one, or a full path.")
    if run is not None and run.lora is not None:
        places.append(run.lora.parent / text)
    if (listed := host.lora_path(text)) is not None:
        places.append(listed)
    for path in places:
        if path.is_file():
            return path
    raise ConfigError(f"lora_path: there is no file {text}. Write the path of a LoRA file, or leave it empty.")
