"""Keep or Drop LoRA Branches: take the looks out of a LoRA of picture and sound, or the voice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from . import host
from .host import io
from .lora_names import chosen_lora, file_mark, new_lora, stamp
from .wire import read_wire_lora

TITLE = "Keep or Drop LoRA Branches"

KEEP, DROP = "keep", "drop"
BRANCHES = ["audio", "video", "cross", "audio, cross", "video, cross", "video, audio", "a2v", "v2a"]


class KeepBranch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_KeepBranch",
            display_name=TITLE,
            category="LTX-2 training",
            description="Takes a LoRA of picture and sound apart: keeps only the voice or only the looks, or drops one "
            "of them. What stays is not changed.",
            search_aliases=["lora", "voice", "audio", "video", "split", "extract", "branch", "modality"],
            is_output_node=True,
            inputs=[
                io.LoraModel.Input("lora", optional=True, tooltip="The LoRA of Train LoRA or Load LoRA Model."),
                io.Combo.Input(
                    "action", options=[KEEP, DROP], default=KEEP, tooltip="Keep only the branches named, or drop them."
                ),
                io.Combo.Input(
                    "branches",
                    options=BRANCHES,
                    default="audio",
                    tooltip="audio = the sound; video = the picture; cross = what passes between them: a2v, picture "
                    "that listens, and v2a, sound that looks.",
                ),
                io.String.Input(
                    "lora_path",
                    default="",
                    tooltip="LoRA file to take apart, where none is connected; a name in ComfyUI's loras folders "
                    "will do.",
                ),
                io.String.Input(
                    "save_name",
                    default="",
                    tooltip="Name of the new file in ComfyUI's loras folder. Empty: it is only passed on.",
                ),
            ],
            outputs=[
                io.LoraModel.Output("lora", display_name="lora", tooltip="What is left, for Load LoRA Model."),
                io.String.Output("report", display_name="report", tooltip="Layers kept and removed, by branch."),
                io.String.Output("path", display_name="path", tooltip="Path of the new file."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_path: str | None, **settings: Any) -> Any:
        return stamp(lora_path)

    @classmethod
    def execute(
        cls,
        action: str,
        branches: str,
        lora_path: str,
        save_name: str,
        lora: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        with host.training_job(TITLE):
            source = chosen_lora(lora, lora_path, "take apart")
            out = _target(save_name, source, action, branches)
            work = core.keep_branches if action == KEEP else core.drop_branches
            report = work(source, [name.strip() for name in branches.split(",")], out)
            text = report.text()
            host.ComfyEvents(cls.hidden.unique_id).finish("finished", text)
            return io.NodeOutput(read_wire_lora(report.path), text, str(report.path))


def _target(name: str, source: Path, action: str, branches: str) -> Path:
    return new_lora(name, f"branches/{source.stem}_{file_mark(source, action, branches)}")
