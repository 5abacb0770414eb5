"""Train LoRA: the run itself. Pressing Run again goes on where it stopped; a finished run is left alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train import RunConfig
from ..ltx2_train.errors import ConfigError, Stopped, TrainerError
from . import handles, host, options, words
from .conditions import foretold
from .host import io
from .made import keep_files, times_changed
from .widgets import SWITCH, Form, Setting, merged, widget
from .wire import lora_file, read_wire_lora

NODE_ID, TITLE = "LTX2T_TrainLoRA", "Train LoRA"

FORM = Form(
    RunConfig,
    visible=[
        Setting("run.name", "run_name"),
        Setting("train.steps"),
        Setting("lora.rank"),
        Setting("train.learning_rate", step=1e-7),
        Setting("train.seed", "train_seed", extra={"control_after_generate": False}),
        Setting("sample.every", "sample_every"),
        Setting("sample.prompts", "sample_prompts", extra={"placeholder": "One prompt a line. Empty: two captions."}),
    ],
    advanced=[
        Setting("run.if_exists", "if_exists"),
        Setting("lora.alpha", unset=0),
        Setting("lora.dropout"),
        Setting("lora.target"),
        Setting("train.save_every"),
        Setting("train.keep_states"),
        Setting("train.keep_loras"),
        Setting("train.accumulation"),
        Setting("train.clip_norm"),
        Setting("train.first_frame_probability"),
        Setting("optimizer.name", "optimizer"),
        Setting("optimizer.weight_decay"),
        Setting("schedule.name", "scheduler"),
        Setting("schedule.warmup"),
        Setting("memory.gradient_checkpointing"),
        Setting("train.state"),
        Setting("train.save_precision"),
        Setting("sample.at_start", "sample_at_start"),
        Setting("sample.width", "sample_width", step=32),
        Setting("sample.height", "sample_height", step=32),
        Setting("sample.frames", "sample_frames", step=8),
        Setting("sample.steps", "sample_steps"),
        Setting("sample.guidance", "sample_guidance", unset=0),
        Setting("sample.negative_prompt", extra={"multiline": True}),
        Setting("sample.seed", "sample_seed", extra={"control_after_generate": False}),
        Setting("train.comment", extra={"multiline": True}),
        Setting("train.caption_dropout"),
        Setting("train.audio_learning_rate", step=1e-7),
        Setting("train.loraplus_ratio"),
        Setting("loss.video_weight"),
        Setting("loss.audio_weight"),
        Setting("loss.balance.mode", "audio_balance"),
        Setting("loss.balance.ratio", "audio_balance_ratio"),
        Setting("audio.independent_timestep", "independent_audio_timestep"),
        Setting("audio.silence_regularizer", "silence_regularizer"),
        Setting("audio.supervision", "audio_supervision"),
        Setting("audio.min_batches", "min_audio_batches"),
        Setting("sample.audio", "sample_audio"),
        Setting("memory.blocks_to_swap"),
        Setting("memory.recompute_blocks"),
        Setting("memory.swap_from"),
        Setting("memory.ff_chunk"),
        Setting("memory.attention", "attention_kernel"),
        Setting("memory.compile"),
        Setting("memory.optimizer_offload"),
        Setting("quant.matmul", "low_precision_matmul"),
    ],
    nodes=(TITLE,),
)
# shown, yet after the advanced widgets: it came later, and workflows store values by position
MEMORY = Setting("memory.fit", "memory", extra={"optional": True})
LATER = Form(
    RunConfig,
    visible=[],
    advanced=[Setting("memory.offload_activations"), Setting("memory.pinned")],
    nodes=(TITLE,),
)
MEMORY.shown_by(TITLE)
# which are not theirs to choose
words.note_widget(TITLE, "run.export_folder", "ComfyUI's folder")
words.note_widget(TITLE, "run.folder", "ComfyUI's output folder")

further_settings, require_recipe_mode = (
    options.given,
    options.require_recipe_mode,
)  # `options` is a socket where the node runs


class TrainLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=NODE_ID,
            display_name=TITLE,
            category="LTX-2 training",
            description="Trains a LoRA and places it in ComfyUI's loras folder. Stopping saves; running again goes on "
            "where it stopped; a finished run is extended by raising the steps.",
            search_aliases=["lora", "train", "finetune", "training", "ltx"],
            is_output_node=True,
            inputs=[
                handles.Prepared.Input("prepared", tooltip="The dataset of Prepare Dataset."),
                *FORM.visible_inputs(),
                io.LoraModel.Input(
                    "start_lora",
                    optional=True,
                    tooltip="A LoRA to start from instead of an empty one; of the same rank.",
                ),
                *FORM.advanced_inputs(),
                widget(RunConfig, MEMORY),
                *LATER.advanced_inputs(),
                options.socket(),
                handles.Conditions.Input(
                    "conditions",
                    optional=True,
                    tooltip="What the run is given beside the text: references, first frames, masks, a whole stream. "
                    "From Video Conditions, Audio Conditions or Conditions Recipe.",
                ),
            ],
            outputs=[
                io.LoraModel.Output("lora", display_name="lora", tooltip="The trained LoRA, for Load LoRA Model."),
                handles.Run.Output("run", display_name="run", tooltip="The run, for Sample LoRA and Pick Checkpoints."),
                io.String.Output("path", display_name="path", tooltip="Path of the LoRA file."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, run_name: str | None, **settings: Any) -> Any:
        if run_name is None:  # it comes over a wire and is not known yet
            return None
        if not host.stays_inside(run_name):  # the run refuses it
            return None
        return generation(host.runs_folder() / run_name)

    @classmethod
    def validate_inputs(cls, run_name: str | None, compile: str | bool | None = "auto") -> bool | str:
        """Refuse a name that cannot be used as soon as the prompt is sent; ComfyUI asks before anything runs.

        `compile` is in here since workflows saved while it was a yes or no hold one, which is none of its words.
        """
        if compile not in (*SWITCH, True, False, None):
            return f"compile is {compile!r}, expected one of {', '.join(SWITCH)}"
        if run_name is None:  # it comes over a wire and is not known yet
            return True
        try:
            with words.speaking_as(TITLE):
                core.make_run({"run": {"name": run_name}}, source=TITLE)
        except ConfigError as error:
            with words.speaking_as(TITLE):
                return words.in_widget_words(str(error))
        return True

    @classmethod
    @FORM.fill
    @LATER.fill
    def execute(
        cls,
        prepared: handles.PreparedDataset,
        start_lora: dict[str, Any] | None = None,
        memory: str = "auto",
        options: handles.GivenOptions | None = None,
        conditions: handles.GivenSettings | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        with host.training_job(TITLE):
            more = {} if start_lora is None else {"lora": {"weights": str(lora_file(start_lora))}}
            shown = run_tables(prepared.tables, {**settings, MEMORY.id: memory})
            streams = {} if conditions is None else conditions.tables
            tables = placed(merged(shown, further_settings(options, TITLE, said(settings)), streams, more))
            run = core.make_run(tables, host.runs_folder(), TITLE)
            require_recipe_mode(options, run.model.mode)
            events = host.ComfyEvents(cls.hidden.unique_id, run.run.name, widget=True)
            if run.run.if_exists == "continue":
                events.view.load(host.runs_folder() / run.run.name)
            try:
                result = core.train(run, events)
            except BaseException as error:
                tell_end(events, error)
                raise
            finally:
                events.close()
            made = core.with_its_step(result.lora, result.folder.name, result.step)
            if run.train.what == "full":
                there = f"{result.lora.name} is in ComfyUI's checkpoints folder, for Load Checkpoint; {made} stays."
                text = where_it_is(result, there)
            else:
                there = f"{made.name} is in ComfyUI's loras folder."
                text = f"{where_it_is(result, there)} Raise steps to extend; this LoRA stays as it is."
            events.finish("finished", text + steps_beyond(result))
            note_finished(result)
            found = run_outputs(run, result, made, tables)
            return io.NodeOutput(*found, ui=seen(events, found[1]))


def said(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that widgets of Train LoRA were given for."""
    return merged(FORM.said(settings), LATER.said(settings))


