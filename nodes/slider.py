"""Train Slider: a LoRA that is turned up for one quality and down for its opposite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train import RunConfig
from ..ltx2_train.errors import ConfigError
from . import handles, host, options, train, words
from .host import io
from .train import TrainLoRA
from .widgets import Form, Setting, merged, widget
from .wire import read_wire_lora

TITLE = "Train Slider"
words.note_widget(TITLE, "run.export_folder", "ComfyUI's folder")

# what Train LoRA shows and a slider has no use for
_UNUSED = {
    "train.first_frame_probability",
    "train.caption_dropout",
    "train.audio_learning_rate",
    "loss.video_weight",
    "loss.audio_weight",
    "loss.balance.mode",
    "loss.balance.ratio",
    "audio.independent_timestep",
    "audio.silence_regularizer",
    "audio.supervision",
    "audio.min_batches",
    "sample.audio",
    "sample.frames",  # with a default of its own
}
_SHARED = [setting for setting in (*train.FORM.advanced, *train.LATER.advanced) if setting.path not in _UNUSED]

FORM = Form(
    RunConfig,
    visible=[
        Setting("run.name", "run_name", default="my_slider"),
        Setting("train.steps", default=500),
        Setting("lora.rank", default=16),
        Setting("train.learning_rate", step=1e-7),
        Setting("slider.guidance", step=0.1),
    ],
    advanced=[
        Setting("slider.strengths"),
        Setting("slider.frames"),
        Setting("slider.width", step=32),
        Setting("slider.height", step=32),
        Setting("sample.every", "sample_every"),
        Setting("sample.prompts", "sample_prompts", extra={"placeholder": "One prompt a line. Empty: the classes."}),
        Setting("sample.frames", "sample_frames", step=8, default=1),
        Setting("train.seed", "train_seed", extra={"control_after_generate": False}),
        *_SHARED,
    ],
    nodes=(TITLE,),
)
MEMORY = train.MEMORY
MEMORY.shown_by(TITLE)
further_settings = options.given  # `options` is the name of a socket where the node runs


class TrainSlider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_TrainSlider",
            display_name=TITLE,
            category="LTX-2 training",
            description="Trains a slider: strength 1 shows more of one thing, strength -1 of its opposite. From pairs "
            "of prompts without any data, or from pairs of pictures. Stopping saves; running again goes on.",
            search_aliases=["slider", "concept slider", "lora", "train", "training", "ltx"],
            is_output_node=True,
            inputs=[
                handles.Model.Input("model", tooltip="The base of Load LTX-2 Base Model, in mode video."),
                io.String.Input(
                    "positive",
                    multiline=True,
                    default="",
                    placeholder="extremely detailed, sharp",
                    tooltip="What strength 1 shows more of. Leave it empty where pairs of pictures are connected.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    default="",
                    placeholder="blurry, soft",
                    tooltip="What strength -1 shows more of.",
                ),
                io.String.Input(
                    "target_class",
                    default="",
                    tooltip="What the slider is for, such as: a portrait. Empty: for everything.",
                ),
                *FORM.visible_inputs(),
                handles.Prepared.Input(
                    "positive_pictures",
                    optional=True,
                    tooltip="Instead of prompts: pictures or clips of what strength 1 shows, of Prepare Dataset.",
                ),
                handles.Prepared.Input(
                    "negative_pictures",
                    optional=True,
                    tooltip="The same with the opposite: each file called as its partner, at the same size.",
                ),
                io.String.Input(
                    "more_targets",
                    multiline=True,
                    default="",
                    optional=True,
                    advanced=True,
                    placeholder="bright | dark | a room | 0.5",
                    tooltip="Further directions that one slider learns together, one in each line: positive | negative "
                    "| target class | weight.",
                ),
                *FORM.advanced_inputs(),
                widget(RunConfig, MEMORY, advanced=True),
                options.socket(),
            ],
            outputs=[
                io.LoraModel.Output("lora", display_name="lora", tooltip="The slider, for Load LoRA Model."),
                handles.Run.Output("run", display_name="run", tooltip="The run, for Sample LoRA and Pick Checkpoints."),
                io.String.Output("path", display_name="path", tooltip="Path of the LoRA file."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, run_name: str | None, **settings: Any) -> Any:
        return TrainLoRA.fingerprint_inputs(run_name)

    @classmethod
    def validate_inputs(cls, run_name: str | None) -> bool | str:
        return TrainLoRA.validate_inputs(run_name)

    @classmethod
    @FORM.fill
    def execute(
        cls,
        model: handles.BaseModel,
        positive: str,
        negative: str,
        target_class: str,
        positive_pictures: handles.PreparedDataset | None = None,
        negative_pictures: handles.PreparedDataset | None = None,
        more_targets: str = "",
        memory: str = "auto",
        options: handles.GivenOptions | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        with host.training_job(TITLE):
            if positive_pictures is None and negative_pictures is None:
                slider = {"mode": "text", "targets": _targets(positive, negative, target_class, more_targets)}
            else:
                if given := [text for text in (positive, negative, target_class, more_targets) if text.strip()]:
                    raise ConfigError(
                        f"Pictures are connected, so the prompts have no effect: {given[0]!r}. Empty the prompts, or "
                        "take the pictures off."
                    )
                slider = {
                    "mode": "reference",
                    "positive_caches": _caches(positive_pictures, "positive_pictures"),
                    "negative_caches": _caches(negative_pictures, "negative_pictures"),
                }
            places = {"run": {"folder": str(host.runs_folder()), "export_folder": str(host.loras_folder())}}
            shown = merged(model.tables, FORM.tables(settings), {"memory": {"fit": memory}}, places, {"slider": slider})
            tables = merged(shown, further_settings(options, TITLE, FORM.said(settings)))
            run = core.make_run(tables, host.runs_folder(), TITLE)
            events = host.ComfyEvents(cls.hidden.unique_id, run.run.name, widget=True)
            try:
                result = core.train_slider(run, events)
            except BaseException as error:
                train.tell_end(events, error)
                raise
            finally:
                events.close()
            lora = core.with_its_step(result.lora, result.folder.name, result.step)
            text = train.where_it_is(result, f"{lora.name} is in ComfyUI's loras folder.")
            events.finish("finished", f"{text} Use it at strengths from -2 to 2.{train.steps_beyond(result)}")
            train.note_finished(result)
            strips = sorted((result.folder / "samples").glob("*_strip.png"))
            finished = handles.FinishedRun(result.folder, lora, result.step, tables)
            shown_strip = host.preview(strips[-1]) if strips else {}
            return io.NodeOutput(
                read_wire_lora(lora), finished, str(lora), ui={**train.seen(events, finished), **shown_strip}
            )


def _targets(positive: str, negative: str, target_class: str, more: str) -> list[dict[str, Any]]:
    """The directions of the widgets. Raises ConfigError where there is none, or a line is not one."""
    lines = [(positive, negative, target_class, "1")] if positive.strip() else []
    for line in filter(str.strip, more.split("\n")):
        parts = [part.strip() for part in line.split("|")]
        if len(parts) > 4 or not parts[0]:
            raise ConfigError(f"more_targets: {line!r} is not: positive | negative | target class | weight.")
        up, down, subject, weight = (*parts, *("", "", "", "1")[len(parts) :])
        lines.append((up, down, subject, weight or "1"))
    if not lines:
        raise ConfigError("There is nothing to learn: write `positive`, or connect pairs of pictures.")
    if negative.strip() and not positive.strip():
        raise ConfigError("`negative` is written and `positive` is not. Write what strength 1 shows more of.")
    targets = []
    for up, down, subject, weight in lines:
        try:
            number = float(weight)
        except ValueError:
            raise ConfigError(f"more_targets: {weight!r} is no number; the weight stands last in a line.") from None
        prompts = (" ".join(text.split()) for text in (up, down, subject))
        targets.append({**dict(zip(("positive", "negative", "target_class"), prompts, strict=True)), "weight": number})
    return targets


def _caches(prepared: handles.PreparedDataset | None, socket: str) -> str:
    """The folder with the latents of a dataset. Raises ConfigError where it is not connected, or is several."""
    if prepared is None:
        raise ConfigError(f"`{socket}` is not connected; a slider from pictures takes both.")
    entries = core.DatasetConfig.read(Path(prepared.config)).datasets
    if len(entries) != 1:
        raise ConfigError(f"`{socket}` joins {len(entries)} datasets. Pairs come from one folder on each side.")
    return str(entries[0].caches)
