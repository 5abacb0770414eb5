"""Sample LoRA: draw a video with a trained LoRA, at any strength."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..ltx2_train import RunConfig, make_run, sample
from ..ltx2_train.errors import ConfigError
from ..ltx2_train.files import digest
from . import handles, host
from .host import io
from .widgets import Form, Setting, merged

FORM = Form(
    RunConfig,
    visible=[
        Setting("sample.strength", step=0.05),
        Setting("sample.width", step=32),
        Setting("sample.height", step=32),
        Setting("sample.frames", step=8),
        Setting("sample.steps"),
        Setting("sample.guidance", step=0.1),
        Setting("sample.seed", extra={"control_after_generate": io.ControlAfterGenerate.fixed}),
    ],
    advanced=[
        Setting("sample.negative_prompt", extra={"multiline": True}),
        Setting("sample.fps"),
        Setting("sample.stg"),
        Setting("sample.stg_block"),
        Setting("sample.rescale"),
        Setting("sample.shift_tokens"),
    ],
)


class SampleLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_SampleLoRA",
            display_name="Sample LoRA",
            category="LTX-2 training",
            description="Draws a video with the LoRA of a run, or with a LoRA file on a base. Strength 0 is the base "
            "alone.",
            search_aliases=["test", "preview", "compare", "lora", "video", "sample"],
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
                    placeholder="What the video shows, with the trigger word.",
                    tooltip="What the video shows. Put the trigger word in, if the LoRA was trained with one.",
                ),
                *FORM.visible_inputs(),
                io.String.Input(
                    "lora_path",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="LoRA file to use instead of the run's newest one; a name in its lora folder will do.",
                ),
                *FORM.advanced_inputs(),
            ],
            outputs=[
                io.Video.Output("video", display_name="video"),
                io.String.Output("path", display_name="path", tooltip="Path of the file that was written."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @FORM.fill
    def execute(
        cls,
        prompt: str,
        run: handles.FinishedRun | None = None,
        model: handles.BaseModel | None = None,
        lora_path: str = "",
        **settings: Any,
    ) -> io.NodeOutput:
        with host.training_job():
            if run is None and model is None:
                raise ConfigError("Nothing to sample with: connect `run`, or `model` and write a `lora_path`.")
            text = " ".join(prompt.split())
            if not text:
                raise ConfigError("The prompt is empty. Write what the video shows.")
            lora = _lora(run, lora_path)
            base = run.tables if run is not None else {"model": model.tables}
            config = make_run(merged(base, FORM.tables(settings)), host.runs_folder())
            out = host.output_folder() / "ltx2_samples" / (run.folder.name if run is not None else "base")
            events = host.ComfyEvents(cls.hidden.unique_id)
            try:
                drawn = sample(config, lora, out, events, prompts=[text], strengths=[config.sample.strength])[0].path
            finally:
                events.close()
            # a name of its own for every way to draw it: other nodes and the page go on using what they were given
            mark = digest(text, config.sample.model_dump_json(), str(lora), length=8)
            path = drawn.replace(drawn.with_name(f"{drawn.stem}_{mark}{drawn.suffix}"))
            events.finish("finished", path.name)
            return io.NodeOutput(host.InputImpl.VideoFromFile(str(path)), str(path), ui=host.preview(path))


def _lora(run: handles.FinishedRun | None, text: str) -> Path | None:
    """The LoRA to draw with; None is the base alone. Raises ConfigError where the file is missing."""
    text = text.strip().strip('"')
    if not text:
        return run.lora if run is not None else None
    places = [Path(text).expanduser()]
    if run is not None:
        places.append(run.lora.parent / text)
    for path in places:
        if path.is_file():
            return path
    raise ConfigError(f"lora_path: there is no file {text}. Write the path of a LoRA file, or leave it empty.")
