"""Keep or Drop LoRA Branches: take the looks out of a LoRA of picture and sound, or the voice."""

from __future__ import annotations

from typing import Any

from .. import ltx2_train as core
from . import host
from .host import io
from .lora_names import (
    chosen_lora,
    file_mark,
    lora_input,
    lora_outputs,
    lora_path_input,
    named_here,
    new_lora,
    stamp,
    worked,
    written_lora,
)
from .made import compared

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
                lora_input(),
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
                lora_path_input("take apart"),
                io.String.Input(
                    "save_name",
                    default="",
                    tooltip="Name of the new file in ComfyUI's loras folder. Empty: it is only passed on.",
                ),
            ],
            outputs=lora_outputs("What is left, for Load LoRA Model.", "Layers kept and removed, by branch."),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_path: str | None, **given: Any) -> Any:
        return compared(cls.hidden.unique_id, {**given, "lora_path": lora_path}, stamp(lora_path))

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
            out = new_lora(save_name, f"branches/{source.stem}_{file_mark(source, action, branches)}")
            rewrite = core.keep_branches if action == KEEP else core.drop_branches
            names = [name.strip() for name in branches.split(",")]
            return written_lora(
                worked(cls.hidden.unique_id, out, lambda events: rewrite(source, names, out, named_here(save_name)))
            )
