"""Compare Checkpoints: the base and LoRAs of a run beside each other, on the same prompts and seeds."""

from __future__ import annotations

from typing import Any

from .. import ltx2_train as core
from ..ltx2_train import RunConfig
from ..ltx2_train.errors import ConfigError
from . import handles, host, lora_names, options, words
from .host import io
from .made import compared, keep_made
from .numbers import numbers_of
from .widgets import Form, Setting, merged
from .wire import read_audio

TITLE = "Compare Checkpoints"
FOLDER = "ltx2_compare"  # in ComfyUI's output folder
NO_PROMPTS = "prompts: none is written. Write what is drawn, a prompt in each line."

FORM = Form(
    RunConfig,
    visible=[
        Setting("sample.width", step=32),
        Setting("sample.height", step=32),
        Setting("sample.frames", step=8),
        Setting("sample.steps"),
    ],
    advanced=[
        Setting("sample.guidance", step=0.1, unset=0),
        Setting("sample.negative_prompt", extra={"multiline": True}),
        Setting("sample.fps"),
        Setting("sample.stg"),
        Setting("sample.rescale"),
    ],
    nodes=(TITLE,),
)
words.note_widget(TITLE, "sample.prompts", "prompts")
# shown by Samples Options too, so errors speak of the setting
LATER = Form(RunConfig, visible=[], advanced=[Setting("sample.sigmas")])
further_settings = options.given  # `options` is the name of a socket where the node runs


class CompareCheckpoints(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_CompareCheckpoints",
            display_name=TITLE,
            category="LTX-2 training",
            description="Draws the base and each checkpoint on the same prompts and seeds, and shows all of them in "
            "one video with labels. Texts are encoded once and the base is loaded once. What was drawn before is kept, "
            "so a second press goes on.",
            search_aliases=["compare", "checkpoint", "grid", "xyz", "plot", "strength", "lora", "sample", "ltx"],
            is_output_node=True,
            inputs=[
                handles.Checkpoints.Input(
                    "checkpoints", tooltip="The LoRAs of Pick Checkpoints; its run has the base."
                ),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    placeholder="ohwx runs through snow\nohwx sits in a room --d 7",
                    tooltip="What is drawn, a prompt in each line, with the trigger word. Options may follow: --w "
                    "width, --h height, --f frames, --d seed, --s steps, --n negative prompt.",
                ),
                io.String.Input(
                    "seeds",
                    default="42",
                    tooltip="Each prompt is drawn with each of them: 42, 43. A prompt that has "
                    "--d is drawn with that one.",
                ),
                io.String.Input("strengths", default="1.0", tooltip="Each LoRA is drawn at each of them: 0.6, 0.8, 1."),
                *FORM.visible_inputs(),
                io.Int.Input(
                    "sound_cell",
                    default=0,
                    min=0,
                    max=10_000,
                    tooltip="Whose sound the video has: the number in the corner of a sample. 0: the last of the first "
                    "row. To hear another one, change it and press Run: nothing is drawn again.",
                ),
                io.Boolean.Input(
                    "with_base",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Draw the base without a LoRA too, in the first column.",
                ),
                *FORM.advanced_inputs(),
                *LATER.advanced_inputs(),
                lora_names.more_loras_input(),
                options.samples_socket(),
            ],
            outputs=[
                io.Video.Output("video", display_name="video", tooltip="The grid; of single pictures there is none."),
                io.String.Output("path", display_name="path", tooltip="Path of the grid."),
                io.Audio.Output("audio", display_name="audio", tooltip="The sound of the chosen cell."),
                io.String.Output("report", display_name="report", tooltip="What was drawn, and what was there."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, prompts: str | None) -> bool | str:
        """Refuse what cannot be drawn as soon as the prompt is sent, and not when a LoRA has been trained."""
        if prompts is not None and not prompts.strip():  # None comes over a wire
            return NO_PROMPTS
        return host.no_output(FOLDER) or True

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> Any:
        return compared(cls.hidden.unique_id, given, lora_names.stamps(given.get("more_loras")))

    @classmethod
    @FORM.fill
    @LATER.fill
    def execute(
        cls,
        checkpoints: handles.PickedCheckpoints,
        prompts: str,
        seeds: str,
        strengths: str,
        sound_cell: int,
        with_base: bool = True,
        more_loras: str = "",
        options: handles.GivenOptions | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        with host.training_job(TITLE):
            lines = [line.strip() for line in prompts.split("\n") if line.strip()]
            if not lines:
                raise ConfigError(NO_PROMPTS)
            multipliers = numbers_of(strengths, "strengths", float)
            if not multipliers:
                raise ConfigError("strengths is empty. Write how strongly the LoRAs count, such as 1.")
            shown = LATER.instead(FORM.instead(checkpoints.tables, settings), settings)
            said = merged(FORM.said(settings), LATER.said(settings))
            brought = further_settings(options, TITLE, said)
            config = core.make_run(merged(shown, brought), host.runs_folder(), TITLE)
            out = host.output_folder() / FOLDER / checkpoints.folder.name
            events = host.ComfyEvents(cls.hidden.unique_id)
            try:
                comparison = core.compare(
                    config,
                    checkpoints.loras,
                    out,
                    events,
                    prompts=lines,
                    seeds=numbers_of(seeds, "seeds", int),
                    strengths=multipliers,
                    base=with_base,
                    sound_cell=sound_cell,
                    beside=lora_names.listed_loras(more_loras, "more_loras"),
                )
            finally:
                events.close()
            report = comparison.text()
            keep_made(cls.hidden.unique_id, [comparison.grid])
            events.finish("finished", report.splitlines()[0])
            moves = comparison.grid.suffix == ".mp4"
            audio = None if comparison.sound is None else read_audio(comparison.sound)
            return io.NodeOutput(
                host.InputImpl.VideoFromFile(str(comparison.grid))
                if moves
                else host.nothing("Compare Checkpoints drew single pictures; there is no video. Use `path`."),
                str(comparison.grid),
                audio or host.nothing("Compare Checkpoints drew no sound. Set `mode` of the base to av or audio."),
                report,
                ui=host.preview(comparison.grid),
            )
