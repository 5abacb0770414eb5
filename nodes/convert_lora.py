"""Convert LoRA: a LoRA of another trainer for ComfyUI, or one of ours for another program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import ltx2_train as core
from . import host
from .host import io
from .lora_names import (
    chosen_lora,
    dtype_input,
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

TITLE = "Convert LoRA"

_FOR_COMFYUI = ("comfyui", "official")


class ConvertLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_ConvertLoRA",
            display_name=TITLE,
            category="LTX-2 training",
            description="Writes a LoRA in the keys of another program: one of the community trainer, diffusers or "
            "DiffSynth for ComfyUI, or the other way round.",
            search_aliases=["lora", "convert", "keys", "musubi", "diffusers", "diffsynth", "format", "ltx"],
            is_output_node=True,
            inputs=[
                lora_input(),
                io.Combo.Input(
                    "to",
                    options=list(core.KEY_FORMATS),
                    default="comfyui",
                    tooltip="Whose keys. official is Lightricks' trainer, whose keys ComfyUI loads as well.",
                ),
                lora_path_input("convert"),
                io.String.Input(
                    "save_name",
                    default="",
                    tooltip="Name of the new file in ComfyUI's loras folder. Empty: it lies among the runs.",
                ),
                dtype_input("auto", "Numbers of the new file. auto: those of the old one."),
            ],
            outputs=lora_outputs("The LoRA in ComfyUI's keys, for Load LoRA Model.", "What it was, and what was done."),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_path: str | None, **given: Any) -> Any:
        return compared(cls.hidden.unique_id, {**given, "lora_path": lora_path}, stamp(lora_path))

    @classmethod
    def execute(
        cls,
        to: str,
        lora_path: str,
        save_name: str,
        lora: Mapping[str, Any] | None = None,
        dtype: str = "auto",
    ) -> io.NodeOutput:
        with host.training_job(TITLE):
            source = chosen_lora(lora, lora_path, "convert")
            out = new_lora(save_name, f"converted/{source.stem}_{to}_{file_mark(source, to, dtype)}")
            report = worked(
                cls.hidden.unique_id,
                out,
                lambda events: core.convert_lora(source, to, out, dtype, replace=named_here(save_name), events=events),
            )
            if to in _FOR_COMFYUI:
                return written_lora(report)
            nothing = host.nothing(f"Convert LoRA wrote keys of {to}, which ComfyUI does not load. Use `path`.")
            return io.NodeOutput(nothing, report.text(), str(report.path))
