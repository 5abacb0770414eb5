"""Pick Checkpoints: which saves of a run are compared, or go on into a graph of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train.errors import ConfigError
from . import handles, host
from .host import io
from .lora_names import whole_lora
from .numbers import numbers_of
from .wire import FileLora

TITLE = "Pick Checkpoints"
CONNECTED = "(the connected run)"
MOST = 100
SPREAD, NEWEST, STEPS, NUMBERS = "spread over the run", "the newest", "by step", "by number"


class PickCheckpoints(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = [facts.name for facts in core.list_runs(host.runs_folder())]

        def count() -> Any:
            text = "So many of the saves: evenly over the run, the first and the last among them, or the last ones."
            return io.Int.Input("count", default=4, min=1, max=MOST, tooltip=text)

        return io.Schema(
            node_id="LTX2T_PickCheckpoints",
            display_name=TITLE,
            category="LTX-2 training",
            description="Picks LoRAs that a run has saved, to compare them or to use them one after the other in a "
            "graph of your own. Nothing is read before it is used.",
            search_aliases=["checkpoint", "compare", "epoch", "steps", "select", "lora", "train", "ltx"],
            inputs=[
                handles.Run.Input("run", optional=True, tooltip="The run of Train LoRA or Run from File."),
                handles.Checkpoints.Input(
                    "more", optional=True, tooltip="Checkpoints of another Pick Checkpoints, which come before these."
                ),
                io.Combo.Input(
                    "run_name",
                    options=[CONNECTED, *names],
                    tooltip="A run in output/ltx2_runs, where none is connected. Press R after a new one has begun.",
                ),
                io.DynamicCombo.Input(
                    "pick",
                    options=[
                        io.DynamicCombo.Option(SPREAD, [count()]),
                        io.DynamicCombo.Option(NEWEST, [count()]),
                        io.DynamicCombo.Option(
                            STEPS,
                            [io.String.Input("steps", default="", tooltip="After how many steps, such as 250, 500.")],
                        ),
                        io.DynamicCombo.Option(
                            NUMBERS,
                            [
                                io.String.Input(
                                    "numbers", default="-1", tooltip="1 is the first save, -1 the last: 1, 3, -1."
                                )
                            ],
                        ),
                    ],
                    tooltip="How the saves of the run are chosen.",
                ),
            ],
            outputs=[
                handles.Checkpoints.Output(
                    "checkpoints", display_name="checkpoints", tooltip="All that were picked, for Compare Checkpoints."
                ),
                io.LoraModel.Output(
                    "lora",
                    display_name="lora",
                    is_output_list=True,
                    tooltip="Each of them in turn, for Load LoRA Model: what follows runs once for each.",
                ),
                io.String.Output(
                    "label", display_name="label", is_output_list=True, tooltip="The name of each, for its file name."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, run_name: str | None, **settings: Any) -> Any:
        if run_name is None or run_name == CONNECTED or not host.stays_inside(run_name):
            return None
        folder = host.runs_folder() / run_name
        return [[step, path.name] for step, path in core.list_loras(folder / "lora", folder.name)]

    @classmethod
    def validate_inputs(cls, run_name: Any, pick: Any = None) -> bool:
        return True  # that a run was deleted is told by the node itself, with what to do; ComfyUI hands `pick` over too

    @classmethod
    def execute(
        cls,
        run_name: str,
        pick: Mapping[str, Any],
        run: handles.FinishedRun | None = None,
        more: handles.PickedCheckpoints | None = None,
    ) -> io.NodeOutput:
        with host.training_job(TITLE):
            folder, tables = _run_of(run, run_name)
            loras = core.pick_loras(folder, **_chosen(pick))
            for path in loras.values():
                whole_lora(path, folder.name)
            if more is not None:
                folder, tables, loras = more.folder, more.tables, {**more.loras, **loras}
            events = host.ComfyEvents(cls.hidden.unique_id)
            try:
                events.finish("finished", "\n".join(loras))
            finally:
                events.close()
            picked = handles.PickedCheckpoints(folder, loras, tables)
            return io.NodeOutput(picked, [FileLora(path) for path in loras.values()], list(loras))


def _run_of(run: handles.FinishedRun | None, run_name: str) -> tuple[Path, Mapping[str, Any]]:
    """The folder of the run and its settings. Raises ConfigError where there is none, or are two."""
    if run is not None:
        if run_name != CONNECTED:
            raise ConfigError(
                f"`run` is connected, and run_name is {run_name!r} too. Take the wire off, or choose {CONNECTED}."
            )
        return run.folder, run.tables
    if run_name == CONNECTED:
        raise ConfigError("No run is given: connect `run`, or choose one in `run_name`.")
    folder = host.runs_folder() / run_name
    if not host.stays_inside(run_name) or not (folder / "run.toml").is_file():
        raise ConfigError(f"run_name: there is no run {run_name} in {host.runs_folder()}. Press R and choose another.")
    return folder, core.load_run(folder / "run.toml").model_dump(mode="json", exclude_defaults=True)


def _chosen(pick: Mapping[str, Any]) -> dict[str, Any]:
    """What the widgets ask for, as pick_loras takes it. Raises ConfigError where they ask for nothing."""
    way = pick.get("pick")
    if way in (SPREAD, NEWEST):
        return {"spread" if way == SPREAD else "newest": int(pick.get("count", 4))}
    if way not in (STEPS, NUMBERS):
        raise ConfigError(f"pick: {way!r} is none of {SPREAD}, {NEWEST}, {STEPS}, {NUMBERS}.")
    widget = "steps" if way == STEPS else "numbers"
    wanted = numbers_of(str(pick.get(widget, "")), widget, int)
    if not wanted:
        raise ConfigError(f"{widget} is empty. Write {'steps, such as 250, 500' if way == STEPS else 'numbers'}.")
    return {widget: wanted}
