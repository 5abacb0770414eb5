"""Check Dataset: what is wrong with a dataset, and a picture of all that the trainer will see of it."""

from __future__ import annotations

from typing import Any

from .. import ltx2_train as core
from ..ltx2_train.errors import DataError
from ..ltx2_train.files import digest
from . import entries, handles, host, words
from .data import SHAPE, SIZE_SETTINGS, idle_sizes, size_settings
from .host import io
from .made import compared, keep_made

TITLE = "Check Dataset"


class CheckDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_CheckDataset",
            display_name=TITLE,
            category="LTX-2 training",
            description="Looks through a dataset before it costs hours: names every file that cannot be used or "
            "deserves a look, says what to do about it, and shows what the trainer will see. No model is needed.",
            search_aliases=["dataset", "check", "validate", "preview", "contact sheet", "captions", "lora", "train"],
            is_output_node=True,
            inputs=[
                handles.Dataset.Input("dataset", tooltip="The dataset of a loader, or of Combine Datasets."),
                io.Combo.Input(
                    "goal",
                    options=list(core.GOALS),
                    default="character",
                    tooltip="What is to be learned; it decides how many files are enough.",
                ),
                *SHAPE.visible_inputs(),
                io.Boolean.Input(
                    "stop_on_red",
                    default=False,
                    tooltip="Stop here where something is red, so that nothing is trained on a broken dataset.",
                ),
                *SHAPE.advanced_inputs(),
                *SIZE_SETTINGS.advanced_inputs(),
            ],
            outputs=[
                handles.Dataset.Output("dataset", display_name="dataset", tooltip="The same dataset."),
                io.String.Output("report", display_name="report", tooltip="All findings, as text."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> Any:
        return compared(cls.hidden.unique_id, given)

    @classmethod
    @SHAPE.fill
    @SIZE_SETTINGS.fill
    def execute(cls, dataset: handles.ClipFolder, goal: str, stop_on_red: bool, **settings: Any) -> io.NodeOutput:
        with host.training_job(TITLE):
            folder = entries.dataset_folder(dataset)
            config = entries.dataset_config([dataset], size_settings(settings), folder, "Check Dataset")
            events = host.ComfyEvents(cls.hidden.unique_id)
            if idle := idle_sizes([dataset], settings):
                events.message(idle, "warning")
            try:
                out = folder / "check" / digest(config.to_toml(), length=8)
                preview = core.preview_dataset(config, out, events=events, goal=goal)
            finally:
                events.close()
            assert preview.report is not None
            text = words.in_widget_words(preview.report.text())
            if stop_on_red and not preview.report.ok:
                events.finish("failed", text)
                raise DataError(
                    f"The dataset has red findings, and stop_on_red is on.\n{text}\nSee {preview.sheets[0]}. Correct "
                    "the files, or switch stop_on_red off to go on with the others."
                )
            events.finish("finished", text)
            keep_made(cls.hidden.unique_id, preview.sheets)
            return io.NodeOutput(dataset, text, ui={**host.preview_all(preview.sheets), "text": [text]})
