"""Run Monitor: the live view of any run, wherever it is trained."""

from __future__ import annotations

from typing import Any

from .. import ltx2_train as core
from . import host
from .host import io

TITLE = "Run Monitor"
NO_RUN = "(no run yet)"


class RunMonitor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = [facts.name for facts in core.list_runs(host.runs_folder())]
        return io.Schema(
            node_id="LTX2T_Monitor",
            display_name=TITLE,
            category="LTX-2 training",
            description="Shows a run as its folder tells of it: how far it is, its loss, its samples. It may be "
            "trained by another node, another server or a terminal, or be over. Nothing has to be run for it.",
            search_aliases=["monitor", "progress", "loss", "curve", "samples", "live", "ltx", "lora", "train"],
            inputs=[
                io.Combo.Input(
                    "run_name",
                    options=names or [NO_RUN],
                    tooltip="A run in output/ltx2_runs, the newest first. Press R after a new one has begun.",
                )
            ],
            outputs=[],
        )

    @classmethod
    def validate_inputs(cls, run_name: Any) -> bool:
        return True  # a run that was deleted stops no other node

    @classmethod
    def execute(cls, run_name: str) -> io.NodeOutput:
        return io.NodeOutput()