def run_tables(prepared: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run on a prepared dataset: those of its caches, and what the widgets of Train LoRA say."""
    places = {"run": {"folder": str(host.runs_folder()), "export_folder": str(host.loras_folder())}}
    shown = merged(FORM.tables(settings), LATER.tables(settings), {"memory": {"fit": settings.get(MEMORY.id, "auto")}})
    return merged(prepared, shown, places)


def placed(tables: dict[str, Any]) -> dict[str, Any]:
    """`tables` with the folder where ComfyUI finds what the run makes: checkpoints are no LoRAs."""
    if tables.get("train", {}).get("what") != "full":
        return tables
    return merged(tables, {"run": {"export_folder": str(host.checkpoints_folder())}})


def run_outputs(run: RunConfig, result: core.RunResult, made: Path, tables: Mapping[str, Any]) -> tuple[Any, Any, str]:
    """The outputs lora, run and path of a run that made the file `made`.

    Where it trained the weights themselves there is no LoRA, and nodes behind that output are told where the checkpoint
    lies; `run` then has it as the base.
    """
    if run.train.what != "full":
        return read_wire_lora(made), handles.FinishedRun(result.folder, made, result.step, tables), str(made)
    text = (
        f"{run.run.name} trained the weights themselves (what = full), so there is no LoRA. Its checkpoint is {made}."
    )
    base = merged(dict(tables), {"model": {"checkpoint": str(made)}})
    return host.nothing(text), handles.FinishedRun(result.folder, None, result.step, base), str(made)


def check_ahead(
    prompt: Mapping[str, Any] | None, prepared_by: str | None, tables: Mapping[str, Any]
) -> list[RunConfig]:
    """Check the Train LoRA nodes of `prompt` that train on what the node `prepared_by` is about to make.

    `tables` are the settings of its caches. Returns the runs of those nodes of which everything is known by now. Raises
    TrainerError, as they would when everything has been encoded.
    """
    prompt, runs = prompt or {}, list[RunConfig]()
    for node in prompt.values():
        inputs = node.get("inputs", {})
        if node.get("class_type") != NODE_ID or inputs.get("prepared") != [prepared_by, 0]:
            continue
        known = {name: value for name, value in inputs.items() if not isinstance(value, list)}
        widgets = {setting.id for setting in (*FORM.settings, *LATER.settings, MEMORY)}
        streams = handles.GivenSettings({})
        if "conditions" in inputs:
            streams = foretold(prompt, inputs["conditions"])
        with words.speaking_as(TITLE):
            try:
                shown = {name: value for name, value in known.items() if name in widgets}
                further = options.in_prompt(prompt, inputs.get("options"))
                streams_shown = {} if streams is None else streams.tables
                brought = options.given(further, TITLE, said(shown))
                tables_shown = placed(merged(run_tables(tables, shown), brought, streams_shown))
                run = core.make_run(tables_shown, host.runs_folder(), TITLE)
                options.require_recipe_mode(further, run.model.mode)
                wired = further is None or streams is None
                # the value at the end of a wire is not known
                if not wired and not any(name in inputs and name not in known for name in widgets):
                    core.foresee(run)
                    runs.append(run)
            except TrainerError as error:
                text = words.in_widget_words(str(error))
                raise type(error)(text if text.startswith(TITLE) else f"{TITLE}: {text}") from None
    return runs


def where_it_is(result: core.RunResult, there: str) -> str:
    """`there` where what the run made lies in ComfyUI's folder too, else where alone it does."""
    return there if result.exported is not None else f"{result.lora} is not in ComfyUI's folders, see below."


def steps_beyond(result: core.RunResult) -> str:
    """A sentence on a run that is further than it was asked to be; "" where it is not."""
    if result.step <= result.total:
        return ""
    return f" It has {result.step} steps: {result.total} were asked for, and the others are not taken back."


def tell_end(events: host.ComfyEvents, error: BaseException) -> None:
    """Show on the node that its run was ended by `error`. A stop is one of all presses of Run for it."""
    if not isinstance(error, Stopped):
        events.finish("failed", str(error))
        return
    more = host.take_back_presses(events.view.title)
    events.finish("stopped", f"{error}{f' It was queued {more} times more; that is taken back.' if more else ''}")


def seen(events: host.ComfyEvents, run: handles.FinishedRun) -> dict[str, Any]:
    """What the node leaves in ComfyUI's history: its live view, with the names of the run and of what it made."""
    made = run.lora or Path(run.tables["model"]["checkpoint"])
    return {"ltx2_train": [{**events.shown(), "step": run.step, "run": run.folder.name, "lora": made.name}]}


def generation(folder: Path) -> int:
    """A number that changes when the run in `folder`, which this process has finished, is not finished any more
    (deleted, or lengthened from a terminal), or has other files than it was left with; part of what ComfyUI compares.
    """
    return times_changed(folder, lambda: _is_finished(folder))


def note_finished(result: core.RunResult) -> None:
    """Remember what this process has finished the run with, so that it is seen if that changes; a copy that could not
    be written is always a change."""
    saved = [path for step, path in core.list_loras(result.lora.parent, result.folder.name) if step == result.step]
    copies = [] if result.exported is None else [result.exported.with_name(path.name) for path in saved]
    files = {result.lora, *saved, *copies, *([] if result.exported is None else [result.exported])}
    keep_files(result.folder, files, complete=result.exported is not None)


def _is_finished(folder: Path) -> bool:
    try:
        manifest = core.read_manifest(folder)
    except TrainerError:
        return False
    return manifest is not None and manifest.get("status") == "finished"
